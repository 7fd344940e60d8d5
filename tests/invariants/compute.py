"""A token depends on what stands before it in its own sample, and on nothing else.

Not on padding, on who else is in the batch, on the answer behind it, on the mode or on the cache; and its
positions are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from qwendet.checks.consistency.noise import compare, noise
from qwendet.checks.consistency.pair import exact_pair, pair
from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.loader import Bundle
from tests.invariants.drafts import not_likeliest
from tests.invariants.expected import rope_positions, rotary_angles
from tests.invariants.runs import (
    GENERATED,
    Serving,
    alone,
    end_ids,
    ended,
    forced,
    hidden_of,
    packed_pass,
    prompts_of,
    serving,
    token_logits,
    training,
)
from tests.invariants.trace import Reading

POSITIONS_FIX = "positions come from rope_positions in collate, by mm_token_type_ids and image_grid_thw"
ROPE_FIX = "restore rope_parameters in config.json, and take the versions in constraints.txt"
PLACE = (1, 3, 7)
"""Time, row and column at which angles are compared."""
PADDING_FIX = "pass attention_mask to the language model, and pad on the left with StandardDataCollator"
PACKING_FIX = "set train.packing to false, or pass four rows of positions, num_tokens, no mask and no cache"


def positions(subject: Subject) -> list[Problem]:
    """The language model gets the published positions, in training and in every step of generation."""
    both, shown, items = pair(subject), serving(subject), subject.encoded
    wheres = [sample.where for sample in subject.samples]
    trained = training(subject)
    batch, prompted = trained.batches[0], shown.trace.prompts[0]
    problems = [*_types(batch, both.trained), *_mask(batch, both.trained, "the training batch")]
    problems += _mask(prompted, both.served, "the prompts of generation")
    answered = [item.input_ids.tolist() for item in items]
    problems += _positions(trained.readings[0], batch, answered, items, both.trained, wheres)
    prompts = prompts_of(shown)
    calls = [(0, shown.trace.batches[0])] if shown.trace.batches else []
    for call, given in [*calls, (shown.prefill, prompted)]:
        problems += _positions(shown.trace.readings[call], given, prompts, items, both.served, wheres)
    problems += _step_positions(shown, items, both.served, wheres)
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        problems += _frequencies(bundle, name)
    return problems


def _types(batch: dict[str, Tensor], bundle: Bundle) -> Iterator[Problem]:
    """Image tokens, and only they, are typed as such: positions are made of it."""
    types = batch.get("mm_token_type_ids")
    if types is None:
        yield Problem("the training batch lacks mm_token_type_ids", "collator", POSITIONS_FIX)
    elif not torch.equal(types.long(), (batch["input_ids"] == bundle.detector.config.image_token_id).long()):
        what = "mm_token_type_ids of the training batch do not mark the image tokens"
        yield Problem(what, "collator", POSITIONS_FIX)


def _mask(given: dict[str, Tensor], bundle: Bundle, what: str) -> Iterator[Problem]:
    """Padding is masked and on the left."""
    mask = given.get("attention_mask")
    if mask is None:
        yield Problem(f"{what} lacks attention_mask", "collator", PADDING_FIX)
        return
    pad = bundle.processor.tokenizer.pad_token_id
    expected = torch.cummax((given["input_ids"] != pad).long(), dim=1).values  # padding ends at another token
    if not torch.equal(mask.long(), expected):
        yield Problem(
            f"{what} is not padded on the left, or its padding is not masked", "collator", PADDING_FIX
        )


def _positions(
    reading: Reading,
    given: dict[str, Tensor],
    rows: Sequence[Sequence[int]],
    items: Sequence[EncodedSample],
    bundle: Bundle,
    wheres: Sequence[str],
) -> Iterator[Problem]:
    if reading.position_ids is None or reading.position_ids.ndim != 3:
        yield Problem("the language model got no three-dimensional positions", "forward", POSITIONS_FIX)
        return
    for row, (ids, item, where) in enumerate(zip(rows, items, wheres, strict=True)):
        expected = _expected(ids, item, bundle)
        found = reading.position_ids[-3:, row][:, given["attention_mask"][row].bool()].cpu().numpy()
        if found.shape != expected.shape:
            yield Problem(f"{found.shape[1]} positions of {expected.shape[1]} tokens", where, POSITIONS_FIX)
        elif (found != expected).any():
            axis, token = np.argwhere(found != expected)[0]
            yield Problem(
                f"the {('time', 'row', 'column')[axis]} of token {token} is {found[axis, token]},"
                f" expected {expected[axis, token]}",
                where,
                POSITIONS_FIX,
            )


def _expected(ids: Sequence[int], item: EncodedSample, bundle: Bundle) -> np.ndarray:
    config = bundle.detector.config
    grids = item.image_grid_thw.tolist()
    return rope_positions(ids, config.image_token_id, grids, config.vision_config.spatial_merge_size)


def _step_positions(
    shown: Serving, items: Sequence[EncodedSample], bundle: Bundle, wheres: Sequence[str]
) -> Iterator[Problem]:
    """Generated tokens count on from the prompt's largest position."""
    for row, (prompt, item) in enumerate(zip(prompts_of(shown), items, strict=True)):
        following = int(_expected(prompt, item, bundle).max()) + 1
        readings = zip(shown.rows[1:], shown.trace.readings[shown.prefill + 1 :], strict=False)
        given = [(reading.position_ids, own.index(row)) for own, reading in readings if row in own]
        for step, (places, index) in enumerate(given):
            found = None if places is None or places.ndim != 3 else places[-3:, index, -1].tolist()
            if found != [following + step] * 3:
                what = f"generated token {step} is at {found}, expected {following + step}"
                yield Problem(what, wheres[row], POSITIONS_FIX)
                break


def _frequencies(bundle: Bundle, name: str) -> Iterator[Problem]:
    """The rotary angles at a place are those that the config names."""
    text = bundle.detector.config.text_config
    rope = text.rope_parameters
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = int(size * rope.get("partial_rotary_factor", 1.0))
    where = f"{name}: language_model.rotary_emb"
    sections, is_interleaved = rope.get("mrope_section") or (), rope.get("mrope_interleaved", False)
    if sum(sections) * 2 != size:
        what = f"mrope_section {sections} does not fill half of the {size} rotary dimensions"
        yield Problem(what, where, ROPE_FIX)
    elif rope.get("rope_type") == "default":  # scaled frequencies have nothing independent to be held against
        expected = rotary_angles(PLACE, sections, rope["rope_theta"], interleaved=is_interleaved)
        device = bundle.detector.device
        with torch.no_grad():
            found = bundle.detector.vlm.model.language_model.rotary_emb(
                torch.zeros(1, device=device), torch.tensor(PLACE, device=device)[:, None, None]
            )
        is_half = bundle.config.model.dtype in ("bfloat16", "float16")
        for own, wanted in zip(found, (np.cos(expected), np.sin(expected)), strict=True):
            numbers = own.flatten().double().cpu().numpy()
            if not np.allclose(numbers, np.tile(wanted, 2), atol=5e-2 if is_half else 1e-5):
                order = "interleaved" if is_interleaved else "in blocks"
                what = f"the rotary angles are not those of config.json, {order}, at {rope['rope_theta']:g}"
                yield Problem(what, where, ROPE_FIX)
                return


def padding(subject: Subject) -> list[Problem]:
    """A sample alone computes what it computes left-padded, beside others."""
    together, lone, problems = hidden_of(training(subject)), alone(subject), []
    for trace, expected, sample in zip(lone, together, subject.samples, strict=True):
        tolerance = noise(subject).tolerance("hidden", expected)
        what = "hidden states (token, channel) alone and left-padded beside others"
        problems += compare(hidden_of(trace)[0], expected, tolerance, what, sample.where, PADDING_FIX)
    return problems


def served(subject: Subject) -> list[Problem]:
    """The prompt computes in the inference build, by head and by generation, what training computed of it."""
    problems: list[Problem] = []
    expected, shown = hidden_of(training(subject)), serving(subject)
    for call in [*range(len(shown.trace.batches)), shown.prefill]:
        name = "generation" if call == shown.prefill else "the Predictor's forward"
        for own, row, sample in zip(hidden_of(shown.trace, call), expected, shown.samples, strict=True):
            wanted = row[: len(own)]
            tolerance = noise(subject).tolerance("hidden", wanted)
            what = f"the prompt's hidden states (token, channel) in {name} and in training"
            fix = "both must build the same model and read the same prompt"
            problems += compare(own, wanted, tolerance, what, sample.where, fix)
    return problems


def causal(subject: Subject) -> list[Problem]:
    """Another answer changes nothing of what stands before it."""
    pairs, problems = zip(hidden_of(forced(subject)), hidden_of(training(subject)), strict=True), []
    for (own, expected), item, sample in zip(pairs, subject.encoded, subject.samples, strict=True):
        before = slice(item.student_assistant_spans[0][0])
        tolerance = noise(subject).tolerance("hidden", expected[before])
        what = "the prompt's hidden states (token, channel) before two different answers"
        fix = "attention must be causal"
        problems += compare(own[before], expected[before], tolerance, what, sample.where, fix)
    return problems


def generation(subject: Subject) -> list[Problem]:
    """Greedy generation with the cache says, token for token, what training would find likeliest."""
    ends = end_ids(pair(subject).served)
    shown, hidden = serving(subject), hidden_of(forced(subject))
    problems = _step_problems(shown, ends)
    if not any(answer[-1] in ends for answer in shown.generated):
        problems += _step_problems(ended(subject), ends)
    for row, (prompt, states) in enumerate(zip(prompts_of(shown), hidden, strict=True)):
        answer, where = shown.generated[row], shown.samples[row].where
        logits = token_logits(exact_pair(subject).trained, states[len(prompt) - 1 : -1])
        tolerance = noise(subject).tolerance("hidden", logits)
        fix = "generation must see the prompt, mask and positions of training, with its cache"
        what = "logits (step, token) of generation and of training"
        problems += compare(shown.steps[row], logits, tolerance, what, where, fix)
        problems += not_likeliest(logits, answer, tolerance, where)
    return problems


def _step_problems(shown: Serving, ends: set[int]) -> list[Problem]:
    """What is wrong with the tokens that generation goes on with and ends at."""
    return [*_fed_back(shown), *_not_left(shown, ends)] or [*_cut_short(shown, ends)]


def _not_left(shown: Serving, ends: set[int]) -> Iterator[Problem]:
    """An answer leaves the batch with the token that ends it, and not before."""
    step = len(shown.rows)
    if step < len(shown.trace.logits):
        found, left = len(shown.trace.logits[step]), sum(answer[-1] not in ends for answer in shown.generated)
        yield Problem(
            f"step {step} goes on with {found} answers, {left} had not ended",
            "generation",
            "end an answer with the end of turn, and with nothing else",
        )


def _cut_short(shown: Serving, ends: set[int]) -> Iterator[Problem]:
    """Each answer goes on to its end of turn, or to as many tokens as were asked for."""
    for row, answer in enumerate(shown.generated):
        if len(answer) < GENERATED and answer[-1] not in ends:
            what = f"the answer was cut after {len(answer)} tokens, {GENERATED} were asked for"
            yield Problem(what, shown.samples[row].where, "let infer.max_new_tokens alone cut answers")


def _fed_back(shown: Serving) -> Iterator[Problem]:
    """Each step continues with the token that was likeliest."""
    for row, answer in enumerate(shown.generated):
        steps = zip(shown.rows[1:], shown.trace.prompts[1:], strict=False)
        fed = [int(step["input_ids"][own.index(row), -1]) for own, step in steps if row in own]
        wrong = [at for at, (own, token) in enumerate(zip(fed, answer, strict=False)) if own != token]
        if wrong:
            at = wrong[0]
            yield Problem(
                f"step {at} chose token {fed[at]}, though {answer[at]} was likeliest",
                shown.samples[row].where,
                "generate greedily: no sampling, no repetition penalty",
            )


def packed(subject: Subject) -> list[Problem]:
    """Samples packed into one row do not see each other."""
    if not subject.bundle.config.train.packing:
        raise NotApplicableError("samples are not packed: train.packing is false")
    apart, problems = hidden_of(training(subject)), []
    (row,) = hidden_of(packed_pass(subject))
    for own, expected, sample in zip(row.split([*map(len, apart)]), apart, subject.samples, strict=True):
        tolerance = noise(subject).tolerance("hidden", expected)
        what = "hidden states (token, channel) packed and in a row of its own"
        problems += compare(own, expected, tolerance, what, sample.where, PACKING_FIX)
    return problems
