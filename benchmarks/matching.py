"""Batched matching against one sample and one stage at a time.

    python -m benchmarks.matching

32 samples of 64 patches, 100 queries, 2 decoder layers and up to 20 boxes; both ways in turn, the
same assignments, the median ratio.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.report import parser, report
from qwendet.config.schema import LossConfig
from qwendet.model.head import HeadOutput
from qwendet.model.matching import Matches, Targets, match

SAMPLES, STAGES, LABELS, ROUNDS = 32, (64, 64, 64), 12, 20
WEIGHTS = LossConfig(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)


def one_by_one(output: HeadOutput, targets: Targets) -> int:
    """Match each stage of each sample by itself; returns the number of pairs."""
    boxes = targets.boxes_cxcywh.split(list(targets.num_boxes))
    labels = targets.label_ids.split(list(targets.num_boxes))
    pairs = 0
    for sample in range(SAMPLES):
        start = 0
        for size in output.stage_sizes:
            part = slice(start, start + size)
            single = HeadOutput(
                output.logits[sample : sample + 1, part],
                output.boxes_cxcywh[sample : sample + 1, part],
                output.valid[sample : sample + 1, part],
                (size,),
            )
            own = Targets(boxes[sample], labels[sample], [len(labels[sample])])
            pairs += len(match(single, own, WEIGHTS, (1,)).target)
            start += size
    return pairs


def main() -> None:
    """Time both."""
    options = parser(__doc__).parse_args()
    torch.manual_seed(0)
    total = sum(STAGES)
    counts = torch.randint(0, 21, (SAMPLES,)).tolist()
    output = HeadOutput(
        torch.randn(SAMPLES, total, LABELS),
        torch.rand(SAMPLES, total, 4),
        torch.ones(SAMPLES, total, dtype=torch.bool),
        STAGES,
    )
    targets = Targets(torch.rand(sum(counts), 4), torch.randint(LABELS, (sum(counts),)), counts)
    batched, single = [], []
    matches: Matches | None = None
    for _ in range(ROUNDS):
        started = time.perf_counter()
        matches = match(output, targets, WEIGHTS, (1, 1, 1))
        middle = time.perf_counter()
        pairs = one_by_one(output, targets)
        single.append(time.perf_counter() - middle)
        batched.append(middle - started)
        assert pairs == len(matches.target)
    ratios = [slow / fast for slow, fast in zip(single, batched, strict=True)]
    report(
        {
            "batched_milliseconds": statistics.median(batched) * 1000,
            "one_by_one_milliseconds": statistics.median(single) * 1000,
            "speed_ratio": statistics.median(ratios),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
