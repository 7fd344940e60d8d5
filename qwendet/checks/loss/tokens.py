"""Token losses of the padded or packed batch against the base model's own, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwendet.checks.runner import Verdict
from qwendet.checks.shortened import exact
from qwendet.checks.subject import Subject, as_in_training
from qwendet.encoding.collate import to_device
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.families.chat import IMAGE_TOKEN
from qwendet.loading.checkpoint import dtype_name
from qwendet.model.detector import Qwen25VLWithDetection

MULTIPLE = 16.0
"""What is beyond this many times the noise is no rounding."""
LAYERS = 4
"""Of the model whose noise was measured; a deeper one's is taken to grow with its layers."""
TOKEN_LOSS = {
    torch.float64: 9.4e-15,
    torch.float32: 6.3e-7,
    torch.bfloat16: 2.2e-3,
    torch.float16: 2.5e-4,
}
"""Root mean square difference of token losses, alone and unpadded against left-padded in a batch
(``benchmarks/loss_noise.py``)."""
FIX = "see the shift of labels, attention mask, mm_token_type_ids and positions in the detector"


def token_losses(subject: Subject) -> Verdict:
    """Each token's loss in the batch is the base model's, for that sample alone.

    Of a large model the first sample is run alone, and all of them through its first layers.
    """
    detector, all_rows = subject.bundle.detector, range(len(subject.samples))
    rows = all_rows if subject.is_small else range(1)
    seen, problems = _differences(subject, detector, rows, detector.dtype)
    if subject.is_small:
        return Verdict(seen, tuple(problems))
    few = exact(subject).bundle.detector
    of_few, more = _differences(subject, few, all_rows, torch.float32)
    return Verdict(f"{seen}; of the first layers {of_few}", (*problems, *more))


def _differences(
    subject: Subject, detector: Qwen25VLWithDetection, rows: Sequence[int], dtype: torch.dtype
) -> tuple[str, list[Problem]]:
    """How far token losses of the batch are from the base model's of some of its samples."""
    found = batch_nll(subject, detector)
    count = sum(len(_answers(sample)) for sample in subject.encoded)
    if len(found) != count:
        what = f"expected the losses of {count} answer tokens, the model returned {len(found)}"
        return what, [Problem(what, "Qwen25VLWithDetection.forward", "see _token_losses")]
    expected = base_nll(subject, detector, rows)
    gaps = (found[: len(expected)] - expected).abs()
    layers = detector.config.text_config.num_hidden_layers
    tolerance = MULTIPLE * TOKEN_LOSS[dtype] * max(1.0, layers / LAYERS)
    root_mean_square = math.sqrt(float(gaps.square().mean()))
    seen = (
        f"token losses of {len(expected)} tokens differ from the base model's by {root_mean_square:.1e}"
        f" (root mean square; up to {tolerance:.1e} is the rounding of {dtype_name(dtype)})"
    )
    where = _place_of(subject, int(gaps.argmax()))
    return seen, [] if root_mean_square <= tolerance else [Problem(seen, where, FIX)]


def batch_nll(subject: Subject, detector: Qwen25VLWithDetection) -> Tensor:
    """``-log p`` of the answer tokens of all samples, as training computes them in one batch."""
    batch = to_device(subject.collator(subject.encoded), detector.device)
    with torch.no_grad():
        tokens = as_in_training(detector)(batch).tokens
    return torch.zeros(0) if tokens is None else tokens.nll.double().cpu()


def base_nll(subject: Subject, detector: Qwen25VLWithDetection, rows: Sequence[int]) -> Tensor:
    """The same of single samples, unpadded, from the logits of the transformers class."""
    image_token = subject.bundle.processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    vlm = as_in_training(detector).vlm
    with torch.no_grad(), detector.computing():
        own = [_nll_of(vlm, subject.encoded[row], image_token) for row in rows]
    return torch.cat(own)


def _nll_of(vlm: Any, sample: EncodedSample, image_token: int) -> Tensor:
    answers, input_ids = _answers(sample), sample.input_ids[None].to(vlm.device)
    logits = vlm(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == image_token).long(),
        pixel_values=sample.pixel_values.to(vlm.device, vlm.model.visual.dtype),
        image_grid_thw=sample.image_grid_thw.to(vlm.device),
        logits_to_keep=(answers - 1).to(vlm.device),
        use_cache=False,
    ).logits[0]
    return F.cross_entropy(logits.double().cpu(), sample.input_ids[answers], reduction="none")


def _answers(sample: EncodedSample) -> Tensor:
    """Indices of the tokens of a sample's answers, the student's the last."""
    spans = (*sample.teacher_assistant_spans, *sample.student_assistant_spans)
    return torch.cat([torch.arange(start, end) for start, end in spans])


def _place_of(subject: Subject, index: int) -> str:
    """Sample and token of the answer token number ``index`` of the batch."""
    for sample, encoded in zip(subject.samples, subject.encoded, strict=True):
        for at in _answers(encoded).tolist():
            if index == 0:
                token = subject.bundle.processor.tokenizer.decode(encoded.input_ids[at : at + 1].tolist())
                return f"{sample.where}: token {at}, {token!r}"
            index -= 1
    raise IndexError(index)
