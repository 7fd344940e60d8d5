"""The server's prompt is the checkpoint's: its text, and the number of tokens of every image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from qwendet.checks.runner import NotApplicableError, Verdict
from qwendet.checks.served.observed import Observed
from qwendet.encoding.image_tokens import num_image_tokens
from qwendet.errors import Problem
from qwendet.families.choose import FAMILIES
from qwendet.families.family import PixelLimits

Size = tuple[int, int]
OTHER_UNITS = (28, 32, 56, 14, 16)
"""Sides, in pixels, whose multiples a resize before the server's own may make images of."""
PERCENTS = (25, 50, 75, 90, 150, 200)
"""Of an image's sides, to which it may be resized before."""


def model(observed: Observed) -> Verdict:
    """The server can hold the longest prompt and its answer."""
    server, longest = observed.server, max(len(item.input_ids) for item in observed.items)
    needed = longest + observed.predictor.bundle.config.infer.max_new_tokens
    given = "with" if observed.tells_log_probs else "without"
    problems = []
    if server.max_model_len is not None and server.max_model_len < needed:
        what = (
            f"prompt and answer may have {needed} tokens together ({longest} and infer.max_new_tokens),"
            f" but the server holds {server.max_model_len}"
        )
        problems.append(Problem(what, server.url, f"vllm serve … --max-model-len {needed}"))
    return Verdict(f"{server.model} answers, {given} log-probabilities", tuple(problems))


def template(observed: Observed) -> Verdict:
    """System text, request and chat template: the prompt without its image."""
    expected, reply = observed.text_ids(), observed.without_image
    if reply is None:
        raise NotApplicableError("the server takes no prompt without an image: see served.images")
    if reply.prompt_tokens is None:
        raise NotApplicableError("the server does not report how many tokens a prompt has")
    found = reply.prompt_ids
    is_same = found == tuple(expected) if found is not None else reply.prompt_tokens == len(expected)
    seen = f"without an image the prompt has {len(expected)} tokens" + (", the same ids" if found else "")
    if is_same:
        return Verdict(seen)
    for cause, ids, fix in _other_prompts(observed):
        if found == tuple(ids) if found is not None else reply.prompt_tokens == len(ids):
            what = f"{cause}: {_counts(reply.prompt_tokens, len(expected))}"
            return Verdict(seen, (Problem(what, "prompt", fix),))
    what = f"another chat template: {_counts(reply.prompt_tokens, len(expected))}"
    if found is not None:
        what += f"; {_first_difference(observed, found, expected)}"
    template = observed.checkpoint / "chat_template.jinja"
    return Verdict(seen, (Problem(what, "prompt", f"start the server with --chat-template {template}"),))


def _counts(found: int, expected: int) -> str:
    return f"without an image the prompt has {found} tokens, expected {expected}"


def _other_prompts(observed: Observed) -> Iterator[tuple[str, list[int], str]]:
    """Prompts that servers are known to make in place of the right one, and what fixes each."""
    messages = observed.text_messages()
    users = [message for message in messages if message["role"] != "system"]
    pass_on = "let whatever stands before the server pass the messages on as they are"
    if len(users) < len(messages):
        yield "the system text is left out", observed.text_ids(messages=users), pass_on
        empty = [{"role": "system", "content": [{"type": "text", "text": ""}]}, *users]
        yield "the system text is empty", observed.text_ids(messages=empty), pass_on
    settings = observed.predictor.bundle.processor.family.template_settings
    no_thought = "start vLLM with --default-chat-template-kwargs " + repr(
        json.dumps(dict(settings) or {"enable_thinking": False})
    )
    if settings:
        yield "the model is asked to think", observed.text_ids(enable_thinking=True), no_thought
    tokenizer, own = observed.predictor.bundle.processor.tokenizer, observed.predictor.bundle.processor.family
    for prefix in {family.answer_prefix for family in FAMILIES.values()} - {own.answer_prefix, ""}:
        thought = tokenizer(prefix, add_special_tokens=False)["input_ids"]
        yield "an empty thought stands before the answer", observed.text_ids() + thought, no_thought
    without = observed.text_ids(add_generation_prompt=False)
    yield "the assistant's turn is not begun", without, "send add_generation_prompt true, its default"


def _first_difference(observed: Observed, found: Sequence[int], expected: Sequence[int]) -> str:
    at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
    decode = observed.predictor.bundle.processor.tokenizer.decode
    return (
        f"from token {at} it is {decode(found[at : at + 12])!r}, expected {decode(expected[at : at + 12])!r}"
    )


def images(observed: Observed) -> Verdict:
    """Images in the model's size, as ``infer --server`` sends them, become as many tokens as in training."""
    sizes = [_size_in_model(observed, number) for number in range(len(observed.items))]
    found = [reply.prompt_tokens for reply in observed.replies]
    return _held(observed, sizes, found, "sent in the model's size")


def resize(observed: Observed) -> Verdict:
    """Images as they are displayed, which the server resizes, become as many tokens as in training."""
    sizes = [item.image_size for item in observed.items]
    return _held(observed, sizes, [reply.prompt_tokens for reply in observed.unresized], "sent as displayed")


def _size_in_model(observed: Observed, number: int) -> Size:
    _, rows, columns = observed.items[number].image_grid_thw[-1].tolist()
    patch = observed.predictor.bundle.processor.image_processor.patch_size
    return columns * patch, rows * patch


def _held(observed: Observed, sizes: Sequence[Size], found: Sequence[int | None], how: str) -> Verdict:
    """Hold the tokens of prompts against the checkpoint's, and name why they differ."""
    if None in found:
        raise NotApplicableError("the server does not report how many tokens a prompt has")
    reply, beside = observed.without_image, 0
    if reply is not None:
        beside = len(observed.text_ids()) - (reply.prompt_tokens or 0)  # what the template check tells
    differences = [
        int(tokens or 0) + beside - len(item.input_ids)
        for tokens, item in zip(found, observed.items, strict=True)
    ]
    limits = observed.predictor.encoder.limits
    seen = f"{len(sizes)} images {how} have the checkpoint's number of tokens"
    if not any(differences):
        return Verdict(seen)
    own = [num_image_tokens(size, limits) for size in sizes]
    counts = [tokens + more for tokens, more in zip(own, differences, strict=True)]
    cause = cause_of(sizes, counts, limits) or "the server's image processor is another"
    worst = max(range(len(sizes)), key=lambda number: abs(differences[number]))
    what = f"{cause}; {how}, an image has {counts[worst]} tokens, expected {own[worst]}"
    return Verdict(seen, (Problem(what, observed.samples[worst].where, launch_limits(limits)),))


def launch_limits(limits: PixelLimits) -> str:
    """The option of vLLM for the limits."""
    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    given = json.dumps({"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels, "size": size})
    return f"start vLLM with --mm-processor-kwargs '{given}', others with this in preprocessor_config.json"


def cause_of(sizes: Sequence[Size], counts: Sequence[int], limits: PixelLimits) -> str:
    """Why images of these sizes have these numbers of tokens; empty if nothing known explains all of them.

    Example:
        >>> cause_of([(300, 200), (90, 60)], [35, 6], PixelLimits(3136, 50176, 28))
        'max_pixels is about 29400 on the server, 50176 in training'
    """
    area, low, high, unit = limits.unit**2, limits.min_pixels, limits.max_pixels, limits.unit
    most, least = max(counts) * area, min(counts) * area
    for slack in range(0, most + area, area // 8):  # whole tokens fill an image to a part of the limit
        if _tokens(sizes, PixelLimits(low, most + slack, unit)) == list(counts):
            return f"max_pixels is about {most + slack} on the server, {high} in training"
        if slack < least and _tokens(sizes, PixelLimits(least - slack, high, unit)) == list(counts):
            return f"min_pixels is about {least - slack} on the server, {low} in training"
    for other in OTHER_UNITS:
        once = [PixelLimits(low, high, other).resized(size) for size in sizes]
        if _tokens(once, limits) == list(counts):
            return f"images are resized twice, first to multiples of {other} pixels"
    for percent in PERCENTS:
        once = [(w * percent // 100, h * percent // 100) for w, h in sizes]
        if _tokens(once, limits) == list(counts):
            return f"images are resized twice, first to {percent} % of their sides"
    return ""


def _tokens(sizes: Sequence[Size], limits: PixelLimits) -> list[int]:
    return [num_image_tokens(size, limits) for size in sizes]
