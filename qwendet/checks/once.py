"""Computations on a subject that several checks share: made when first asked for, and once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from qwendet.checks.subject import Subject

Made = TypeVar("Made")


def once(make: Callable[[Subject], Made]) -> Callable[[Subject], Made]:
    """Remember what ``make`` returned for each subject, or raised: what failed once is not tried again."""
    made: WeakKeyDictionary[Subject, tuple[Any, Exception | None]] = WeakKeyDictionary()

    @wraps(make)
    def remembered(subject: Subject) -> Made:
        if subject not in made:
            try:
                made[subject] = (make(subject), None)
            except Exception as error:
                made[subject] = (None, error)
                raise
        value, failure = made[subject]
        if failure is not None:
            raise failure
        result: Made = value
        return result

    return remembered
