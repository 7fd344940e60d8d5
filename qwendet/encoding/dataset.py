"""The training samples as a map-style dataset: read, given demonstrations and questions, encoded."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from random import Random

from qwendet.config.schema import Config
from qwendet.data.augment import Augmenter, Scene, scene_of
from qwendet.data.images import image_size
from qwendet.data.labels import choose_labels
from qwendet.data.mixture import mixed, repeats
from qwendet.data.samples import Sample, SampleSource, Turn
from qwendet.data.sources import samples_of
from qwendet.data.teachers import choose_teachers, without_own_image
from qwendet.encoding.encode import EncodedSample, Encoder, TooManyTokensError
from qwendet.encoding.resize import require_inside
from qwendet.errors import ConfigError, DataError, Problem

logger = logging.getLogger("qwendet")


class TrainingSamples:
    """Encoded training samples by index; demonstrations, labels and augmentation change with the epoch.

    Whoever asks for an index gets what training gets; :meth:`sample` is the same without augmentation.

    Args:
        config: the resolved config.
        encoder: encodes a sample.
        indices: samples to use; ``None`` is all.

    Attributes:
        indices: of the samples of this epoch: as they lie, then what is taken again.
    """

    def __init__(self, config: Config, encoder: Encoder, indices: Sequence[int] | None = None) -> None:
        self.config = config
        self.encoder = encoder
        self.samples = open_samples(config, "train")
        self.pool = teacher_pool(config, self.samples)
        self._usable = range(len(self.samples)) if indices is None else indices
        self._often = None
        if config.data.repeat_rare is not None:
            self._often = repeats(
                [*map(self._shown, self._usable)], config.data.repeat_rare, config.train.seed
            )
        self.set_epoch(0)
        self.augmenter = None if config.data.augment == "off" else Augmenter(config.data)

    def _shown(self, index: int) -> set[str]:
        """Labels of a sample; none of a broken one, which is reported where it is read."""
        with suppress(DataError):
            return {item.desc for item in self.samples[index].student.objects}
        return set()

    def _number(self, position: int) -> int:
        """What is drawn for a sample depends on: its index, or another number where it is taken again."""
        again = position >= self._num_samples
        return len(self.samples) + position if again else self.indices[position]

    def set_epoch(self, epoch: int) -> None:
        """Draw demonstrations, and what weights take, anew; called by the Trainer as each epoch begins."""
        self.epoch = epoch
        weights = [source.weight for source in self.config.data.sources("train")]
        if self._often is None and set(weights) == {1}:
            self.indices, self._num_samples = self._usable, len(self._usable)
            return
        parts = self.samples.parts if len(weights) > 1 else [self.samples]
        starts = list(accumulate(map(len, parts), initial=0))
        seed = self.config.train.seed
        self.indices, self._num_samples = mixed(self._usable, self._often, starts, weights, seed, epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> EncodedSample:
        """Read, augment and encode one sample."""
        sample = self._with_teachers(position)
        if self.augmenter is not None:
            with suppress(TooManyTokensError):  # such a one is taken as it is
                moved = self._asking(self.augmented(sample, position), position)
                return self.encoder.encode(moved, with_answer=True)
        return self.encoder.encode(self._asking(sample, position), with_answer=True)

    def augmented(self, sample: Sample, position: int) -> Sample:
        """A sample as ``data.augment`` changes it in this epoch, each of its images for itself.

        One that would have more objects than the head has queries stays as it is.
        """
        moved = [
            self._moved(turn, sample.where, f"{self._number(position)}/{number}")
            for number, turn in enumerate((sample.student, *sample.teachers))
        ]
        most = max(self.config.detection.num_queries, len(sample.student.objects))
        return (
            sample
            if len(moved[0].objects) > most
            else replace(sample, student=moved[0], teachers=tuple(moved[1:]))
        )

    def _moved(self, turn: Turn, where: str, key: str) -> Turn:
        assert self.augmenter is not None
        generator = Random(f"augment/{self.config.train.seed}/{self.epoch}/{key}")
        return self.augmenter.turn(turn, where, generator, self._another)

    def _another(self, generator: Random) -> Scene:
        """The student's image of a training sample, for a mosaic."""
        other = self.samples[generator.choice(self.indices)]
        return scene_of(other.student, other.where)

    def sample(self, position: int) -> Sample:
        """The sample with its demonstrations and the labels that it is asked in this epoch."""
        return self._asking(self._with_teachers(position), position)

    def _asking(self, sample: Sample, position: int) -> Sample:
        generator = Random(f"labels/{self.config.train.seed}/{self.epoch}/{self._number(position)}")
        most = self.config.data.labels_per_request
        return replace(sample, student=choose_labels(sample.student, self.encoder.labels, most, generator))

    def _with_teachers(self, position: int) -> Sample:
        sample = self.samples[self.indices[position]]
        if sample.teachers or self.config.data.teacher_ratio == 0:
            return sample
        drawn = (self.pool[at].student for at in self._drawn(position))
        count = self.config.data.num_teachers
        shown = without_own_image(drawn, sample.student, count, self.encoder.labels)
        return replace(sample, teachers=shown)

    def lengths(self) -> list[tuple[int, int]]:
        """Images that are drawn for each sample in this epoch, and bytes of all its annotations."""
        own, pool = self.samples.line_bytes(), self.pool.line_bytes()
        lengths = []
        for position, index in enumerate(self.indices):
            drawn = self._drawn(position)[: self.config.data.num_teachers]
            lengths.append((len(drawn), own[index] + sum(pool[at] for at in drawn)))
        return lengths

    def _drawn(self, position: int) -> list[int]:
        """Samples of the pool that are drawn for a sample in this epoch, whether or not it has its own."""
        own = self.pool is self.samples  # so a sample must not draw itself
        # No sample that was left out, and none twice.
        pool = self._usable if own else range(len(self.pool))
        chosen = choose_teachers(
            seed=self.config.train.seed,
            epoch=self.epoch,
            index=self._number(position),
            pool_size=len(pool),
            count=self.config.data.num_teachers + 1,  # one to spare: the pool may hold the sample's own image
            ratio=self.config.data.teacher_ratio,
            exclude=bisect_left(pool, self.indices[position]) if own else None,
        )
        return [pool[at] for at in chosen]


def training_samples(config: Config, encoder: Encoder) -> TrainingSamples:
    """The samples to train on; ``data.on_bad_sample: skip`` leaves out broken ones, and lists them."""
    usable = None
    if config.data.on_bad_sample == "skip":
        usable, problems = usable_samples(open_samples(config, "train"), config.data.labels or ())
        logger.warning("data.on_bad_sample is skip: %d samples left out", len(problems))
        for problem in problems:
            logger.warning("left out: %s: %s", problem.where, problem.what)
    samples = TrainingSamples(config, encoder, usable)
    for part in samples.samples.parts:
        if part.form:
            logger.warning("%s: boxes are read as %s", part.path, part.form)
    if len(samples) == 0:
        raise ConfigError("no usable training sample is left", "data.train", "fix the samples listed above")
    return samples


def open_samples(config: Config, split: str) -> SampleSource:
    """Open ``data.train``, ``data.val`` or ``data.teachers``."""
    sources = config.data.sources(split)
    if not sources:
        raise ConfigError(f"data.{split} is not set", f"data.{split}", "give the path of a JSONL file")
    root = None if config.data.root is None else Path(config.data.root)
    return samples_of([source.path for source in sources], root, split)


def teacher_pool(config: Config, training_samples: SampleSource) -> SampleSource:
    """Samples whose student turns are demonstrations: those that the config names, else the training ones."""
    if config.data.teachers is None:
        return training_samples
    return open_samples(config, "teachers")


def usable_samples(samples: SampleSource, labels: Sequence[str]) -> tuple[list[int], list[Problem]]:
    """Indices of the usable samples, and what is wrong with each of the others.

    For ``data.on_bad_sample: skip``; images are read as far as their header and end marker.
    """
    usable: list[int] = []
    problems: list[Problem] = []
    for index in range(len(samples)):
        try:
            _require_usable(samples[index], frozenset(labels))
        except DataError as error:
            problems += error.problems
        else:
            usable.append(index)
    return usable, problems


def _require_usable(sample: Sample, labels: frozenset[str]) -> None:
    for turn in (*sample.teachers, sample.student):
        size = image_size(turn.image, turn.root, sample.where)
        if turn.declared_size not in (None, size):
            declared = "×".join(map(str, turn.declared_size or ()))
            what = f"{turn.image!r} is {size[0]}×{size[1]}, declared as {declared}"
            raise DataError(what, sample.where, "correct width and height, and see that the boxes fit")
        require_inside(turn, size, sample.where)
        known = labels.union(turn.labels or (), sample.student.labels or ())
        strange = sorted({item.desc for item in turn.objects} - known)
        if strange:
            what = f"the label {strange[0]!r} is not in the label set"
            raise DataError(what, sample.where, "add it to data.labels or correct it")
