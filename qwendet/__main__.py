"""``python -m qwendet``: the same as the command ``qwendet``."""

from __future__ import annotations

from qwendet.cli.main import run

if __name__ == "__main__":
    run()
