"""The head looks at the student's image: every patch, in its place, and no other image's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwendet.checks.loss.watched import Watched
from qwendet.checks.result import Verdict
from qwendet.errors import Problem
from qwendet.families.chat import IMAGE_TOKEN

IntArray = npt.NDArray[np.int64]
FIX = "see _student_patches in qwendet/encoding/collate.py and student_image_start in encode.py"


def student_image(watched: Watched) -> Verdict:
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
    images = sum(len(sample.image_grid_thw) for sample in watched.subject.encoded)
    seen = (
        f"of {images} images the head is shown the last of each sample, {len(watched.ids)}, in raster order"
    )
    return Verdict(seen, tuple(problems))


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
