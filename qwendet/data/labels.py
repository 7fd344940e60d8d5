"""The label set: as the config names it, else as training samples have it; and what of it a request names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from qwendet.config.schema import Config
from qwendet.data.samples import Sample, SampleSource, Turn, check_label
from qwendet.data.sources import samples_of
from qwendet.errors import DataError


def resolve_labels(config: Config) -> tuple[str, ...]:
    """The label set: ``data.labels``, else those of training samples that name none of their own, sorted."""
    if config.data.labels is not None:
        labels = tuple(check_label(label, "data.labels", label) for label in config.data.labels)
    elif config.data.train is not None:
        samples = samples_of([source.path for source in config.data.sources("train")], split="train")
        labels = labels_of(samples, skip_bad=config.data.on_bad_sample == "skip")
    else:
        labels = ()
    if not labels:
        raise DataError(
            "there is no label to look for",
            "data.labels",
            "name them in data.labels, or give data.train with boxes in samples without labels of their own",
        )
    return labels


def choose_labels(turn: Turn, labels: tuple[str, ...], most: int | None, generator: Random) -> Turn:
    """A training turn that is asked about at most so many labels, in an order that tells nothing.

    They are those of its objects and others (of its own labels, where it has some), drawn evenly; where its
    objects have more, so many of them are drawn, and the other objects are no targets. Where annotations are
    federated, the others are of its ``neg_labels``: the rest may be in the image. The generator is that of
    sample and epoch.

    Example:
        >>> from qwendet.data.samples import DetectedObject
        >>> turn = Turn("a.png", (DetectedObject((1, 2, 3, 4), "cat"),))
        >>> asked = choose_labels(turn, ("cat", "cow", "dog", "hen", "owl"), 3, Random("0/0/7")).labels
        >>> len(asked), "cat" in asked
        (3, True)
    """
    asked = turn.labels or labels
    there = {item.desc for item in turn.objects}
    known = there.union(asked if turn.neg_labels is None else turn.neg_labels)
    present = [label for label in asked if label in there]
    absent = [label for label in asked if label in known - there]
    most = len(asked) if most is None else most
    if len(asked) == len(present) + len(absent) <= most or not present + absent:
        return turn
    chosen = generator.sample(present, min(most, len(present)))
    chosen += generator.sample(absent, min(most - len(chosen), len(absent)))
    generator.shuffle(chosen)
    return replace(turn, labels=None).asking(tuple(chosen))


def label_chunks(sample: Sample, labels: tuple[str, ...], most: int | None) -> list[Sample]:
    """The questions that ask a sample for all its labels, at most so many at a time, in their order."""
    asked = sample.student.labels or labels
    if most is None or len(asked) <= most:
        return [sample]
    chunks = (asked[start : start + most] for start in range(0, len(asked), most))
    bare = replace(sample.student, labels=None)
    return [replace(sample, student=bare.asking(chunk)) for chunk in chunks]


def labels_of(samples: SampleSource | Sequence[Sample], *, skip_bad: bool) -> tuple[str, ...]:
    """All labels of objects, sorted, but those of samples that say themselves what is asked."""
    found: set[str] = set()
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except DataError:
            if skip_bad:
                continue
            raise
        for turn in (*sample.teachers, sample.student):
            if turn.labels is None and sample.student.labels is None:
                found.update(item.desc for item in turn.objects)
    return tuple(sorted(found))
