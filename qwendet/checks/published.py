"""The published class's own answer: each sample by itself, unpadded, its inputs made by nobody of ours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from qwendet.checks.watched import Watched, numbers


@torch.no_grad()
def published_nll(watched: Watched) -> npt.NDArray[np.float64]:
    """Float64 ``-log p`` of every answer token, samples in order, from the published logits."""
    vlm, found = watched.detector.vlm, []
    image_token = watched.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for sample, ids, spans in zip(watched.subject.encoded, watched.ids, watched.spans, strict=True):
        answers = np.concatenate([np.arange(start, end) for start, end in spans])
        input_ids = torch.tensor([ids], device=vlm.device)
        logits = vlm(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=(input_ids == image_token).long(),
            pixel_values=sample.pixel_values.to(vlm.device, vlm.dtype),
            image_grid_thw=sample.image_grid_thw.to(vlm.device),
            logits_to_keep=torch.from_numpy(answers - 1).to(vlm.device),
            use_cache=False,
        ).logits[0]
        scores = numbers(logits)
        own = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(answers)), np.array(ids)[answers]]
        found.append(own)
    return np.concatenate(found)
