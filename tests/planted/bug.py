"""What a planted bug is: how to plant it, and which check must find it with which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Bug:
    """One realistic mistake in a sound project.

    Attributes:
        name: what went wrong, in words.
        check: id of the check that must fail.
        words: what its message must hold.
        plant: makes the mistake, undone with the monkeypatch.
        settings: changes to the config that the bug needs, which are sound themselves.
    """

    name: str
    check: str
    words: tuple[str, ...]
    plant: Callable[[pytest.MonkeyPatch], None]
    settings: tuple[str, ...] = ()
