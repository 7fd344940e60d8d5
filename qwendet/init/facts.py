"""What samples hold, as numbers: all that the settings of a new config are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwendet.checks.config.frames import box_table
from qwendet.checks.config.samples import Split, is_counted
from qwendet.checks.config.scan import Thoroughness, available_cores, scan_files
from qwendet.checks.config.stats import SplitStats, sizes_of
from qwendet.config.schema import Config, DataConfig
from qwendet.data.samples import Sample
from qwendet.data.sources import samples_of
from qwendet.encoding.image_tokens import num_image_tokens
from qwendet.encoding.prompts import answer_text, request_text
from qwendet.encoding.text_tokens import CountTokens
from qwendet.errors import DataError
from qwendet.families.chat import END_OF_TURN, prompt_text
from qwendet.families.family import Family, PixelLimits

OPENED_AT_MOST = 20_000
"""Samples up to which each image's header is read; above, only sizes that the samples declare count."""
COUNTED_AT_MOST = 2_000
"""Samples of a file, evenly spread, whose tokens are counted."""
Size = tuple[int, int]


@dataclass(frozen=True)
class DataFacts:
    """What training and validation samples hold.

    Attributes:
        num_samples: training samples that can be read.
        labels: boxes of each label of the training samples that do not say what is asked, labels sorted.
        are_asked: samples say themselves what is asked.
        boxes: ``(N, 4)`` float: width and height of each training box, then of its image, in pixels of the
            image as displayed; boxes without area or in images of unknown size are left out.
        most_boxes: most boxes of an image, validation included.
        size_of: displayed size of each image, by the file's split and the image's name.
        splits: what was read of each split.
    """

    num_samples: int
    labels: Mapping[str, int]
    are_asked: bool
    boxes: npt.NDArray[np.float64]
    most_boxes: int
    files: Mapping[Split, Path | Sequence[Path]]
    size_of: Mapping[tuple[Split, str], Size]
    splits: Mapping[Split, SplitStats]


def look_at(files: Mapping[Split, Path | Sequence[Path]], root: Path | None = None) -> DataFacts:
    """Read every sample once, by all cores."""
    num_samples = sum(len(samples_of(path)) for path in files.values())
    how = Thoroughness("header" if num_samples <= OPENED_AT_MOST else "none", workers=available_cores())
    config = Config(data=DataConfig(root=None if root is None else str(root)))
    splits, _ = scan_files(config, files, how)
    train = splits["train"]
    return DataFacts(
        num_samples=train.num_parsed,
        labels={label: train.labels[label].num_boxes for label in sorted(train.labels.keys() - train.asked)},
        are_asked=bool(train.asked),
        boxes=_box_sides(train),
        most_boxes=max(map(_most_boxes, splits.values())),
        files=files,
        size_of=sizes_of(splits),
        splits=splits,
    )


def _box_sides(scan: SplitStats) -> npt.NDArray[np.float64]:
    x1, y1, x2, y2, width, height, _ = box_table(scan).astype(np.float64).T
    sides = np.stack([x2 - x1, y2 - y1, width, height], axis=1)
    known: npt.NDArray[np.float64] = sides[(sides > 0).all(axis=1)]
    return known


def _most_boxes(scan: SplitStats) -> int:
    lines = box_table(scan)[:, 6]
    return int(np.unique(lines, return_counts=True)[1].max()) if len(lines) else 0


def count_sample_tokens(
    facts: DataFacts, labels: Sequence[str], limits: PixelLimits, family: Family, count: CountTokens
) -> list[int]:
    """Tokens of each sample asked for ``labels``, its demonstrations included; some, evenly spread."""
    first, further = prompt_tokens(labels, family, count)
    totals = []
    for split, sample in _some_samples(facts):
        turns = (*sample.teachers, sample.student)
        sizes = [facts.size_of.get((split, turn.image)) for turn in turns]
        known = [size for size in sizes if size is not None]
        if len(known) == len(turns):
            prompts = first + further * len(sample.teachers)
            answers = sum(
                num_image_tokens(size, limits)
                + count(
                    answer_text(list(filter(is_counted, turn.objects)), size, limits.resized(size), family)
                    + END_OF_TURN
                )
                for turn, size in zip(turns, known, strict=True)
            )
            totals.append(prompts + answers)
    return totals


def _some_samples(facts: DataFacts) -> Iterator[tuple[Split, Sample]]:
    for split, path in facts.files.items():
        samples = samples_of(path)
        step = -(-len(samples) // COUNTED_AT_MOST)
        for index in range(0, len(samples), step):
            try:
                yield split, samples[index]
            except DataError:  # validate-config names it
                continue


def prompt_tokens(labels: Sequence[str], family: Family, count: CountTokens) -> tuple[int, int]:
    """Tokens around image and answer: of a turn alone with the system prompt, and of one more turn."""
    request = request_text(DataConfig().request, labels)
    alone = prompt_text(family.system_prompt, [request], [], [0], family.answer_prefix)
    two = prompt_text(family.system_prompt, [request] * 2, [""], [0, 0], family.answer_prefix)
    return count(alone), count(two) - count(alone) - count(END_OF_TURN)
