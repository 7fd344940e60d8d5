"""The published class's own answer: each sample by itself, unpadded, its inputs made by nobody of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwendet.checks.loss.step import without_dropout
from qwendet.checks.loss.watched import Spans, Watched, numbers
from qwendet.encoding.encode import EncodedSample
from qwendet.families.chat import IMAGE_TOKEN
from qwendet.model.detector import Qwen25VLWithDetection


def published_nll(
    watched: Watched, detector: Qwen25VLWithDetection, rows: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Float64 ``-log p`` of the answer tokens of some samples, from the logits of a published model."""
    encoded, ids, spans = watched.subject.encoded, watched.ids, watched.spans
    image_token = watched.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    with without_dropout(detector), torch.no_grad(), detector.computing():
        own = [_nll_of(detector.vlm, encoded[row], ids[row], spans[row], image_token) for row in rows]
    return np.concatenate(own)


def _nll_of(
    vlm: Any, sample: EncodedSample, ids: list[int], spans: Spans, image_token: int
) -> npt.NDArray[np.float64]:
    answers = np.concatenate([np.arange(start, end) for start, end in spans])
    input_ids = torch.tensor([ids], device=vlm.device)
    logits = vlm(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == image_token).long(),
        pixel_values=sample.pixel_values.to(vlm.device, vlm.model.visual.dtype),
        image_grid_thw=sample.image_grid_thw.to(vlm.device),
        logits_to_keep=torch.from_numpy(answers - 1).to(vlm.device),
        use_cache=False,
    ).logits[0]
    scores = numbers(logits)
    chosen = scores[np.arange(len(answers)), np.array(ids)[answers]]
    nll: npt.NDArray[np.float64] = np.logaddexp.reduce(scores, axis=1) - chosen
    return nll
