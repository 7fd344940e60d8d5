"""How long a user waits for each command: whole processes, medians of five.

    python -m benchmarks.startup                 about 3 minutes on two cores

`--help` and `validate-config` (on 100 samples) never wait for torch; a bare Python and a bare import of typer
and rich stand beside them. `train` is one step of the tiny model, with its checkpoints and the process's end
on top; `infer` is one image by the checkpoint. Then the five slowest imports of `train`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import parser, report
from qwendet.console.console import print_table

RUNS = 5
SAMPLES = 100
SLOWEST = 5
QWENDET = [sys.executable, "-m", "qwendet"]


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write data and a checkpoint; the commands to time, by name."""
    from qwendet.demo.shapes import DEMO, write_dataset

    train = write_dataset(DEMO, folder / "train.jsonl", SAMPLES, seed=0)
    config = folder / "config.yaml"
    config.write_text(
        f"model: {{path: tiny}}\ndata: {{train: {train.name}}}\n"
        "train: {output_dir: run, max_steps: 1, batch_size: 4, evaluate: false}\n",
        encoding="utf-8",
    )
    subprocess.run([*QWENDET, "train", str(config)], check=True, capture_output=True)
    image = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".jpg"))
    return {
        "python": [sys.executable, "-c", "pass"],
        "typer_and_rich": [sys.executable, "-c", "import typer, rich.console"],
        "help": [*QWENDET, "--help"],
        "validate_config": [*QWENDET, "validate-config", str(config)],
        "train_to_first_step": [*QWENDET, "train", str(config), "--set", "train.output_dir={unused}"],
        "infer_one_image": [*QWENDET, "infer", str(folder / "run" / "final"), str(image)],
    }


def seconds_of(command: Sequence[str]) -> float:
    """Seconds of one process; bytecode of what it imports is kept, as pip keeps it when it installs."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=compiled)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - started


def slowest_imports(statement: str) -> list[tuple[str, str]]:
    """The modules that take longest to import by themselves, with their milliseconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], check=True, capture_output=True, text=True
    )
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    own = [(int(row[0]), row[2].strip()) for row in rows if row[0].strip().isdigit()]
    return [
        (name, f"{microseconds / 1000:.0f}") for microseconds, name in sorted(own, reverse=True)[:SLOWEST]
    ]


def main() -> None:
    """Run the commands in turn, print medians and imports."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=RUNS, help="processes of each command (5)")
    options = arguments.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = prepare(folder)
        for number in range(options.runs + 1):
            unused = str(folder / f"run-{number}")
            rounds.append(
                {
                    way: seconds_of([word.format(unused=unused) if "{" in word else word for word in command])
                    for way, command in commands.items()
                }
            )
            print(
                f"round {number}: " + ", ".join(f"{way} {s:.2f} s" for way, s in rounds[-1].items()),
                flush=True,
            )
    counted = rounds[1:]  # the first fills the caches
    figures = {f"{name}_seconds": statistics.median(row[name] for row in counted) for name in counted[0]}
    print_table(
        "Slowest imports of train", ("module", "ms by itself"), slowest_imports("import qwendet.train")
    )
    report(figures, options.json)


if __name__ == "__main__":
    main()
