"""Tokens of every sample against the limits, from the sizes of its images: no pixel is read again.

Demonstrations are drawn while training runs. If the longest of them could exceed the limit beside the longest
sample, every draw of every epoch is looked at, which is possible because it depends on the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qwendet.checks.config.dataset import Dataset
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import SplitStats, sizes_of
from qwendet.checks.runner import Findings, Table
from qwendet.config.schema import Config
from qwendet.data.samples import Sample
from qwendet.encoding.dataset import TrainingSamples
from qwendet.encoding.encode import Encoder
from qwendet.errors import DataError, Problem, Result
from qwendet.loader import load_interface
from qwendet.progress import track

LIMIT = "config.tokens.limit"
ANSWER = "config.tokens.answer"
FIX = "raise data.max_tokens, or lower data.max_pixels or the number of teachers; nothing is cut"
Size = tuple[int, int]
Sizes = Mapping[tuple[Split, str], Size]
"""Displayed size of every image that was seen, by split and name."""


class _Counts(NamedTuple):
    """Tokens of each sample of a file: as written, and of its student turn as if it stood alone."""

    totals: list[int]
    turns: list[int]


def count_tokens(dataset: Dataset) -> tuple[list[Result], list[Table]]:
    """Hold the tokens of every sample against ``data.max_tokens`` and ``infer.max_new_tokens``."""
    config, findings = dataset.config, {id: Findings(id) for id in (LIMIT, ANSWER)}
    loaded: list[Encoder] = []

    def prepare() -> Iterable[Problem]:
        loaded.append(load_interface(config).encoder())
        return ()

    if not findings[LIMIT].collect(prepare):
        return findings[LIMIT].results("", config.data.allow), []
    sizes = sizes_of(dataset.splits)
    counts = {split: _count(split, dataset, loaded[0], sizes, findings) for split in dataset.splits}
    findings[LIMIT].collect(lambda: _drawn(dataset, loaded[0], counts, sizes))
    goods = {
        LIMIT: f"no sample has more than data.max_tokens = {config.data.max_tokens} tokens",
        ANSWER: f"no answer has more than infer.max_new_tokens = {config.infer.max_new_tokens} tokens",
    }
    results = [
        result for id, found in findings.items() for result in found.results(goods[id], config.data.allow)
    ]
    return results, [_table(counts, config)]


def _count(
    split: Split, dataset: Dataset, encoder: Encoder, sizes: Sizes, findings: Mapping[str, Findings]
) -> _Counts:
    """Count the samples of one file; what exceeds a limit is added to the findings.

    Samples that cannot be read, or with an image of unknown size, are left out.
    """
    counts, config = _Counts([], []), dataset.config
    for sample in _readable(dataset.splits[split]):
        teachers = () if split == "teachers" else sample.teachers
        known = _known([(split, turn.image) for turn in (*teachers, sample.student)], sizes)
        if known is None:
            continue
        sample = Sample(sample.student, teachers, sample.where)
        sample = _with_longest_labels(sample, encoder, config.data.labels_per_request)
        total, answer = encoder.token_counts(sample, known)
        alone = encoder.token_counts(Sample(sample.student), known[-1:])[0] if teachers else total
        counts.totals.append(total)
        counts.turns.append(alone)
        findings[LIMIT].add([*_too_long(total, config.data.max_tokens, sample.where)])
        findings[ANSWER].add([*_answer_too_long(answer, config, sample.where)])
    return counts


def _readable(stats: SplitStats) -> Iterator[Sample]:
    """The samples of a file but broken ones, which the pass over the files has named."""
    samples = stats.source
    assert samples is not None
    with track(f"counting tokens of {stats.path.name}", len(samples)) as advance:
        for index in range(len(samples)):
            with suppress(DataError):
                yield samples[index]
            advance(index + 1, "")


def _known(keys: Iterable[tuple[Split, str]], sizes: Sizes) -> list[Size] | None:
    """Sizes of images; ``None`` if that of one is not known."""
    found = [sizes.get(key) for key in keys]
    known = [size for size in found if size is not None]
    return known if len(known) == len(found) else None


def _with_longest_labels(sample: Sample, encoder: Encoder, most: int | None) -> Sample:
    """The sample asked about its objects and the longest others: what no draw and no chunk exceeds."""
    labels = sample.student.labels or encoder.labels
    if most is None or len(labels) <= most:
        return sample
    there = {item.desc for item in sample.student.objects}
    tokens = {label: len(ids) for label, ids in encoder.label_tokens(labels).items()}
    longest = sorted(labels, key=lambda label: (label not in there, -tokens[label]))
    bare = replace(sample.student, labels=None)
    return replace(sample, student=bare.asking(tuple(longest[:most])))


def _too_long(tokens: int, limit: int, where: str, note: str = "") -> Iterable[Problem]:
    if tokens > limit:
        yield Problem(f"{tokens} tokens{note}, but data.max_tokens is {limit}", where, FIX)


def _answer_too_long(tokens: int, config: Config, where: str) -> Iterable[Problem]:
    is_written = config.infer.mode in ("text", "both") or not config.detection.enabled
    if is_written and tokens > config.infer.max_new_tokens:
        what = f"the answer has {tokens} tokens, but infer.max_new_tokens is {config.infer.max_new_tokens}"
        yield Problem(what, where, f"set infer.max_new_tokens to {tokens} or more: the rest would be missing")


def _drawn(
    dataset: Dataset, encoder: Encoder, counts: Mapping[Split, _Counts], sizes: Sizes
) -> Iterable[Problem]:
    """Samples that exceed the limit with demonstrations that will be drawn for them."""
    data = dataset.config.data
    pool: Split = "train" if data.teachers is None else "teachers"
    turns = counts["train"].turns if "train" in counts else []
    if data.teacher_ratio == 0 or data.num_teachers == 0 or not turns:
        return
    longest = max(turns) + data.num_teachers * max(counts[pool].turns or [0])
    if longest <= data.max_tokens:
        return
    training = TrainingSamples(dataset.config, encoder)
    epochs = _num_epochs(dataset.config, len(training))
    with track("drawing demonstrations", epochs * len(training)) as advance:
        for draw in range(epochs * len(training)):
            epoch, index = divmod(draw, len(training))
            training.set_epoch(epoch)
            yield from _judge_draw(training, index, pool, sizes, data.max_tokens)
            advance(draw + 1, "")


def _judge_draw(
    dataset: TrainingSamples, index: int, pool: Split, sizes: Sizes, limit: int
) -> Iterable[Problem]:
    try:
        own, sample = dataset.samples[index], dataset.sample(index)
    except DataError:  # the pass over the files has named it
        return
    if own.teachers or not sample.teachers:
        return
    shown: list[tuple[Split, str]] = [(pool, turn.image) for turn in sample.teachers]
    known = _known([*shown, ("train", sample.student.image)], sizes)
    if known is not None:
        tokens, _ = dataset.encoder.token_counts(sample, known)
        names = " and ".join(image for _, image in shown)
        yield from _too_long(
            tokens, limit, sample.where, f" in epoch {dataset.epoch} with {names} shown first"
        )


def _num_epochs(config: Config, num_samples: int) -> int:
    """Passes over the samples, as one process trains."""
    train = config.train
    if train.max_steps is None:
        return math.ceil(train.epochs)
    return math.ceil(train.max_steps * train.batch_size * train.gradient_accumulation_steps / num_samples)


def _table(counts: dict[Split, _Counts], config: Config) -> Table:
    rows = []
    for split, found in counts.items():
        if found.totals:
            middle, high = (int(value) for value in np.quantile(found.totals, (0.5, 0.99)))
            rows.append((split, len(found.totals), middle, high, max(found.totals), config.data.max_tokens))
    return Table(
        "Tokens of a sample, before demonstrations are drawn",
        ("split", "samples", "median", "99 %", "most", "limit"),
        rows,
    )
