"""What inference would send, and the boxes that training writes into answers."""

from __future__ import annotations

import numpy as np

from qwendet.answers.format import parse_answer
from qwendet.checks.loss.watched import Watched
from qwendet.checks.result import Verdict
from qwendet.encoding.encode import trainable_objects
from qwendet.errors import Problem
from qwendet.families.chat import END_OF_TURN

HALF_PIXEL = 0.5
"""Answers are whole units of the family's frame."""
SLIVER = 1.0
"""Boxes thinner than a pixel are widened to one."""


def prompt(watched: Watched) -> Verdict:
    """The prompt without the answer is, token for token, the beginning of the sequence with it."""
    encoder, problems = watched.subject.bundle.encoder(), []
    for sample, ids, spans in zip(watched.subject.samples, watched.ids, watched.spans, strict=True):
        sent = encoder.encode(sample, with_answer=False).input_ids.tolist()
        seen = ids[: spans[-1][0]] if spans else ids
        if sent != seen:
            at = next(
                (i for i, (a, b) in enumerate(zip(sent, seen, strict=False)) if a != b),
                min(map(len, (sent, seen))),
            )
            what = f"the prompt that inference sends differs from training's from token {at} on"
            around = watched.tokenizer.decode(sent[max(0, at - 3) : at + 3])
            problems.append(
                Problem(f"{what}: inference sends {around!r} there", sample.where, "see encode.py")
            )
    return Verdict("prompts are token for token what training saw before the answers", tuple(problems))


def boxes(watched: Watched) -> Verdict:
    """Each answer's text, read back, is the sample's boxes to half a unit of the answers' frame."""
    bundle, problems, worst = watched.subject.bundle, [], 0.0
    processor, family = bundle.processor, bundle.detector.family.in_frame(bundle.config.data.frame)
    patch = processor.image_processor.patch_size
    for row, (sample, ids, spans) in enumerate(
        zip(watched.subject.samples, watched.ids, watched.spans, strict=True)
    ):
        start, end = spans[-1]
        text = watched.tokenizer.decode(ids[start:end]).removesuffix(END_OF_TURN)
        found = [item.bbox_2d for item in parse_answer(text).objects]
        encoded = watched.subject.encoded[row]
        _, rows, columns = encoded.image_grid_thw[-1].tolist()
        frame = family.answer_size((columns * patch, rows * patch))
        scale = np.array([*frame] * 2) / np.array([*encoded.image_size] * 2)
        wanted = [np.array(item.bbox_2d) * scale for item in trainable_objects(sample.student)]
        gap = _largest_gap(wanted, found)
        worst = max(worst, gap)
        if gap > HALF_PIXEL + SLIVER / 2 + 1e-6:
            what = f"the boxes of the answer are up to {gap:.1f} units of {frame[0]} by {frame[1]} off"
            problems.append(Problem(what, sample.where, "see rescale_xyxy and answers.py"))
    return Verdict(f"boxes read back from answers are within {worst:.2f} of a unit", tuple(problems))


def _largest_gap(wanted: list[np.ndarray], found: list[tuple[float, float, float, float]]) -> float:
    """Of the nearest box of each; infinite if their numbers differ."""
    if len(wanted) != len(found):
        return float("inf")
    return max(
        (min(float(np.abs(box - np.array(other)).max()) for other in found) for box in wanted), default=0.0
    )
