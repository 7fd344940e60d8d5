"""What the precision of weights costs: a new head in float32, in the recipe of a GPU, and in bfloat16.

    python -m benchmarks.precision [--json FILE]

The default recipe of a GPU (``model.dtype: bfloat16``, everything else ``auto``) on the CPU: what the frozen
embedded model sees in generated scenes, and a new head on it, 240 steps of AdamW at 1e-4. ``bfloat16`` is
what the config refuses: that head's weights, gradients and moments in bfloat16. Exits with 1 where the
recipe's loss is not within 10 % of float32's, or where it leaves more than 1 % of the weights as they were.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import parser, report
from qwendet.config.load import build_config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.dataset import open_samples
from qwendet.loader import Bundle, load
from qwendet.model.build_head import build_head
from qwendet.model.head import DetectionHead
from qwendet.model.losses import LossManager, TokenLosses, step_counts
from qwendet.model.matching import Targets
from qwendet.training.param_groups import parameter_groups

STEPS, RATE = 240, 1e-4
BATCHES, BATCH_SIZE = 4, 4
WAYS = {"float32": "float32", "recipe": "bfloat16", "bfloat16": "bfloat16"}
"""Ways to train, and ``model.dtype`` of each."""
LARGEST_LOSS, LEAST_MOVED = 1.1, 0.99

Seen = list[tuple[list[Tensor], Targets, Tensor]]
"""Of each batch what the head is given, its targets, and the step's counts."""


def frozen_model(folder: Path, dtype: str) -> Bundle:
    """The embedded model without its head, all of it frozen."""
    values = {
        "model": {"path": "tiny", "device": "cpu", "dtype": dtype},
        "data": {"train": str(folder / "train.jsonl"), "labels": list(DEMO.labels)},
        "train": {"learning_rate": 0.0, "head_learning_rate": RATE},
    }
    return load(build_config(values, "benchmark"), for_inference=False)


@torch.no_grad()
def look(bundle: Bundle) -> Seen:
    """Run the frozen model on every batch, and keep what its head is given."""
    encoder, collate, seen = bundle.encoder(), bundle.collator(), []
    head = bundle.detector.head
    assert head is not None
    samples = list(open_samples(bundle.config, "train"))
    for start in range(0, len(samples), BATCH_SIZE):
        batch = collate(
            [encoder.encode(one, with_answer=True) for one in samples[start : start + BATCH_SIZE]]
        )
        given: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, args, given=given: given.extend(args))
        bundle.detector(batch, with_tokens=False)
        handle.remove()
        targets = Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])
        seen.append((given, targets, step_counts([batch])))
    return seen


def train(bundle: Bundle, way: str) -> tuple[float, float, float]:
    """Train a new head.

    Returns:
        The loss before, the loss after, and the share of the head's weights that moved.
    """
    seen, config = look(bundle), bundle.config
    head = build_head(config, bundle.detector.config, None, for_inference=False)
    assert head is not None
    head.labels.centre_on(bundle.detector.vlm.get_input_embeddings().get_parameter("weight"))
    if way == "bfloat16":
        head.bfloat16()
    bundle.detector.head = head
    before = [parameter.detach().clone() for parameter in head.parameters()]
    rates = config.train.group_learning_rates()
    family = bundle.processor.family
    groups = parameter_groups(head_alone(bundle), family, rates, config.train.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    manager = LossManager(config.loss, config.detection.one_to_many)
    first = mean_loss(head, manager, seen)
    for step in range(STEPS):
        loss(head, manager, *seen[step % len(seen)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = sum(int((now != old).sum()) for now, old in zip(head.parameters(), before, strict=True))
    return first, mean_loss(head, manager, seen), moved / sum(parameter.numel() for parameter in before)


def head_alone(bundle: Bundle) -> torch.nn.Module:
    """The detector, of which nothing but the head trains."""
    bundle.detector.vlm.requires_grad_(False)
    return bundle.detector


def loss(
    head: DetectionHead, manager: LossManager, given: list[Tensor], targets: Targets, counts: Tensor
) -> Tensor:
    """The head's loss of one batch."""
    nothing = torch.zeros(0)
    tokens = TokenLosses(nothing, nothing.bool(), nothing.sum(), nothing.sum())
    inputs = [part.to(head.dtype) if part.is_floating_point() else part for part in given]
    return manager(tokens, head(*inputs), targets, counts).total


@torch.no_grad()
def mean_loss(head: DetectionHead, manager: LossManager, seen: Seen) -> float:
    """Mean over all batches."""
    return sum(loss(head, manager, *batch).item() for batch in seen) / len(seen)


def main() -> None:
    """Train each way, print the figures, and say whether the recipe is as good as float32."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="qwendet-precision-") as folder:
        write_dataset(DEMO, Path(folder) / "train.jsonl", BATCHES * BATCH_SIZE, seed=0)
        for way, dtype in WAYS.items():
            first, last, moved = train(frozen_model(Path(folder), dtype), way)
            figures |= {f"first_loss_{way}": first, f"loss_{way}": last, f"moved_{way}": moved}
    report(figures, options.json)
    is_near = abs(figures["loss_recipe"] / figures["loss_float32"] - 1) <= LARGEST_LOSS - 1
    if not is_near or figures["moved_recipe"] < LEAST_MOVED:
        sys.exit(1)


if __name__ == "__main__":
    main()
