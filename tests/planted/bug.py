"""What a planted bug is: how to plant it, and which check must find it with which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Place = TypeVar("Place")


@dataclass(frozen=True)
class Bug(Generic[Place]):
    """One realistic mistake in a sound project.

    It is planted into code with a monkeypatch, into a checkpoint's folder by its path, or into a project of
    sample files and a config.

    Attributes:
        name: what went wrong, in words.
        check: id of the check that must fail, or the name of a test of the project (``tests/invariants``).
        words: what its message must hold.
        plant: makes the mistake.
        settings: of a bug in code: changes to the config that it needs, which are sound themselves.
        is_plain: of a bug in a checkpoint's folder: it has no manifest, as one of another tool.
        how: of a bug in a project: how thorough the checks must be to see it.
        families: the only ones that have what it spoils, by model_type; none for all.
    """

    name: str
    check: str
    words: tuple[str, ...]
    plant: Callable[[Place], object]
    settings: tuple[str, ...] = ()
    is_plain: bool = False
    how: tuple[tuple[str, Any], ...] = ()
    families: tuple[str, ...] = ()
