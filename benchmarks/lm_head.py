"""What each way of computing the loss from hidden states costs.

    python -m benchmarks.lm_head

1,024 positions, vocabulary 151,936, width 256, 15 % supervised; one loss and its gradients:

    all          all positions through ``lm_head``, as the model's own loss does
    gathered     the supervised ones alone
    recomputed   these by chunks of 64, each chunk's logits computed again on the way back (checkpointing)
    chunked      these by chunks, gradients on the way forward (qwendet.model.cross_entropy)

The ways alternate, each in a process of its own so that peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.report import parser, report
from qwendet.model.cross_entropy import linear_cross_entropy

POSITIONS, VOCABULARY, WIDTH, SUPERVISED, ROUNDS, CHUNK = 1024, 151_936, 256, 0.15, 3, 64
WAYS = ("all", "gathered", "recomputed", "chunked")


def loss_of(way: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The mean loss, one of the ways."""
    if way == "all":
        return F.cross_entropy(F.linear(hidden, weight), labels)
    rows = labels != -100
    hidden, labels = hidden[rows], labels[rows]
    if way == "gathered":
        return F.cross_entropy(F.linear(hidden, weight), labels)
    if way == "chunked":
        return linear_cross_entropy(hidden, weight, labels)[0] / len(labels)
    total = hidden.new_zeros(())
    for chunk, wanted in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
        total = total + checkpoint(_sum, chunk, weight, wanted, use_reentrant=False)
    return total / len(labels)


def _sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")


def measure(way: str) -> dict[str, float]:
    """Seconds and peak megabytes of one loss and its gradients, and the norm of the weight's."""
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH).div_(WIDTH**0.5).requires_grad_()
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (POSITIONS,))
    labels[torch.rand(POSITIONS) > SUPERVISED] = -100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss_of(way, hidden, weight, labels).backward()
    seconds = time.perf_counter() - started
    assert weight.grad is not None
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "megabytes": peak, "gradient": weight.grad.norm().item()}


def main() -> None:
    """Measure the ways in turn."""
    arguments = parser(__doc__)
    arguments.add_argument("--way", choices=WAYS, help="one measurement, for internal use")
    options = arguments.parse_args()
    if options.way:
        print(json.dumps(measure(options.way)))
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, results in runs.items():
            command = [sys.executable, "-m", "benchmarks.lm_head", "--way", way]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    figures: dict[str, Any] = {
        f"{way}_{key}": statistics.median(result[key] for result in results)
        for way, results in runs.items()
        for key in ("seconds", "megabytes")
    }
    for way in WAYS[:-1]:
        pairs = zip(runs[way], runs["chunked"], strict=True)
        figures[f"{way}_over_chunked"] = statistics.median(one["seconds"] / c["seconds"] for one, c in pairs)
    norms = [results[0]["gradient"] for results in runs.values()]
    figures["relative_gradient_difference"] = (max(norms) - min(norms)) / norms[0]
    report(figures, options.json)


if __name__ == "__main__":
    main()
