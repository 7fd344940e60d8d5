"""What every benchmark shares: a table on stdout, ``--json FILE`` with one object, the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qwendet.console.console import print_table

VERSIONED = ("torch", "transformers", "typer", "pydantic")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--json``."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one object")
    return made


def report(figures: Mapping[str, Any], json_file: Path | None) -> None:
    """Print figures with machine and versions, and write them."""
    print_table("Figures", ["figure", "value"], [[name, shown(value)] for name, value in figures.items()])
    print(machine())
    if json_file is not None:
        json_file.write_text(json.dumps(dict(figures), indent=1) + "\n", encoding="utf-8")


def shown(value: Any) -> str:
    """A number with four significant digits; others as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> str:
    """Cores and versions in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONED)
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
