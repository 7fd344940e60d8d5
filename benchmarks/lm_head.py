"""What it buys to send only supervised positions through ``lm_head``.

    python -m benchmarks.lm_head

1,024 positions, vocabulary 151,936, width 256, 15 % supervised: all positions against gathered ones,
alternating, each in a process of its own so that peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from benchmarks.report import parser, report

POSITIONS, VOCABULARY, WIDTH, SUPERVISED, ROUNDS = 1024, 151_936, 256, 0.15, 3


def measure(way: str) -> dict[str, float]:
    """Seconds and peak megabytes of one loss and its gradient, and the gradient's norm."""
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (POSITIONS,))
    labels[torch.rand(POSITIONS) > SUPERVISED] = -100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    rows = slice(None) if way == "all" else labels != -100
    F.cross_entropy(lm_head(hidden[rows]), labels[rows]).backward()
    seconds = time.perf_counter() - started
    assert hidden.grad is not None
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "megabytes": peak, "gradient": hidden.grad.norm().item()}


def main() -> None:
    """Measure both ways in turn."""
    arguments = parser(__doc__)
    arguments.add_argument("--way", choices=("all", "gathered"), help="one measurement, for internal use")
    options = arguments.parse_args()
    if options.way:
        print(json.dumps(measure(options.way)))
        return
    runs: dict[str, list[dict[str, float]]] = {"all": [], "gathered": []}
    for _ in range(ROUNDS):
        for way, results in runs.items():
            command = [sys.executable, "-m", "benchmarks.lm_head", "--way", way]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    median = {
        f"{way}_{key}": statistics.median(result[key] for result in results)
        for way, results in runs.items()
        for key in results[0]
    }
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["all"], runs["gathered"], strict=True)]
    difference = abs(median["all_gradient"] - median["gathered_gradient"]) / median["all_gradient"]
    report(
        median | {"speed_ratio": statistics.median(ratios), "relative_gradient_difference": difference},
        options.json,
    )


if __name__ == "__main__":
    main()
