"""``consistency.prompt.*`` and ``consistency.images.*``: the published chat format, how images are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from qwendet.checks.consistency.pair import pair
from qwendet.checks.runner import Verdict
from qwendet.checks.subject import Subject
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.families.chat import END_OF_TURN, IN_CONFIG, PADDING, START_OF_TURN, prompt_text
from qwendet.loader import Bundle
from qwendet.loading.processor import TEMPLATE_FIX, TOKENIZER_FIX

ONE_TOKEN = (PADDING, START_OF_TURN, END_OF_TURN, *IN_CONFIG)
CONTEXT = 4
"""Tokens shown on either side of a difference."""
PROCESSOR_FIX = "take image processor and pixel limits from the checkpoint, in training and at inference"
STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
BICUBIC = 3
"""Pillow's number, which preprocessor_config.json writes."""
STANDARD = dict.fromkeys(STEPS, True) | {"rescale_factor": 1 / 255, "resample": BICUBIC}
LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def text(subject: Subject) -> Verdict:
    """What training sees is the whole conversation, written in the published format, tokenised in one go."""
    both, problems = pair(subject), []
    tokenizer = Tokenizer.from_file(str(both.folder / "tokenizer.json"))
    for item, sample in zip(subject.encoded, subject.samples, strict=True):
        expected = tokenizer.encode(_conversation(item, sample, both.trained), add_special_tokens=False).ids
        what = "the encoder's tokens are not those of the published chat format"
        own = both.trained.processor.tokenizer
        problems += first_difference(item.input_ids.tolist(), expected, own, what, sample.where)
    return Verdict("conversations are tokenised as the published format has it", tuple(problems))


def _conversation(item: EncodedSample, sample: Sample, bundle: Bundle) -> str:
    """The sample written out, its answers as they stand in its tokens."""
    data, ids = bundle.config.data, item.input_ids.tolist()
    spans = (*item.teacher_assistant_spans, *item.student_assistant_spans)
    decode = partial(bundle.processor.tokenizer.decode, clean_up_tokenization_spaces=False)
    answers = [decode(ids[start : end - 1]) for start, end in spans]
    merge = bundle.detector.config.vision_config.spatial_merge_size
    image_tokens = [int(grid.prod()) // merge**2 for grid in item.image_grid_thw]
    asked = sample.student.labels or bundle.labels
    labels = [*(turn.labels or asked for turn in sample.teachers), asked]
    requests = [data.request.replace("{labels}", ", ".join(own)) for own in labels]
    prefix = bundle.detector.family.answer_prefix
    prompt = prompt_text(data.system_prompt or "", requests, answers[:-1], image_tokens, prefix)
    return f"{prompt}{answers[-1]}{END_OF_TURN}"


def first_difference(
    found: Sequence[int], expected: Sequence[int], tokenizer: Any, what: str, where: str
) -> list[Problem]:
    """Where two sequences of tokens part, if they do."""
    if list(found) == list(expected):
        return []
    lengths = f"{len(found)} and {len(expected)} tokens"
    place = parting(found, expected, tokenizer)
    return [Problem(f"{what}: {place} ({lengths})", where, TEMPLATE_FIX)]


def parting(found: Sequence[int], expected: Sequence[int], tokenizer: Any) -> str:
    """Where two sequences of tokens part, with what stands around it."""
    pairs = enumerate(zip_longest(found, expected))
    at = next(index for index, (own, other) in pairs if own != other)
    window = slice(max(0, at - CONTEXT), at + CONTEXT)
    own, other = (tokenizer.decode(list(ids[window])) for ids in (found, expected))
    return f"from token {at} {own!r} for {other!r}"


def special_tokens(subject: Subject) -> Verdict:
    """Each special token is one token, and the one that the model's config names."""
    both = pair(subject)
    problems: list[Problem] = []
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        problems += special_token_problems(bundle.processor.tokenizer, bundle.detector.config, name)
    return Verdict(f"{len(ONE_TOKEN)} special tokens are one token each, as in config.json", tuple(problems))


def special_token_problems(tokenizer: Any, config: Any, name: str) -> Iterator[Problem]:
    """Special tokens that are split, or other ones than a model's config names."""
    for token in ONE_TOKEN:
        ids = tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
        if len(ids) != 3 or tokenizer.decode(ids[1:2]) != token:
            yield Problem(
                f"{token} becomes {max(len(ids) - 2, 0)} tokens", f"{name} tokenizer", TOKENIZER_FIX
            )
            continue
        expected = getattr(config, IN_CONFIG.get(token, ""), ids[1])
        if ids[1] != expected:
            what = f"{token} is token {ids[1]}, but the model's {IN_CONFIG[token]} is {expected}"
            yield Problem(what, f"{name} tokenizer", TOKENIZER_FIX)
    if tokenizer.eos_token != END_OF_TURN:
        yield Problem(
            f"the end of turn is {tokenizer.eos_token}, expected {END_OF_TURN}", name, TOKENIZER_FIX
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        what = (
            f"padding is {tokenizer.pad_token!r}, the end of turn {tokenizer.eos_token!r}: they must differ"
        )
        yield Problem(what, f"{name} tokenizer", "set pad_token to " + PADDING)
    if len(tokenizer) > config.text_config.vocab_size:
        what = f"{len(tokenizer)} tokens, but the model embeds {config.text_config.vocab_size}"
        yield Problem(what, f"{name} tokenizer", TOKENIZER_FIX)


def processor(subject: Subject) -> Verdict:
    """Pixel limits, patch sizes and colour statistics are the same in both builds, and the model's own."""
    both, problems = pair(subject), list[Problem]()
    wanted = _published(both.trained)
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        found = settings_of(bundle.processor.image_processor)
        problems += processor_problems(found, wanted, f"{name} image processor", PROCESSOR_FIX)
    seen = "{min_pixels} to {max_pixels} pixels, patches of {patch_size}".format_map(wanted)
    return Verdict(f"both image processors agree with the model: {seen}", tuple(problems))


def _published(bundle: Bundle) -> dict[str, Any]:
    """Limits of the resolved config, sizes of the model, published colour statistics."""
    data, vision, family = bundle.config.data, bundle.detector.config.vision_config, bundle.detector.family
    return STANDARD | {
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": family.image_mean,
        "image_std": family.image_std,
    }


def settings_of(image_processor: Any) -> dict[str, Any]:
    """What decides which pixels an image processor makes."""
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", *STANDARD)
    limits = {name: image_processor.size[edge] for name, edge in LIMITS.items()}
    return limits | {name: getattr(image_processor, name) for name in names}


def processor_problems(
    found: Mapping[str, Any], wanted: Mapping[str, Any], where: str, fix: str
) -> Iterator[Problem]:
    """Settings of an image processor that are not the model's."""
    for name, value in wanted.items():
        own = found.get(name)
        if own is None or not np.allclose(own, value, rtol=1e-9):
            note = " (bicubic)" if name == "resample" else ""
            yield Problem(f"{name} is {own}, expected {value}{note}", where, fix)
