"""What the shell offers after the tab key beside files: settings, ids of checks; without a model library."""

from __future__ import annotations


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
