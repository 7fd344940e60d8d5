"""The label set: as the config names it, else as the training samples have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwendet.config.schema import Config
from qwendet.data.samples import Sample, SampleFile, check_label
from qwendet.errors import DataError


def resolve_labels(config: Config) -> tuple[str, ...]:
    """The label set: ``data.labels``, else the training samples' labels, sorted."""
    if config.data.labels is not None:
        labels = tuple(check_label(label, "data.labels", label) for label in config.data.labels)
    elif config.data.train is not None:
        labels = labels_of(SampleFile(Path(config.data.train)), skip_bad=config.data.on_bad_sample == "skip")
    else:
        labels = ()
    if not labels:
        raise DataError(
            "there is no label to look for",
            "data.labels",
            "name them in data.labels, or give data.train with boxes",
        )
    return labels


def labels_of(samples: SampleFile | Sequence[Sample], *, skip_bad: bool) -> tuple[str, ...]:
    """All labels of samples, sorted."""
    found: set[str] = set()
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except DataError:
            if skip_bad:
                continue
            raise
        for turn in (*sample.teachers, sample.student):
            found.update(item.desc for item in turn.objects)
    return tuple(sorted(found))
