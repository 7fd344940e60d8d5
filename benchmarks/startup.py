"""Whole-process time of the commands that must not wait for torch.

    python -m benchmarks.startup

Median of five processes each, beside a bare Python and a bare import of typer and rich in the same run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.report import parser, report

RUNS = 5
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "typer_and_rich": [sys.executable, "-c", "import typer, rich.console"],
    "help": [sys.executable, "-m", "qwendet", "--help"],
    "validate_config": [sys.executable, "-m", "qwendet", "validate-config", "examples/tiny.yaml"],
}


def seconds_of(command: Sequence[str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Run the commands in turn and print medians."""
    options = parser(__doc__).parse_args()
    rounds = [{name: seconds_of(command) for name, command in COMMANDS.items()} for _ in range(RUNS + 1)]
    counted = rounds[1:]  # the first fills the caches
    figures = {f"{name}_seconds": statistics.median(row[name] for row in counted) for name in COMMANDS}
    report(figures, options.json)


if __name__ == "__main__":
    main()
