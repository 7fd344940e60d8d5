"""Our loss and gradients against ``Qwen2_5_VLForConditionalGeneration``'s own, in float64, ``lm`` only.

    python -m benchmarks.loss_parity

Its ``loss`` is rounded to float32 (transformers' ``ForCausalLMLoss`` calls ``logits.float()``), so the
reference is the cross-entropy of its float64 logits; the rounded one is shown beside it. It fails if loss or
gradients differ by more than rounding does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.random_model import MODEL_INPUTS
from benchmarks.report import parser, report
from qwendet.config.load import build_config
from qwendet.demo.shapes import PRETRAIN, write_dataset
from qwendet.encoding.collate import Batch
from qwendet.encoding.dataset import TrainingSamples
from qwendet.loader import Bundle, load
from qwendet.model.losses import LossManager, step_counts

TOLERANCE = 1e-6
"""transformers' norms and angles are float32 in a float64 model too, whose last digit, 6e-8, may differ."""


def main() -> None:
    """Compute both and print the largest differences."""
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = write_dataset(PRETRAIN, Path(folder) / "train.jsonl", 4, seed=3)
        config = build_config(
            {
                "model": {"path": "tiny-untrained", "dtype": "float64", "device": "cpu"},
                "data": {"train": str(train), "teacher_ratio": 1.0},
                "detection": {"enabled": False},
                "loss": {"teacher_loss_weight": 0.0, "student_loss_weight": 0.0},
            },
            "benchmark",
        )
        bundle = load(config, for_inference=False)
        samples = TrainingSamples(bundle.config, bundle.encoder())
        batch = bundle.collator()([samples[index] for index in range(4)])
    ours = _gradients(bundle.detector, lambda: _our_loss(bundle, batch))
    theirs = _gradients(bundle.detector, lambda: _their_loss(bundle, batch))
    rounded = bundle.detector.vlm(**{key: batch[key] for key in MODEL_INPUTS}, labels=batch["labels"]).loss
    gradient = max((a - b).abs().max().item() for a, b in zip(ours[1], theirs[1], strict=True))
    difference = abs(ours[0] - theirs[0])
    report(
        {
            "loss": ours[0],
            "loss_difference": difference,
            "difference_to_its_float32_loss": abs(ours[0] - rounded.item()),
            "largest_gradient_difference": gradient,
        },
        options.json,
    )
    if max(difference, gradient) > TOLERANCE:
        raise SystemExit(f"loss or gradients differ by more than {TOLERANCE}")


def _our_loss(bundle: Bundle, batch: Batch) -> torch.Tensor:
    manager = LossManager(bundle.config.loss, one_to_many=1)
    return manager(bundle.detector(batch).tokens, None, None, step_counts([batch])).total


def _their_loss(bundle: Bundle, batch: Batch) -> torch.Tensor:
    logits = bundle.detector.vlm(**{key: batch[key] for key in MODEL_INPUTS}).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def _gradients(
    module: torch.nn.Module, loss_of: Callable[[], torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    module.zero_grad()
    loss = loss_of()
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return loss.item(), [gradient.clone() for gradient in gradients if gradient is not None]


if __name__ == "__main__":
    main()
