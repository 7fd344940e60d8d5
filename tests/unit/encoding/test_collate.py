"""Collation: padding on the left, spans that move with it, and pointers at the student's own patches."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from qwendet.data.samples import Sample
from qwendet.encoding.collate import (
    IGNORED,
    Batch,
    StandardDataCollator,
    raster_to_flat,
    require_left_padding,
    to_device,
)
from qwendet.encoding.encode import EncodedSample, Span
from qwendet.errors import DataError
from qwendet.loader import Bundle

Mosaic = Callable[[int, int], tuple[Sample, np.ndarray]]


def bare_sample(length: int, rows: int = 2, columns: int = 2) -> EncodedSample:
    """Tokens 1, 2, … and an image after the first, with every optional field left at its default."""
    tokens = torch.arange(1, length + 1)
    return EncodedSample(
        input_ids=tokens,
        mm_token_type_ids=torch.zeros(length, dtype=torch.int64),
        pixel_values=torch.zeros(rows * columns, 6),
        image_grid_thw=torch.tensor([[1, rows, columns]]),
        student_image_start=1,
        image_size=(20, 20),
        scored={"red ring": [5, 6, 7], "cat": [8]},
    )


def answered_sample(
    length: int, teacher: tuple[Span, ...], student: Span, grid: tuple[int, int]
) -> EncodedSample:
    """Tokens 1, 2, … with an image of ``grid`` patches after the first token, and spans of answers."""
    bare = bare_sample(length, *grid)
    types = torch.zeros(length, dtype=torch.int64)
    types[1 : 1 + grid[0] * grid[1] // 4] = 1
    return dataclasses.replace(
        bare, mm_token_type_ids=types, teacher_assistant_spans=teacher, student_assistant_spans=(student,)
    )


@pytest.fixture
def collator() -> StandardDataCollator:
    return StandardDataCollator(pad_token_id=0, merge_size=2)


def test_padding__is_on_the_left(collator: StandardDataCollator) -> None:
    batch = collator([bare_sample(3), bare_sample(5)])
    assert batch["input_ids"].tolist() == [[0, 0, 1, 2, 3], [1, 2, 3, 4, 5]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch["mm_token_type_ids"].tolist() == [[0] * 5] * 2
    assert batch["context_index"][:, 0, 0].tolist() == [2 + 1, 5 + 1]


def test_rows__are_the_tokens_before_those_of_the_answers(collator: StandardDataCollator) -> None:
    """Lengths 9 and 7: the second row is padded by 2, and begins at 9 in the flattened batch."""
    batch = collator(
        [answered_sample(9, ((2, 4), (5, 6)), (7, 9), (2, 2)), answered_sample(7, ((3, 4),), (5, 7), (2, 2))]
    )
    assert batch["teacher_rows"].tolist() == [1, 2, 4, 9 + 4]
    assert batch["student_rows"].tolist() == [6, 7, 9 + 6, 9 + 7]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 3, 4, IGNORED, 6, IGNORED, 8, 9],
        [IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, 4, IGNORED, 6, 7],
    ]


def test_packing__by_hand() -> None:
    """Samples of 5, 7 and 3 tokens, with images of 1 × 2, 2 × 1 and 1 × 1 of them."""
    packing = StandardDataCollator(pad_token_id=0, merge_size=2, packing=True)
    batch = packing(
        [
            answered_sample(5, ((3, 4),), (4, 5), (2, 4)),
            answered_sample(7, (), (4, 7), (4, 2)),
            answered_sample(3, (), (2, 3), (2, 2)),
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1] * 15]
    assert batch["mm_token_type_ids"].tolist() == [[0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0]]
    index, time, row, column = batch["position_ids"][:, 0].tolist()
    assert index == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert time == [0, 1, 1, 3, 4, 0, 1, 1, 3, 4, 5, 6, 0, 1, 2]
    assert row == [0, 1, 1, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert column == [0, 1, 2, 3, 4, 0, 1, 1, 3, 4, 5, 6, 0, 1, 2]
    assert batch["teacher_rows"].tolist() == [2]
    assert batch["student_rows"].tolist() == [3, 8, 9, 10, 13]
    merged = batch["context_index"][:, ::2, ::2].tolist()
    assert merged == [[[1, 2], [0, 0]], [[6, 0], [7, 0]], [[13, 0], [0, 0]]]
    assert batch["patch_mask"].sum((1, 2)).tolist() == [8, 8, 4]


def test_padding__stands_at_position_0(collator: StandardDataCollator) -> None:
    batch = collator([answered_sample(7, (), (4, 7), (4, 2)), answered_sample(5, (), (4, 5), (2, 4))])
    time, row, column = batch["position_ids"][:, 1].tolist()
    assert time == [0, 0, 0, 1, 1, 3, 4]
    assert row == [0, 0, 0, 1, 1, 3, 4]
    assert column == [0, 0, 0, 1, 2, 3, 4]


def test_samples_without_spans__collate_and_have_no_labels(collator: StandardDataCollator) -> None:
    """The third bug of the original scripts: a sample without span fields crashed or corrupted the batch."""
    batch = collator([bare_sample(3), bare_sample(4)])
    assert (batch["labels"] == IGNORED).all()
    assert (batch["num_boxes"], batch["target_boxes_cxcywh"].shape) == ([0, 0], (0, 4))
    assert batch["target_label_ids"].dtype == torch.int64
    for rows in (batch["teacher_rows"], batch["student_rows"]):
        assert (rows.shape, rows.dtype) == ((0,), torch.int64)


def test_samples_without_spans__leave_those_of_others_alone(
    bundle: Bundle, encoded: list[EncodedSample]
) -> None:
    with_spans = encoded[1]
    batch = bundle.collator()([bare_like(with_spans, encoded[0]), with_spans])
    assert (
        supervised(batch, 1) == with_spans.input_ids[slice(*with_spans.student_assistant_spans[0])].tolist()
    )
    assert supervised(batch, 0) == []


def bare_like(other: EncodedSample, longer: EncodedSample) -> EncodedSample:
    """A prompt alone, as long as ``longer``, with no optional field given."""
    return EncodedSample(
        input_ids=longer.input_ids,
        mm_token_type_ids=longer.mm_token_type_ids,
        pixel_values=longer.pixel_values,
        image_grid_thw=longer.image_grid_thw,
        student_image_start=longer.student_image_start,
        image_size=longer.image_size,
    )


def supervised(batch: Batch, row: int) -> list[int]:
    labels = batch["labels"][row]
    return labels[labels != IGNORED].tolist()


def test_spans__move_with_the_padding_and_mark_the_same_tokens(
    batch: Batch, encoded: list[EncodedSample]
) -> None:
    length = max(len(sample.input_ids) for sample in encoded)
    pads = [length - len(sample.input_ids) for sample in encoded]
    assert sorted(pads)[0] == 0
    assert sorted(pads)[1] > 0
    for row, (sample, pad) in enumerate(zip(encoded, pads, strict=True)):
        for name in ("teacher", "student"):
            own = [at for span in getattr(sample, f"{name}_assistant_spans") for at in range(*span)]
            rows = batch[f"{name}_rows"]
            moved = rows[rows // length == row] % length + 1
            assert moved.tolist() == [at + pad for at in own]
            assert torch.equal(batch["input_ids"][row, moved], sample.input_ids[own])


def test_labels__cover_the_answers_and_nothing_else(batch: Batch, encoded: list[EncodedSample]) -> None:
    for row, sample in enumerate(encoded):
        spans = [*sample.teacher_assistant_spans, *sample.student_assistant_spans]
        expected = [token for start, end in spans for token in sample.input_ids[start:end].tolist()]
        assert supervised(batch, row) == expected
    is_label = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][is_label], batch["input_ids"][is_label])
    assert is_label.flatten()[batch["student_rows"] + 1].all()
    assert not is_label[batch["attention_mask"] == 0].any()


def test_targets__are_the_samples_boxes_one_after_another(batch: Batch, encoded: list[EncodedSample]) -> None:
    assert batch["num_boxes"] == [len(sample.label_ids) for sample in encoded]
    assert batch["num_boxes"][2] == 0
    parts = batch["target_boxes_cxcywh"].split(batch["num_boxes"])
    for part, sample in zip(parts, encoded, strict=True):
        assert torch.equal(part, sample.boxes_cxcywh)
    assert batch["where"] == [sample.where for sample in encoded]


def test_label_texts__are_padded_on_the_right(collator: StandardDataCollator) -> None:
    batch = collator([bare_sample(3)])
    assert batch["label_input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["label_attention_mask"].tolist() == [[True, True, True], [True, False, False]]


def test_batch__has_what_its_documentation_names(collator: StandardDataCollator) -> None:
    samples = [bare_sample(3), bare_sample(5, 4, 2)]
    batch = collator(samples)
    documented = StandardDataCollator.__call__.__doc__ or ""
    assert {name for name in re.findall(r"``(\w+)``", documented) if name in batch} == set(batch)
    assert batch["grids"] == batch["image_grid_thw"].tolist() == [[1, 2, 2], [1, 4, 2]]
    assert (batch["num_tokens"], batch["label_texts"]) == ([3, 5], ["red ring", "cat"])
    assert batch["asked"].tolist() == [[True, True]] * 2
    integers = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
        "label_input_ids",
        "target_label_ids",
    )
    assert {batch[name].dtype for name in integers} == {torch.int64}


def test_to_device__moves_tensors_and_leaves_the_rest(collator: StandardDataCollator) -> None:
    batch = collator([bare_sample(3)])
    moved = to_device(batch, torch.device("meta"))
    assert moved.keys() == batch.keys()
    for name, value in moved.items():
        assert value.device.type == "meta" if torch.is_tensor(value) else value == batch[name], name


def test_masks__are_boolean(collator: StandardDataCollator) -> None:
    batch = collator([bare_sample(3)])
    for name in ("patch_mask", "label_attention_mask"):
        assert batch[name].dtype == torch.bool, name


# Where the student's patches and tokens are


def colours_seen(batch: Batch, row: int, rows: int, columns: int) -> np.ndarray:
    """The normalised colour of each patch that ``patch_index`` points at, ``(rows, columns, 3)``."""
    patches = batch["pixel_values"][batch["patch_index"][row, :rows, :columns]]
    patches = patches.unflatten(-1, (3, 2 * 14 * 14))
    torch.testing.assert_close(patches, patches[..., :1].expand_as(patches))
    return patches[..., 0].numpy()


def test_patch_index__reads_the_student_image_from_left_to_right_and_top_to_bottom(
    bundle: Bundle, mosaic: Mosaic, normalise: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A picture of one colour a patch says itself where each belongs, whatever the processor's layout."""
    sizes = [(6, 4), (12, 16), (8, 8)]
    made = [mosaic(columns, rows) for columns, rows in sizes]
    teacher = mosaic(4, 8)[0].student
    samples = [
        Sample(made[0][0].student),
        Sample(made[1][0].student, (teacher, teacher)),
        Sample(made[2][0].student, (teacher,)),
    ]
    batch = bundle.collator()([bundle.encoder().encode(sample, with_answer=True) for sample in samples])
    assert batch["patch_index"].shape == (3, 16, 12)
    for row, ((columns, rows), (_, colours)) in enumerate(zip(sizes, made, strict=True)):
        np.testing.assert_allclose(
            colours_seen(batch, row, rows, columns), normalise(colours), rtol=0, atol=1e-5
        )
        assert batch["patch_mask"][row].sum() == rows * columns
        assert batch["patch_mask"][row, :rows, :columns].all()


def test_context_index__is_the_merged_token_of_each_patch(batch: Batch, encoded: list[EncodedSample]) -> None:
    flat_ids, flat_types = batch["input_ids"].flatten(), batch["mm_token_type_ids"].flatten()
    length = batch["input_ids"].shape[1]
    assert len({tuple(sample.image_grid_thw[-1].tolist()) for sample in encoded}) > 2
    for row, sample in enumerate(encoded):
        _, rows, columns = sample.image_grid_thw[-1].tolist()
        index = batch["context_index"][row, :rows, :columns]
        assert (flat_ids[index] == flat_ids[index[0, 0]]).all()
        assert (flat_types[index] == 1).all()
        first = last_image_start(flat_types[row * length : (row + 1) * length].tolist())
        for y in range(rows):
            for x in range(columns):
                assert index[y, x] == row * length + first + (y // 2) * (columns // 2) + x // 2


def last_image_start(types: Sequence[int]) -> int:
    """Where the last run of image tokens begins."""
    end = max(at for at, kind in enumerate(types) if kind)
    return max((at + 1 for at in range(end) if not types[at]), default=0)


def test_pixels_and_grids__are_all_images_in_order(batch: Batch, encoded: list[EncodedSample]) -> None:
    assert batch["image_grid_thw"].tolist() == [g for s in encoded for g in s.image_grid_thw.tolist()]
    assert len(batch["pixel_values"]) == batch["image_grid_thw"].prod(1).sum()
    assert batch["mm_token_type_ids"].sum() * 4 == len(batch["pixel_values"])


@pytest.mark.parametrize(
    ("rows", "columns", "merge"), [(2, 2, 2), (4, 6, 2), (6, 4, 2), (6, 9, 3), (3, 5, 1)]
)
def test_patch_order__block_by_block(rows: int, columns: int, merge: int) -> None:
    flat = raster_to_flat(rows, columns, merge)
    expected = np.zeros((rows, columns), dtype=np.int64)
    count = 0
    for top in range(0, rows, merge):
        for left in range(0, columns, merge):
            for y in range(top, top + merge):
                for x in range(left, left + merge):
                    expected[y, x] = count
                    count += 1
    assert np.array_equal(flat, expected)


@pytest.mark.parametrize(
    ("second", "is_left_padded"),
    [
        ([1, 1, 1, 1], True),
        ([0, 1, 1, 1], True),
        ([0, 0, 0, 1], True),
        ([1, 1, 1, 0], False),
        ([1, 0, 1, 1], False),
        ([0, 1, 0, 1], False),
        ([0, 1, 1, 0], False),
        ([0, 0, 0, 0], False),
    ],
)
def test_padding_anywhere_else__is_refused(second: list[int], is_left_padded: bool) -> None:
    """The fifth bug of the original scripts: training padded right, Flash Attention needs left."""
    masks = torch.tensor([[1, 1, 1, 1], second, [0, 1, 1, 1]])
    batch = {"attention_mask": masks, "where": ["a:1", "a:2", "a:3"]}
    if is_left_padded:
        require_left_padding(batch)
        return
    with pytest.raises(DataError) as caught:
        require_left_padding(batch)
    assert str(caught.value) == (
        "a:2: the batch is not padded on the left, which Flash Attention and generation need "
        "(use qwendet.encoding.collate.StandardDataCollator as it is)"
    )
