"""Which tokens are trained on, and the boxes that their text names."""

from __future__ import annotations

import numpy as np

from qwendet.answers.format import parse_answer
from qwendet.checks.loss.answer_spans import answers_of
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject
from qwendet.encoding.collate import IGNORED
from qwendet.encoding.encode import trainable_objects
from qwendet.errors import Problem
from qwendet.families.chat import END_OF_TURN

LABELS_FIX = "see the spans in encode and labels in collate"
MOST_OFF = 1.0
"""Units of the answers' frame: half of one for rounding, half for thin boxes, which are widened to one."""


def labels(subject: Subject) -> Verdict:
    """The assistant's answers are labels, closing token included, and nothing else."""
    problems, count = [], 0
    for encoded, sample, (ids, spans) in zip(
        subject.encoded, subject.samples, answers_of(subject), strict=True
    ):
        if len(spans) != len(sample.teachers) + 1:
            what = f"expected {len(sample.teachers) + 1} answers in the tokens, found {len(spans)}"
            fix = "use the chat template that the model was published with"
            problems.append(Problem(what, sample.where, fix))
            continue
        expected = [IGNORED] * len(ids)
        for start, end in spans:
            expected[start:end] = ids[start:end]
        count += sum(label != IGNORED for label in expected)
        found = subject.collator([encoded])["labels"][0].tolist()
        what = _difference(found, expected, ids, subject)
        problems += [Problem(what, sample.where, LABELS_FIX)] if what else []
    return Verdict(f"{count} tokens of answers are trained on, and no others", tuple(problems))


def _difference(found: list[int], expected: list[int], ids: list[int], subject: Subject) -> str:
    """The first wrong label in words; empty if there is none."""
    if found != expected and any(found == expected[-by:] + expected[:-by] for by in (-2, -1, 1, 2)):
        return "labels are shifted: each is to be the token at its own place"
    for at, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        token = subject.bundle.processor.tokenizer.decode([ids[at]])
        if got == wanted:
            continue
        if wanted == IGNORED:
            return f"token {at} ({token!r}) is a label outside the answers: the prompt is trained on"
        if got == IGNORED:
            end = ", so answers never end" if token == END_OF_TURN else ""
            return f"token {at} ({token!r}) of an answer is no label: it is not trained{end}"
        return f"the label of token {at} ({token!r}) is another token: labels are shifted"
    return ""


def boxes(subject: Subject) -> Verdict:
    """Each answer's text, read back, is the sample's boxes to half a unit of the answers' frame."""
    bundle, problems, worst = subject.bundle, [], 0.0
    processor, family = bundle.processor, bundle.detector.family.in_frame(bundle.config.data.frame)
    patch = processor.image_processor.patch_size
    for encoded, sample, (ids, spans) in zip(
        subject.encoded, subject.samples, answers_of(subject), strict=True
    ):
        start, end = spans[-1]
        text = processor.tokenizer.decode(ids[start:end]).removesuffix(END_OF_TURN)
        found = [item.bbox_2d for item in parse_answer(text).objects]
        _, rows, columns = encoded.image_grid_thw[-1].tolist()
        frame = family.answer_size((columns * patch, rows * patch))
        scale = np.array([*frame] * 2) / np.array([*encoded.image_size] * 2)
        wanted = [np.array(item.bbox_2d) * scale for item in trainable_objects(sample.student)]
        gap = _largest_gap(wanted, found)
        worst = max(worst, gap)
        if gap > MOST_OFF + 1e-6:
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
