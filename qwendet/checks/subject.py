"""What checks of the model look at: the training build and a few samples, made once and when asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, wraps
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from qwendet.config.schema import Config
from qwendet.data.samples import Sample, Turn
from qwendet.encoding.dataset import TrainingSamples
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import ConfigError, DataError
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.training.build import create_trainer, trainer_of
from qwendet.training.trainer import DetectionTrainer

Made = TypeVar("Made")
SMALL = 50_000_000
"""Parameters up to which a model is copied, moved and computed in float64."""
LOOKED_AT = 64
"""Training samples that the few are chosen from: the first ones."""
WANTED = 4
"""Samples of the batch that checks run on."""


class Subject:
    """One config's model and first samples; every part is built at most once."""

    def __init__(self, config: Config, folder: Path, bundle: Bundle | None = None) -> None:
        self.config = config
        self.folder = folder
        self._bundle = bundle
        self.made: dict[Callable[[Subject], Any], Any] = {}

    @cached_property
    def trainer(self) -> DetectionTrainer:
        """The trainer that ``train`` would use, but for ``train.output_dir``: nothing is written there."""
        if self._bundle is None:
            return create_trainer(self._elsewhere(self.config))
        return trainer_of(replace(self._bundle, config=self._elsewhere(self._bundle.config)))

    @cached_property
    def bundle(self) -> Bundle:
        """The training build on its device, its groups frozen."""
        return self.trainer.bundle

    @property
    def in_words(self) -> str:
        """Model, type, attention, device, and how long the samples are."""
        model, lengths = self.bundle.config.model, [str(len(item.input_ids)) for item in self.encoded]
        form = f"{model.dtype}, {model.attn_implementation} attention on {model.device}"
        return f"{self.config.model.path} in {form}; samples of {', '.join(lengths)} tokens"

    @cached_property
    def collator(self) -> Any:
        """What makes the trainer's batches."""
        return self.trainer.data_collator

    @cached_property
    def is_small(self) -> bool:
        """Whether the model may be copied, and computed with as often as is useful."""
        lora = self.bundle.config.model.lora
        if lora is not None and lora.load_in_4bit:
            return False
        return sum(parameter.numel() for parameter in self.bundle.detector.parameters()) <= SMALL

    @cached_property
    def samples(self) -> list[Sample]:
        """At most four training samples: with and without demonstrations, with and without boxes.

        A kind that the first samples lack is made of one of them, and ``where`` says so.
        """
        first = list(islice(self._readable(), LOOKED_AT))
        if not first:
            raise ConfigError("there is no training sample", "data.train", "give a file with samples")
        chosen: list[Sample] = []
        for wanted in (_has_demonstrations, _is_bare, _is_negative):
            found = next((sample for sample in first if wanted(sample) and sample not in chosen), None)
            made = found or self._made(wanted, first)
            if made is not None:
                chosen.append(made)
        others = (sample for sample in first if sample not in chosen)
        return [*chosen, *islice(others, WANTED - len(chosen))]

    @cached_property
    def encoded(self) -> list[EncodedSample]:
        """:attr:`samples` with their answers, as training encodes them."""
        encoder = self.bundle.encoder()
        return [encoder.encode(sample, with_answer=True) for sample in self.samples]

    def _elsewhere(self, config: Config) -> Config:
        train = config.train.model_copy(update={"output_dir": str(self.folder / "run")})
        return config.model_copy(update={"train": train})

    def _readable(self) -> Iterator[Sample]:
        """The training samples of the first epoch, in the file's order."""
        dataset = TrainingSamples(self.bundle.config, self.bundle.encoder())
        must_fit = self.bundle.config.data.on_bad_sample == "error"
        for position in range(len(dataset)):
            try:
                sample = dataset.sample(position)
            except DataError:
                if must_fit:
                    raise
                continue
            if must_fit or self._fits(sample):
                yield sample

    def _made(self, wanted: Callable[[Sample], bool], first: list[Sample]) -> Sample | None:
        """A sample of a kind that is not there; ``None`` if the model's limits leave no room for one."""
        base = next((sample for sample in first if sample.student.objects), first[0])
        if wanted is _has_demonstrations:
            other = next((sample for sample in first if sample.student != base.student), base)
            made = _named(replace(base, teachers=(other.student,)), "another sample put before it")
            if not self._fits(made):  # limits made for single samples leave little room for a second image
                short = replace(
                    base, student=_first_object(base.student), teachers=(_first_object(other.student),)
                )
                made = _named(short, "another sample put before it, one box each")
        elif wanted is _is_negative:
            made = _named(replace(base, student=replace(base.student, objects=())), "its boxes taken away")
        else:
            made = _named(replace(base, teachers=()), "its demonstrations taken away")
        return made if self._fits(made) else None

    def _fits(self, sample: Sample) -> bool:
        try:
            self.bundle.encoder().encode(sample, with_answer=True)
        except DataError:
            return False
        return True


def once(make: Callable[[Subject], Made]) -> Callable[[Subject], Made]:
    """Remember what ``make`` returned for each subject: computations that several checks share."""

    @wraps(make)
    def remembered(subject: Subject) -> Made:
        if make not in subject.made:
            subject.made[make] = make(subject)
        made: Made = subject.made[make]
        return made

    return remembered


def as_in_training(detector: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """Set the mode that training computes in, but for the adapter's dropout, which is meant to be random."""
    detector.train()
    for name, module in detector.named_modules():
        if "lora_dropout" in name:
            module.eval()
    return detector


@contextmanager
def temporary_subject(config: Config, bundle: Bundle | None = None) -> Iterator[Subject]:
    """A subject whose files are removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="qwendet-") as folder:
        yield Subject(config, Path(folder), bundle)


def _has_demonstrations(sample: Sample) -> bool:
    return bool(sample.teachers) and bool(sample.student.objects)


def _is_bare(sample: Sample) -> bool:
    return not sample.teachers and bool(sample.student.objects)


def _is_negative(sample: Sample) -> bool:
    return not sample.student.objects


def _first_object(turn: Turn) -> Turn:
    return replace(turn, objects=turn.objects[:1])


def _named(sample: Sample, how: str) -> Sample:
    return replace(sample, where=f"{sample.where} ({how})")
