"""Which tokens are trained on, and that their losses are those of the published model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from qwendet.checks.loss.noise import token_loss_tolerance
from qwendet.checks.loss.published import published_nll
from qwendet.checks.loss.step import without_dropout
from qwendet.checks.loss.watched import Watched, numbers
from qwendet.checks.reference import rope_positions
from qwendet.checks.result import Verdict
from qwendet.checks.shortened import exact
from qwendet.encoding.collate import IGNORED, to_device
from qwendet.errors import Problem
from qwendet.families.chat import END_OF_TURN, IMAGE_TOKEN
from qwendet.loading.checkpoint import dtype_name
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.losses import TokenLosses

LABELS_FIX = "see the spans in encode and labels in collate"


def padding(watched: Watched) -> Verdict:
    """A row is one sample at its right end, or all of them packed; masks and image marks stand with them."""
    batch, problems = watched.batch, []
    image_token = watched.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    for row, ids in enumerate(watched.ids):
        pad = watched.padding_of(row)
        expected = {
            "input_ids": ids,
            "attention_mask": [0] * pad + [1] * len(ids),
            "mm_token_type_ids": [0] * pad + [int(token == image_token) for token in ids],
        }
        found = {name: watched.filled_by(name, row) for name in expected if name in batch}
        found["input_ids"] = found["input_ids"][pad:]
        wrong = [name for name, values in expected.items() if found.get(name) != values]
        if not _knows_its_positions(watched, row, image_token):
            wrong.append("position_ids")
        if wrong:
            is_on_right = pad > 0 and batch["input_ids"][row, : len(ids)].tolist() == ids
            side = "the sample is padded on the right; " if is_on_right else ""
            place = f"behind {watched.places[row][1]} tokens" if watched.is_packed else "at the right end"
            what = f"expected the sample {place} of its row: {side}wrong: {', '.join(wrong)}"
            problems.append(Problem(what, batch["where"][row], "see qwendet/encoding/collate.py"))
    most = max(watched.padding_of(row) for row in range(len(watched.ids)))
    seen = (
        "are packed into one row" if watched.is_packed else f"stand at the right end, up to {most} pads left"
    )
    return Verdict(f"{len(watched.ids)} samples {seen}", tuple(problems))


def _knows_its_positions(watched: Watched, sample: int, image_token: int) -> bool:
    """Whether a sample counts its times, rows and columns, and packed its tokens, from 0."""
    ids, (row, first) = watched.ids[sample], watched.places[sample]
    if "position_ids" not in watched.batch:
        return False
    grids = watched.subject.encoded[sample].image_grid_thw.tolist()
    merge = watched.subject.bundle.processor.image_processor.merge_size
    expected = rope_positions(ids, image_token, grids, merge)
    if watched.is_packed:
        expected = np.concatenate([[range(len(ids))], expected])
    found = watched.batch["position_ids"][:, row, first : first + len(ids)].numpy()
    return found.shape == expected.shape and bool((found == expected).all())


def labels(watched: Watched) -> Verdict:
    """The assistant's answers are labels, closing token included, and nothing else; the counts are theirs."""
    problems = []
    for row, (ids, spans) in enumerate(zip(watched.ids, watched.spans, strict=True)):
        pad = watched.padding_of(row)
        sample = watched.subject.samples[row]
        if len(spans) != len(sample.teachers) + 1:
            what = f"expected {len(sample.teachers) + 1} answers in the tokens, found {len(spans)}"
            problems.append(
                Problem(what, sample.where, "see the chat template and qwendet/encoding/encode.py")
            )
            continue
        expected = [IGNORED] * (pad + len(ids))
        for start, end in spans:
            expected[pad + start : pad + end] = ids[start:end]
        problems += _label_problems(watched, row, expected, pad)
    problems += _row_problems(watched)
    problems = problems or _count_problems(watched)  # wrong labels may make the model itself crash
    students = int(watched.is_student.sum())
    seen = f"{len(watched.is_student) - students} teacher and {students} student tokens, and no others"
    return Verdict(seen, tuple(problems))


def _label_problems(watched: Watched, row: int, expected: list[int], pad: int) -> list[Problem]:
    found = watched.filled_by("labels", row)
    where = watched.subject.samples[row].where
    for shift in (-2, -1, 1, 2):
        if found != expected and found == expected[-shift:] + expected[:-shift]:
            what = f"labels are shifted by {shift}: each is to be the token at its own place"
            return [Problem(what, where, LABELS_FIX)]
    for at, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        if got == wanted:
            continue
        token = watched.tokenizer.decode([watched.filled_by("input_ids", row)[at]])
        if wanted == IGNORED:
            what = f"token {at - pad} ({token!r}) is a label outside the answers: the prompt is trained on"
        elif got == IGNORED:
            what = f"token {at - pad} ({token!r}) of an answer is no label: it is not trained"
            what += ", so answers never end" if token == END_OF_TURN else ""
        else:
            what = f"the label of token {at - pad} ({token!r}) is another token: labels are shifted"
        return [
            Problem(what, watched.subject.samples[row].where, "see the spans in encode and labels in collate")
        ]
    return []


def _row_problems(watched: Watched) -> list[Problem]:
    """The states that are asked for a token are those before it, teachers' and student's told apart."""
    length = watched.batch["input_ids"].shape[1]
    expected: dict[str, list[int]] = {"teacher_rows": [], "student_rows": []}
    for row, spans in enumerate(watched.spans):
        place = watched.places[row]
        first = place[0] * length + place[1]
        for span in spans:
            name = "student_rows" if span == spans[-1] else "teacher_rows"
            expected[name] += range(first + span[0] - 1, first + span[1] - 1)
    problems = []
    for name, rows in expected.items():
        found = watched.batch[name].tolist()
        if sorted(found) != rows:
            other = next(wanted for key, wanted in expected.items() if key != name)
            cause = "teacher and student are mixed up" if set(found) & set(other) else "states are shifted"
            what = (
                f"{name} names {len(found)} states, not the {len(rows)} before the answers' tokens: {cause}"
            )
            problems.append(Problem(what, watched.batch["where"][0], "see _rows_before in collate"))
    return problems


def _count_problems(watched: Watched) -> list[Problem]:
    students = int(watched.is_student.sum())
    boxes = sum(not item.crowd for sample in watched.subject.samples for item in sample.student.objects)
    processes = watched.subject.trainer.accelerator.num_processes  # each looks at the same samples
    wanted = [processes * count for count in (len(watched.is_student) - students, students, boxes)]
    found = [float(count) for count in watched.share.counts.flatten().tolist()]
    if found == wanted:
        return []
    what = f"the step has {wanted} teacher tokens, student tokens and boxes; the means divide by {found}"
    return [Problem(what, "get_batch_samples", "see step_counts")]


def token_losses(watched: Watched) -> Verdict:
    """Each token's loss in the left-padded batch is the published model's, for that sample alone."""
    output = watched.share.output.tokens
    if output is None or len(output.nll) != len(watched.is_student):
        got = None if output is None else len(output.nll)
        what = f"expected the losses of {len(watched.is_student)} answer tokens, the model returned {got}"
        return Verdict("", (Problem(what, "Qwen25VLWithDetection.forward", "see _token_losses"),))
    rows, dtype = watched.lone_rows, watched.detector.dtype  # of all samples, or of the first of them
    seen, problems = _differences(watched, watched.detector, output, rows, dtype)
    if watched.subject.is_small:
        return Verdict(seen, tuple(problems))
    detector = exact(watched.subject).bundle.detector
    with without_dropout(detector), torch.no_grad():
        of_few = detector(to_device(watched.batch, detector.device)).tokens
    every_row = range(len(watched.ids))
    exactly, more = _differences(watched, detector, of_few, every_row, torch.float32)
    return Verdict(f"{seen}; of the first layers {exactly}", (*problems, *more))


def _differences(
    watched: Watched,
    detector: Qwen25VLWithDetection,
    found: TokenLosses,
    rows: Sequence[int],
    dtype: torch.dtype,
) -> tuple[str, list[Problem]]:
    """How far token losses of the batch are from the published model's of its first samples."""
    expected = published_nll(watched, detector, rows)
    gaps = np.abs(numbers(found.nll)[: len(expected)] - expected)
    tolerance = token_loss_tolerance(dtype, detector.config.text_config.num_hidden_layers)
    root_mean_square = math.sqrt(float((gaps**2).mean()))
    seen = (
        f"token losses of {len(expected)} tokens differ from the published model's by {root_mean_square:.1e}"
        f" (root mean square; up to {tolerance:.1e} is the rounding of {dtype_name(dtype)})"
    )
    if root_mean_square <= tolerance:
        return seen, []
    fix = "see the shift of labels, attention mask, mm_token_type_ids and positions in the detector"
    return seen, [Problem(seen, _place_of(watched, int(gaps.argmax())), fix)]


def _place_of(watched: Watched, index: int) -> str:
    """Sample and token of the answer token number ``index`` of the batch."""
    for sample, ids, spans in zip(watched.subject.samples, watched.ids, watched.spans, strict=True):
        for start, end in spans:
            if index < end - start:
                at = start + index
                return f"{sample.where}: token {at}, {watched.tokenizer.decode([ids[at]])!r}"
            index -= end - start
    raise IndexError(index)
