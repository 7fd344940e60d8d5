"""Encoded samples to one left-padded batch.

    row 0   pad pad sys img img req ANS ANS      spans move right by the row's padding
    row 1   sys img img img img req ANS ANS      positions and attention come from the same mask

Left is the only side: generation continues at the right end, and Flash Attention needs it so.

Packed, the samples of a batch share one row without padding, distinguished by their positions:

    row 0   sys img img req ANS ANS sys img img img img req ANS ANS
            0   1   2   3   4   5   0   1   2   3   4   5   6   7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from qwendet.encoding.encode import EncodedSample, Span
from qwendet.encoding.patch_order import raster_to_flat, raster_to_token
from qwendet.encoding.positions import rope_positions
from qwendet.errors import DataError

IGNORED = -100
Batch = dict[str, Any]


@dataclass(frozen=True)
class _Place:
    """Where the samples of a batch stand.

    Attributes:
        shape: rows and tokens of a row.
        rows: row of each sample.
        shifts: index in its row of each sample's first token.
    """

    shape: tuple[int, int]
    rows: tuple[int, ...]
    shifts: tuple[int, ...]

    def flat(self, sample: int) -> int:
        """Index of a sample's first token in the flattened batch."""
        return self.rows[sample] * self.shape[1] + self.shifts[sample]

    def spread(self, values: Sequence[Tensor], fill: int) -> Tensor:
        """``(rows, tokens)`` int64 of values ``(tokens,)`` a sample, ``fill`` elsewhere."""
        spread = torch.full(self.shape, fill, dtype=torch.int64)
        for row, shift, own in zip(self.rows, self.shifts, values, strict=True):
            spread[row, shift : shift + len(own)] = own
        return spread


def _padded(lengths: Sequence[int]) -> _Place:
    """A row each, padded on the left."""
    longest = max(lengths)
    return _Place(
        (len(lengths), longest), tuple(range(len(lengths))), tuple(longest - own for own in lengths)
    )


def _packed(lengths: Sequence[int]) -> _Place:
    """One row, one after the other."""
    return _Place((1, sum(lengths)), (0,) * len(lengths), tuple(accumulate([0, *lengths[:-1]])))


class StandardDataCollator:
    """Pads to the longest sample, on the left; with ``packing`` puts all samples into one row, for training.

    ``merge_size`` is the side of a block of patches that become one image token.
    """

    def __init__(self, pad_token_id: int, merge_size: int, *, packing: bool = False) -> None:
        self.pad_token_id = pad_token_id
        self.merge_size = merge_size
        self.packing = packing

    def __call__(self, samples: Sequence[EncodedSample]) -> Batch:
        """Collate.

        Returns:
            For S samples in B rows of L tokens (S rows, or one row if packed), with N boxes in all, on grids
            of at most H × W patches, asked about C different labels together:

            - ``input_ids``, ``attention_mask``, ``mm_token_type_ids``: ``(B, L)`` int64
            - ``position_ids``: ``(3, B, L)`` int64, time, row and column of each token, 0 at padding; packed,
              ``(4, B, L)``: before them its index in its sample, by which attention tells samples apart
            - ``labels``: ``(B, L)`` int64, -100 outside the assistants' answers
            - ``student_mask``: ``(B, L)`` bool, True at the tokens of the student's answer
            - ``teacher_assistant_spans``, ``student_assistant_spans``: per sample, ranges of its row
            - ``teacher_rows``, ``student_rows``: ``(R,)`` int64, the token before each of the answers',
              whose hidden state predicts it, in the flattened ``(B * L)`` sequence
            - ``pixel_values``: ``(patches, dim)`` float32; ``image_grid_thw``: ``(images, 3)``, and the same
              as a list, ``grids``, which stays on the host
            - ``patch_index``: ``(S, H, W)`` int64, row of ``pixel_values`` of the student's patch
            - ``context_index``: ``(S, H, W)`` int64, its token in the flattened ``(B * L)`` sequence
            - ``patch_mask``: ``(S, H, W)`` bool, False beyond a sample's own grid
            - ``label_texts``: list of C; ``label_input_ids``, ``label_attention_mask``: ``(C, T)`` tokens
            - ``asked``: ``(S, C)`` bool, True at the labels that the head scores for a sample
            - ``target_boxes_cxcywh``: ``(N, 4)``; ``target_label_ids``: ``(N,)``, index among the C
            - ``num_boxes``, ``num_tokens``: lists of S counts
            - ``where``: list of S sources, for error messages
        """
        lengths = [len(sample.input_ids) for sample in samples]
        place = _packed(lengths) if self.packing else _padded(lengths)
        input_ids = place.spread([sample.input_ids for sample in samples], self.pad_token_id)
        teacher_spans = [
            _shift(s.teacher_assistant_spans, by) for s, by in zip(samples, place.shifts, strict=True)
        ]
        student_spans = [
            _shift(s.student_assistant_spans, by) for s, by in zip(samples, place.shifts, strict=True)
        ]
        student_mask = _mask(place, student_spans)
        grids = torch.cat([sample.image_grid_thw for sample in samples])
        batch = {
            "input_ids": input_ids,
            "attention_mask": place.spread([torch.ones_like(s.input_ids) for s in samples], 0),
            "mm_token_type_ids": place.spread([s.mm_token_type_ids for s in samples], 0),
            "position_ids": self._positions(samples, place),
            "labels": torch.where(_mask(place, teacher_spans) | student_mask, input_ids, IGNORED),
            "student_mask": student_mask,
            "teacher_assistant_spans": teacher_spans,
            "student_assistant_spans": student_spans,
            "teacher_rows": _rows_before(place, teacher_spans),
            "student_rows": _rows_before(place, student_spans),
            "pixel_values": torch.cat([sample.pixel_values for sample in samples]),
            "image_grid_thw": grids,
            "grids": grids.tolist(),
            **self._student_patches(samples, place),
            **self._labels(samples),
            "target_boxes_cxcywh": torch.cat([sample.boxes_cxcywh for sample in samples]),
            "num_boxes": [len(sample.label_ids) for sample in samples],
            "num_tokens": lengths,
            "where": [sample.where for sample in samples],
        }
        if get_worker_info() is not None:
            # In the thread that sends it an error would be printed, and the trainer would wait for ever.
            for value in filter(torch.is_tensor, batch.values()):
                value.share_memory_()
        return batch

    def _positions(self, samples: Sequence[EncodedSample], place: _Place) -> Tensor:
        """``position_ids`` of the batch."""
        own = [rope_positions(s.mm_token_type_ids, s.image_grid_thw, self.merge_size) for s in samples]
        if self.packing:
            own = [torch.cat([torch.arange(one.shape[1])[None], one]) for one in own]
        return torch.stack([place.spread(axis, 0) for axis in zip(*own, strict=True)])

    def _labels(self, samples: Sequence[EncodedSample]) -> dict[str, Any]:
        """All labels of the batch, which of them each sample is asked, and which each box has."""
        tokens: dict[str, Sequence[int]] = {}
        for sample in samples:
            tokens |= sample.scored
        places = {label: place for place, label in enumerate(tokens)}
        own = [torch.tensor([places[label] for label in s.scored], dtype=torch.int64) for s in samples]
        asked = torch.zeros(len(samples), len(tokens), dtype=torch.bool)
        for row, columns in enumerate(own):
            asked[row, columns] = True
        texts = [torch.tensor(row, dtype=torch.int64) for row in tokens.values()]
        return {
            "label_texts": [*tokens],
            "label_input_ids": nn.utils.rnn.pad_sequence(
                texts, batch_first=True, padding_value=self.pad_token_id
            ),
            "label_attention_mask": nn.utils.rnn.pad_sequence(
                [torch.ones_like(row).bool() for row in texts], batch_first=True
            ),
            "asked": asked,
            "target_label_ids": torch.cat([o[s.label_ids] for o, s in zip(own, samples, strict=True)]),
        }

    def _student_patches(self, samples: Sequence[EncodedSample], place: _Place) -> dict[str, Tensor]:
        """Point at the patches and tokens of each student image, in raster order."""
        grids = [sample.image_grid_thw[-1, 1:].tolist() for sample in samples]
        shape = (len(samples), max(rows for rows, _ in grids), max(columns for _, columns in grids))
        patch_index = np.zeros(shape, dtype=np.int64)
        context_index = np.zeros(shape, dtype=np.int64)
        patch_mask = np.zeros(shape, dtype=np.bool_)
        first_patch = 0
        for row, (sample, (rows, columns)) in enumerate(zip(samples, grids, strict=True)):
            first_patch += len(sample.pixel_values)
            student_patch = first_patch - rows * columns
            student_token = place.flat(row) + sample.student_image_start
            own = np.s_[row, :rows, :columns]
            patch_index[own] = student_patch + raster_to_flat(rows, columns, self.merge_size)
            context_index[own] = student_token + raster_to_token(rows, columns, self.merge_size)
            patch_mask[own] = True
        return {
            "patch_index": torch.from_numpy(patch_index),
            "context_index": torch.from_numpy(context_index),
            "patch_mask": torch.from_numpy(patch_mask),
        }


def require_left_padding(batch: Batch) -> None:
    """Refuse a batch that is padded anywhere but on the left, whoever made it.

    Under Flash Attention, and for generation, its outputs would be wrong without a word.
    """
    mask = batch["attention_mask"].bool()
    rises = (mask[:, 1:] >= mask[:, :-1]).all(1) & mask[:, -1]
    if not bool(rises.all()):
        row = int((~rises).nonzero()[0])
        raise DataError(
            "the batch is not padded on the left, which Flash Attention and generation need",
            batch["where"][row],
            "use qwendet.encoding.collate.StandardDataCollator as it is",
        )


def _shift(spans: Sequence[Span], by: int) -> list[Span]:
    return [(start + by, end + by) for start, end in spans]


def _mask(place: _Place, spans: Sequence[Sequence[Span]]) -> Tensor:
    mask = torch.zeros(place.shape, dtype=torch.bool)
    for row, own in zip(place.rows, spans, strict=True):
        for start, end in own:
            mask[row, start:end] = True
    return mask


def _rows_before(place: _Place, spans: Sequence[Sequence[Span]]) -> Tensor:
    """Flat index of the token before each token of the spans: ``(tokens,)`` int64."""
    length = place.shape[1]
    flat = [
        torch.arange(row * length + start - 1, row * length + end - 1)
        for row, own in zip(place.rows, spans, strict=True)
        for start, end in own
    ]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.int64)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on ``device``; what is no tensor stays as it is."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
