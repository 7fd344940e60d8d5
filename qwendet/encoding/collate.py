"""Encoded samples to one left-padded batch.

    row 0   pad pad sys img img req ANS ANS      answers move right by the row's padding
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
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from qwendet.encoding.encode import EncodedSample
from qwendet.errors import DataError

IGNORED = -100
TEACHER, STUDENT = 1, 2
Batch = dict[str, Any]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Place:
    """Where the samples of a batch stand.

    Attributes:
        shape: rows and tokens of a row.
        starts: index of each sample's first token in the flattened batch.
    """

    shape: tuple[int, int]
    starts: Sequence[int]

    def spread(self, values: Sequence[Tensor], fill: int) -> Tensor:
        """``(rows, tokens)`` int64 of values ``(tokens,)`` a sample, ``fill`` elsewhere."""
        spread = torch.full(self.shape, fill, dtype=torch.int64)
        for start, own in zip(self.starts, values, strict=True):
            spread.view(-1)[start : start + len(own)] = own
        return spread


def _padded(lengths: Sequence[int]) -> _Place:
    """A row each, padded on the left."""
    longest = max(lengths)
    return _Place((len(lengths), longest), [end * longest - own for end, own in enumerate(lengths, 1)])


def _packed(lengths: Sequence[int]) -> _Place:
    """One row, one after the other."""
    return _Place((1, sum(lengths)), list(accumulate(lengths[:-1], initial=0)))


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
        writers = place.spread([_writers(sample) for sample in samples], 0)
        grids = torch.cat([sample.image_grid_thw for sample in samples])
        batch = {
            "input_ids": input_ids,
            "attention_mask": place.spread([torch.ones_like(s.input_ids) for s in samples], 0),
            "mm_token_type_ids": place.spread([s.mm_token_type_ids for s in samples], 0),
            "position_ids": self._positions(samples, place),
            "labels": torch.where(writers > 0, input_ids, IGNORED),
            "teacher_rows": (writers == TEACHER).flatten().nonzero()[:, 0] - 1,
            "student_rows": (writers == STUDENT).flatten().nonzero()[:, 0] - 1,
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
            student_token = place.starts[row] + sample.student_image_start
            own = np.s_[row, :rows, :columns]
            flat = raster_to_flat(rows, columns, self.merge_size)
            patch_index[own] = student_patch + flat
            context_index[own] = student_token + flat // self.merge_size**2
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


def _writers(sample: EncodedSample) -> Tensor:
    """Whose answer each token is part of: ``(tokens,)`` int64, 0 for nobody's."""
    writers = torch.zeros_like(sample.input_ids)
    for writer, spans in (
        (TEACHER, sample.teacher_assistant_spans),
        (STUDENT, sample.student_assistant_spans),
    ):
        for start, end in spans:
            writers[start:end] = writer
    return writers


def rope_positions(mm_token_type_ids: Tensor, image_grid_thw: Tensor, merge_size: int) -> Tensor:
    """Rotary positions of one sample's tokens: time, row and column of each (arXiv 2409.12191, §2.1).

        text text | image of 2 × 2 tokens | text
          0    1  |  2  2  2  2           |  4        time
          0    1  |  2  2  3  3           |  4        row
          0    1  |  2  3  2  3           |  4        column

    The same as the published ``get_rope_index``, which only tells samples apart that have a row each, and
    asks for numbers of each tensor many times: here they are counted while the batch is still on the host.

    Args:
        mm_token_type_ids: ``(tokens,)`` int64, 1 at image tokens.
        image_grid_thw: ``(images, 3)`` int64, frames, rows and columns of patches of its images in order.
        merge_size: side of a block of patches that become one token.

    Returns:
        ``(3, tokens)`` int64: time, row, column.

    Example:
        >>> rope_positions(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([[1, 2, 4]]), 2).tolist()
        [[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]]
    """
    pieces, done, position = [], 0, 0
    is_image = mm_token_type_ids.bool()
    for frames, rows, columns in image_grid_thw.tolist():
        first = done + int(is_image[done:].int().argmax())
        pieces.append(torch.arange(position, position + first - done).expand(3, -1))
        position += first - done
        grid = (frames, rows // merge_size, columns // merge_size)
        pieces.append(position + torch.cartesian_prod(*(torch.arange(size) for size in grid)).T)
        position += max(grid[1:])
        done = first + grid[0] * grid[1] * grid[2]
    pieces.append(torch.arange(position, position + len(mm_token_type_ids) - done).expand(3, -1))
    return torch.cat(pieces, dim=1)


def raster_to_flat(rows: int, columns: int, merge_size: int) -> IntArray:
    """Flat position of the patch at each raster position: ``(rows, columns)`` int64.

    The processor flattens patches block by block, so that those of one token are neighbours.
    ``merge_size`` is the side of a block of patches that become one token; rows and columns are multiples.

    Example:
        >>> raster_to_flat(2, 4, 2).tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    flat = np.arange(rows * columns, dtype=np.int64)
    blocks = flat.reshape(rows // merge_size, columns // merge_size, merge_size, merge_size)
    return blocks.transpose(0, 2, 1, 3).reshape(rows, columns)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on ``device``; what is no tensor stays as it is."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
