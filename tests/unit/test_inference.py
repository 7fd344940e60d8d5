"""Labels that a user asks for, against those that were trained."""

from __future__ import annotations

import pytest

from qwendet.inference import tell_near_misses

TRAINED = ("cyan cross", "orange star", "缺陷 螺丝")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("cyan cros", "cyan cross"), ("Orange star", "orange star"), ("缺陷螺丝", "缺陷 螺丝")],
)
def test_tell_near_misses__names_the_label_that_was_meant(
    asked: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell_near_misses([asked], TRAINED)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"the label {asked!r} was not trained; did you mean {meant!r}?"


def test_tell_near_misses__says_nothing_of_trained_and_of_new_labels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tell_near_misses([*TRAINED, "purple star", "zebra"], TRAINED)
    assert caplog.records == []
