"""Freed memory stays for the time of training and goes back when it ends: what the C library is told."""

from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace

import pytest

from qwendet.training.freed_memory import KEEP, USUAL, freed_memory_kept

GIVE_BACK = ("malloc_trim", 0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Calls of a C library that says it is glibc."""
    calls: list[tuple[object, ...]] = []
    library = SimpleNamespace(
        mallopt=lambda *arguments: calls.append(arguments),
        malloc_trim=lambda padding: calls.append(("malloc_trim", padding)),
    )
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    return calls


def test_block__keeps_memory_and_then_gives_it_back(told: list[tuple[object, ...]]) -> None:
    with freed_memory_kept():
        assert told == list(KEEP.items())
        told.clear()
    assert told == [*USUAL.items(), GIVE_BACK]
    assert KEEP.keys() <= USUAL.keys(), "what was changed is changed back"


def test_block__that_raises_gives_it_back_too(told: list[tuple[object, ...]]) -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    assert told[-1] == GIVE_BACK


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_glibc__takes_every_setting() -> None:
    library = ctypes.CDLL(None)
    with freed_memory_kept():  # which ends at the usual settings
        assert [library.mallopt(*setting) for setting in (*USUAL.items(), *KEEP.items())] == [1] * 5


def test_another_c_library__is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("it was called"))
    with freed_memory_kept():
        pass
