"""How long work tells how far it is, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, str], None]
"""Called with the number of finished items and a short text to show, such as ``loss 1.23``."""

Tracker = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with what is being done and the number of items; see ``qwendet.console.progress``."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """Track without showing anything."""
    yield lambda finished, text: None
