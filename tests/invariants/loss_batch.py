"""A batch is its samples: at the right end of their rows, with masks, positions, answers and their images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwendet.errors import Problem
from qwendet.families.chat import IMAGE_TOKEN
from tests.invariants.expected import rope_positions
from tests.invariants.watched import Watched

IntArray = npt.NDArray[np.int64]
FIX = "see _student_patches in qwendet/encoding/collate.py and student_image_start in encode.py"


def padding(watched: Watched) -> list[Problem]:
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
    return problems


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


def rows(watched: Watched) -> list[Problem]:
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
            problems.append(Problem(what, watched.batch["where"][0], "see _writers in collate"))
    return problems


def counts(watched: Watched) -> list[Problem]:
    """The means divide by the tokens and boxes that there are."""
    students = int(watched.is_student.sum())
    boxes = sum(not item.crowd for sample in watched.subject.samples for item in sample.student.objects)
    processes = watched.subject.trainer.accelerator.num_processes  # each looks at the same samples
    wanted = [processes * count for count in (len(watched.is_student) - students, students, boxes)]
    found = [float(count) for count in watched.share.counts.flatten().tolist()]
    if found == wanted:
        return []
    what = f"the step has {wanted} teacher tokens, student tokens and boxes; the means divide by {found}"
    return [Problem(what, "get_batch_samples", "see step_counts")]


def student_image(watched: Watched) -> list[Problem]:
    """``patch_index`` and ``context_index`` are the student image's patches and tokens, row by row."""
    batch, problems = watched.batch, []
    merge = int(watched.subject.bundle.processor.image_processor.merge_size)
    image_token = watched.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    length = batch["input_ids"].shape[1]
    first_patch = 0
    for row, ids in enumerate(watched.ids):
        grids = watched.subject.encoded[row].image_grid_thw.tolist()
        sizes = [frames * rows * columns for frames, rows, columns in grids]
        _, rows, columns = grids[-1]
        in_blocks = np.arange(rows * columns).reshape(rows // merge, columns // merge, merge, merge)
        raster = in_blocks.transpose(0, 2, 1, 3).reshape(rows, columns)
        place = watched.places[row]
        tokens = [at for at, token in enumerate(ids) if token == image_token]
        first_token = tokens[-sizes[-1] // merge**2]
        expected = {
            "patch_index": first_patch + sum(sizes[:-1]) + raster,
            "context_index": place[0] * length + place[1] + first_token + raster // merge**2,
        }
        problems += _wrong(watched, row, expected)
        first_patch += sum(sizes)
    return problems


def _wrong(watched: Watched, row: int, expected: dict[str, IntArray]) -> list[Problem]:
    problems = []
    where = watched.subject.samples[row].where
    for name, wanted in expected.items():
        rows, columns = wanted.shape
        found = watched.batch[name][row, :rows, :columns].numpy()
        if found.shape != wanted.shape or not (found == wanted).all():
            overlap = len(np.intersect1d(found, wanted)) / wanted.size
            cause = (
                "in another order" if overlap == 1 else f"only {overlap:.0%} of them are the student image's"
            )
            problems.append(Problem(f"{name} points at other places: {cause}", where, FIX))
    mask = watched.batch["patch_mask"][row].numpy()
    rows, columns = expected["patch_index"].shape
    if not mask[:rows, :columns].all() or mask.sum() != rows * columns:
        problems.append(
            Problem(f"patch_mask marks {mask.sum()} patches, expected {rows} × {columns}", where, FIX)
        )
    return problems
