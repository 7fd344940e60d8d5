"""One forward of a block: the newest tokens of every answer, read behind all that is in the KV cache.

               KV cache                             block            kept, what is left is cut off
    row 0      ░░ prompt  [{"bbox_2d": [1           2  3  ,  ␣  4    2  3  ,  ␣
    row 1      prompt     []                        ]  ░  ░  ░  ░    ]  ░  ░  ░

``░`` is masked: padding on the left, and the slots of tokens that were read and not kept while another row
kept as many. Positions are each row's own and count on from its prompt, so a masked slot moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from qwendet.encoding.collate import Batch
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput


class AnswersInProgress:
    """The answers of a batch that have not ended; one that has leaves the batch."""

    def __init__(self, detector: Qwen25VLWithDetection, batch: Batch) -> None:
        self._detector = detector
        self.rows = list(range(len(batch["input_ids"])))
        self._config = detector.config.text_config
        self._batch = batch
        self._cache = DynamicCache(config=self._config)
        self._slots = batch["attention_mask"].bool()  # (B, slots of the cache): those that are attended to
        self._block = batch["input_ids"][:, -1:]
        self._start = batch["position_ids"][-3:, :, -1:]  # (3, B, 1): the place of the block's first token

    @property
    def can_cut_back(self) -> bool:
        """Whether tokens can be taken out of the cache again: not where a state sums up all of them."""
        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def read_prompts(self) -> Tensor:
        """Read the prompts; float32 logits ``(B, 1, V)`` of what comes next."""
        own = {key: self._batch[key] for key in ("pixel_values", "image_grid_thw")}
        ids, positions = self._batch["input_ids"], self._batch["position_ids"]
        return self._forward(ids, self._slots, positions, self._cache, logits_to_keep=1, **own)

    def read_prompts_with_head(self) -> tuple[Tensor, HeadOutput | None]:
        """Read the prompts in one forward for both: logits as above, and what the head found."""
        output = self._detector(self._batch, with_tokens=False, cache=self._cache)
        with self._detector.computing():
            logits: Tensor = self._detector.vlm.lm_head(output.last)
        return logits.float(), output.head

    def read(self, blocks: Sequence[Sequence[int]]) -> Tensor:
        """Read a block of each row: its newest token, and tokens to try behind it.

        Float32 logits ``(B, K, V)`` of what comes after each token, K the length of the longest.
        """
        longest, device = max(map(len, blocks)), self._slots.device
        pad = self._batch["input_ids"][0, 0]
        self._block = pad.repeat(len(blocks), longest)
        for row, block in zip(self._block, blocks, strict=True):
            row[: len(block)] = torch.tensor(block, device=device)
        place = torch.arange(longest, device=device)
        own = place < torch.tensor([len(block) for block in blocks], device=device)[:, None]
        self._slots = torch.cat([self._slots, own], dim=1)
        return self._forward(self._block, self._slots, self._start + place, self._cache)

    def keep(self, counts: Sequence[int]) -> None:
        """Keep the first ``counts`` tokens of each row's block, at least one, and cut off the others."""
        most, longest = max(counts), self._block.shape[1]
        kept = torch.tensor(counts, device=self._slots.device)
        if most < longest:
            self._cache.crop(most - longest)
            self._slots = self._slots[:, : most - longest]
        if min(counts) < most:
            self._slots[:, -most:] = torch.arange(most, device=kept.device) < kept[:, None]
        self._start = self._start + kept[:, None]

    def leave(self, stay: Sequence[int]) -> None:
        """Let all answers leave but those at these places of :attr:`rows`."""
        if len(stay) == len(self.rows):
            return
        indices: Any = torch.tensor(stay, dtype=torch.int64, device=self._slots.device)
        self.rows = [self.rows[index] for index in stay]
        self._start = self._start[:, indices]
        self._slots = self._slots[indices]
        self._cache.reorder_cache(indices)  # recurrent states too

    def alone(self, index: int, place: int) -> Tensor:
        """Logits ``(V,)`` after one token of the block, read again with nobody beside it."""
        before = self._slots.shape[1] - self._block.shape[1] + place
        seen = self._slots[index, :before].nonzero()[:, 0]
        cache = DynamicCache(config=self._config)
        for number, (keys, values, *_) in enumerate(self._cache):
            row = slice(index, index + 1)
            cache.update(keys[row][:, :, seen], values[row][:, :, seen], number)
        token = self._block[index : index + 1, place : place + 1]
        position = self._start[:, index : index + 1] + place
        return self._forward(token, None, position, cache)[0, 0]

    def _forward(
        self, ids: Tensor, slots: Tensor | None, positions: Tensor, cache: Any, **others: Any
    ) -> Tensor:
        mask = None if slots is None or slots.all() else slots.long()  # attention is quicker without
        with self._detector.computing():
            outputs = self._detector.vlm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **others,
            )
        logits: Tensor = outputs.logits.float()
        return logits
