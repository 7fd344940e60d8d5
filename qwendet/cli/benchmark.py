"""``qwendet eval --benchmark``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from qwendet.console import console
from qwendet.errors import ConfigError
from qwendet.files import require_place


def measure_benchmark(
    name: str | None,
    model: Path,
    folder: Path,
    output: Path | None,
    others: Sequence[str],
    *,
    mode: str | None,
    settings: Sequence[str],
    train: bool,
    shots: int | None,
    config: str | None,
) -> None:
    """Measure all sets of a benchmark, and print and write their table; ``others`` are options beside it."""
    from qwendet.benchmark.layouts import Benchmark

    names = ", ".join(get_args(Benchmark))
    if name is None:
        what, fix = "--output, --train and --shots are about a benchmark", f"add --benchmark: one of {names}"
        raise ConfigError(what, "command line", fix)
    if name not in get_args(Benchmark):
        raise ConfigError(f"unknown benchmark {name!r}", "--benchmark", f"one of {names}")
    if output is None:
        raise ConfigError("the results need a folder", "--benchmark", "add --output DIR")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a benchmark runs in one process", "--benchmark", "start qwendet without torchrun")
    if others:
        what = f"{', '.join(others)} cannot be used for a whole benchmark"
        raise ConfigError(what, "command line", "leave it out, or eval one of its sets alone")
    require_place(output, "--output", is_folder=True)
    from qwendet.benchmark.run import Asked, run_benchmark
    from qwendet.config.load import load_config
    from qwendet.report import write_benchmark_page

    asked = Asked(name, model, mode, tuple(settings), train, shots)  # type: ignore[arg-type]
    table = run_benchmark(asked, folder, output, None if config is None else load_config(config))
    page = write_benchmark_page(table, output)
    files = [str(output / "table.json"), str(page)]
    if console.is_for_machine():
        console.print_record({**table, "files": files})
        return
    columns = ("set", "source", "images", *table["columns"])
    rows = [*table["sets"], *({"set": "mean", **means} for means in table["means"])]
    console.print_table(f"{name}: {model}", columns, [[row.get(key) for key in columns] for row in rows])
    for broken, count in table["left_out"].items():
        console.say(f"{broken}: {count} left out, listed in {output / 'sets' / broken}.json.")
    console.say(f"Wrote {', '.join(files)}.")
