"""The small model of each family has every property of :mod:`tests.invariants.suite`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.load import load_config
from qwendet.families.choose import FAMILIES
from tests.invariants.suite import INVARIANTS
from tests.planted.start import settings_of

SubjectOf = Callable[[str, tuple[str, ...]], Subject]
PACKED = ("train.packing=true",)


@pytest.fixture(scope="module")
def subject_of(repo_root: Path) -> Iterator[SubjectOf]:
    """A sound project with the small model of a family, built once."""
    with ExitStack() as stack:

        @cache
        def make(family: str, settings: tuple[str, ...]) -> Subject:
            own = ["model.device=cpu", "train.batch_size=4", *settings_of(family), *settings]
            config = load_config(repo_root / "examples" / "tiny.yaml", own)
            return stack.enter_context(temporary_subject(config))

        yield make


@pytest.mark.parametrize("name", INVARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family__has_the_property(family: str, name: str, subject_of: SubjectOf) -> None:
    is_packed = name == "test.compute.packed"
    if is_packed and FAMILIES[family].packing_refusal:
        pytest.skip("cannot be packed")
    assert INVARIANTS[name](subject_of(family, PACKED if is_packed else ())) == []


@pytest.mark.parametrize("name", ["test.compute.served", "test.build.parameters", "test.prompt.prefix"])
def test_adapter__is_served_as_it_was_trained(name: str, subject_of: SubjectOf) -> None:
    assert INVARIANTS[name](subject_of("qwen2_5_vl", ("model.lora.rank=4",))) == []


def test_property__with_nothing_to_look_at_says_why(subject_of: SubjectOf) -> None:
    without_head = subject_of("qwen2_5_vl", ("detection.enabled=false",))
    with pytest.raises(NotApplicableError, match="there is no head"):
        INVARIANTS["test.head.scores"](without_head)
