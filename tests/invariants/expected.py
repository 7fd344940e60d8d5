"""Positions, rotary angles and answers that the model must be shown, computed a second time with numpy.

Nothing here calls the encoder, the collator or the model: a mistake in one of them cannot be in here as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from qwendet.families.family import AnswerForm
from tests.invariants.reference import FloatArray, IntArray


def answer_text(
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[str],
    displayed: tuple[int, int],
    shown: tuple[int, int],
    form: AnswerForm = "json",
) -> str:
    """The answer that the model must learn, by the letter of the published grounding format.

    Args:
        boxes_xyxy: ``(N, 4)`` in pixels of the displayed image.
        labels: N label texts.
        displayed: width and height of the displayed image.
        shown: width and height of the frame of answers.
        form: how answers are written.
    """
    (scale_x, scale_y), (wide, high) = (shown[0] / displayed[0], shown[1] / displayed[1]), shown
    rows = []
    for (x1, y1, x2, y2), label in zip(boxes_xyxy, labels, strict=True):
        left, top = round(min(x1 * scale_x, wide - 1)), round(min(y1 * scale_y, high - 1))
        right, bottom = max(round(x2 * scale_x), left + 1), max(round(y2 * scale_y), top + 1)
        rows.append((top, left, right, bottom, label))
    rows.sort(key=lambda row: row[:2])
    if form == "box_tokens" and rows:
        return "".join(
            f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({left},{top}),({right},{bottom})<|box_end|>"
            for top, left, right, bottom, label in rows
        )
    return json.dumps(
        [{"bbox_2d": [left, top, right, bottom], "label": label} for top, left, right, bottom, label in rows],
        ensure_ascii=False,
    )


def rope_positions(
    input_ids: Sequence[int], image_token_id: int, grids: Sequence[Sequence[int]], merge_size: int
) -> IntArray:
    """Time, row and column of each token (M-RoPE, Wang et al. 2024, §2.1): ``(3, tokens)``.

    Text counts on in all three. The tokens of an image share the time at which it starts and count rows and
    columns from it; the text behind goes on after the larger of the two.

    Args:
        input_ids: one sequence without padding.
        image_token_id: token that stands for a block of patches.
        grids: frames, rows and columns of patches of each image in order.
        merge_size: side of that block.

    Example:
        >>> rope_positions([5, 9, 9, 6], 9, [(1, 2, 4)], 2).tolist()
        [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    """
    positions: list[tuple[int, int, int]] = []
    now, at, images = 0, 0, iter(grids)
    while at < len(input_ids):
        if input_ids[at] != image_token_id:
            positions.append((now, now, now))
            now, at = now + 1, at + 1
            continue
        frames, rows, columns = next(images)
        rows, columns = rows // merge_size, columns // merge_size
        positions += [
            (now + frame, now + row, now + column)
            for frame in range(frames)
            for row in range(rows)
            for column in range(columns)
        ]
        now, at = now + max(rows, columns), at + frames * rows * columns
    return np.array(positions, dtype=np.int64).T


def rotary_angles(
    place: Sequence[int], sections: Sequence[int], base: float, *, interleaved: bool
) -> FloatArray:
    """Angles by which the pairs of a head turn at a place: ``(pairs,)``, the fastest first.

    Time, row and column have a block of pairs each, or take turns until row and column have all of theirs.

    Args:
        place: time, row and column.
        sections: pairs of each.
        base: ``rope_theta``.
        interleaved: they take turns.

    Example:
        >>> [rotary_angles((1, 2, 3), (3, 1, 1), 1, interleaved=turns).tolist() for turns in (False, True)]
        [[1.0, 1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 1.0, 1.0]]
    """
    pairs = np.arange(sum(sections))
    axes = np.repeat([0, 1, 2], sections)
    if interleaved:
        axes = np.where(pairs < 3 * np.array(sections)[pairs % 3], pairs % 3, 0)
    angles: FloatArray = np.array(place)[axes] * float(base) ** -(pairs / len(pairs))
    return angles
