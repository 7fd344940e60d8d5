"""``data.repeat_rare``: repeat factors of LVIS."""

from __future__ import annotations

from collections import Counter

import pytest

from qwendet.data.mixture import repeats


def test_repeats__by_hand() -> None:
    """Of 100 samples 1 shows an owl, 4 a hen: sqrt(0.16 / 0.01) = 4, sqrt(0.16 / 0.04) = 2; cats are many."""
    shown = [{"cat"}] * 93 + [set(), set(), {"hen", "cat"}, {"hen"}, {"hen"}, {"hen", "owl"}, {"cat"}]
    assert repeats(shown, 0.16, seed=0)[90:] == [1, 1, 1, 1, 1, 2, 2, 2, 4, 1]


def test_repeats__fractions_are_rounded_up_as_often_as_they_say() -> None:
    """sqrt(0.5 / 0.2) = 1.58; another seed rounds others up."""
    shown = [{"hen"}] * 2000 + [{"cat"}] * 8000
    found = repeats(shown, 0.5, seed=3)
    assert Counter(found)[2] / 2000 == pytest.approx(0.581, abs=0.03)
    assert set(found[2000:]) == {1}
    assert repeats(shown, 0.5, seed=3) == found != repeats(shown, 0.5, seed=4)


@pytest.mark.parametrize("threshold", [0.01, 0.5])
def test_repeats__labels_that_are_common_enough_change_nothing(threshold: float) -> None:
    assert repeats([{"cat"}, {"cat", "hen"}, {"hen"}, set()], threshold, seed=0) == [1, 1, 1, 1]
