"""The published class's own answer: each sample by itself, unpadded, its inputs made by nobody of ours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from qwendet.checks.loss.step import without_dropout
from qwendet.checks.loss.watched import Spans, Watched, numbers
from qwendet.data.encode import EncodedSample


def published_nll(watched: Watched) -> npt.NDArray[np.float64]:
    """Float64 ``-log p`` of the answer tokens of ``watched.lone_rows``, from the published logits."""
    encoded, ids, spans = watched.subject.encoded, watched.ids, watched.spans
    triples = [(encoded[row], ids[row], spans[row]) for row in watched.lone_rows]
    with without_dropout(watched.detector), torch.no_grad():
        return np.concatenate([_nll_of(watched, *triple) for triple in triples])


def _nll_of(watched: Watched, sample: EncodedSample, ids: list[int], spans: Spans) -> npt.NDArray[np.float64]:
    vlm = watched.detector.vlm
    image_token = watched.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    answers = np.concatenate([np.arange(start, end) for start, end in spans])
    input_ids = torch.tensor([ids], device=vlm.device)
    with watched.detector.computing():
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
