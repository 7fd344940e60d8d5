"""What the shell offers after the tab key: configs, settings, ids of checks. No model library is loaded."""

from __future__ import annotations

from pathlib import Path


def complete_config(incomplete: str) -> list[str]:
    """YAML files and folders that begin so, and the names of the examples."""
    from qwendet.config.load import example_names

    folder, _, start = incomplete.rpartition("/")
    base = Path(folder or ("/" if incomplete.startswith("/") else "."))
    prefix = incomplete[: len(incomplete) - len(start)]
    beside = sorted(base.iterdir()) if base.is_dir() else []
    paths = [
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in beside
        if path.name.startswith(start) and not path.name.startswith(".")
        if path.is_dir() or path.suffix in (".yaml", ".yml")
    ]
    return paths + [name for name in example_names() if name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Dotted keys of the config that begin so, up to the equals sign."""
    from qwendet.config.problems import known_keys

    keys = known_keys()
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    return [f"{key}=" for key in leaves if key.startswith(incomplete)]


def complete_check(incomplete: str) -> list[str]:
    """Ids of checks that begin so."""
    from qwendet.checks.ids import all_ids

    return [id for id in all_ids() if id.startswith(incomplete)]
