"""Large images cut into windows to train on: ``qwendet data tile``.

    any data set ─► windows of each image, with what is left of its boxes ─► DST/<split>.jsonl, DST/images

A box is cut at the window's edge, and dropped where less than ``min_visible`` of it is left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from random import Random

from qwendet.config.schema import require_tiles
from qwendet.data.archives import Stored, copies, file_at
from qwendet.data.augment import Scene, scene_of
from qwendet.data.formats.convert import (
    MAX_PROBLEMS,
    Conversion,
    ConversionReport,
    refuse_occupied,
    sound_records,
    write_source,
)
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Finding, Item, Record, Source
from qwendet.data.images import MIN_IMAGE_SIDE
from qwendet.data.windows import Window, require_windows, windows_of
from qwendet.errors import ConfigError, DataError, Problem

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe"})
"""Of images whose windows are JPEG files again; those of others are PNG, without loss."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        tiles: side of a window in pixels, or columns x rows.
        overlap: least share of a window's side that its neighbour shows as well.
        min_visible: least share of a box's area that a window must show to keep it.
        negatives: share of the windows without boxes that is kept, drawn by ``seed``.
        seed: of that draw.
        image_dir: folder that the images are in, if not in the data set.
    """

    tiles: int | str
    overlap: float = 0.2
    min_visible: float = 0.3
    negatives: float = 0.1
    seed: int = 0
    image_dir: Path | None = None


def read_tiles(text: str) -> int | str:
    """Read ``--tiles``.

    Raises:
        ConfigError: if it is neither columns x rows nor pixels.

    Example:
        >>> read_tiles("3x2"), read_tiles("640")
        ('3x2', 640)
    """
    value: int | str = int(text) if text.isdecimal() else text
    with suppress(ValueError):
        if require_tiles(value) not in ("off", "auto"):
            return value
    fix = "write columns x rows such as 3x2, or pixels such as 640"
    raise ConfigError(f"expected windows, got {text!r}", "--tiles", fix)


def tile_dataset(src: Path, dst: Path, how: Tiling) -> ConversionReport:
    """Cut the images of a data set into windows, split by split; complete or not at all.

    Args:
        src: a data set of any format; stays as it is.
        dst: a folder that is absent or empty.
        how: the windows.

    Raises:
        ConfigError: for windows that would cut no image.
        DataError: if the data set is broken, or two splits share an image; nothing is left behind then.
    """
    refuse_occupied(dst)
    records = sound_records(open_source(src, image_dir=how.image_dir), f"looking at {src.name}")
    sizes: set[tuple[int, int]] = set()
    splits: dict[Stored, set[str]] = defaultdict(set)
    for record in records:
        turn = record.turn
        sizes |= {turn.declared_size} if turn.declared_size else set()
        path = turn.root / turn.image
        splits[file_at(path) or path].add(record.split)
    require_windows(sizes, how.tiles, how.overlap, MIN_IMAGE_SIDE, "--tiles")
    _require_apart(splits)
    records = sound_records(open_source(src, image_dir=how.image_dir), f"cutting {src.name}")
    return write_source(Source(src, 0, _windows(records, how, src)), "", dst, Conversion())


def _require_apart(splits: dict[Stored, set[str]]) -> None:
    """Refuse an image that is in two splits, under one name or two.

    Raises:
        DataError: naming it.
    """
    together: dict[object, set[str]] = defaultdict(set)
    keys = copies(splits)
    for file, key in keys.items():
        together[key] |= splits[file]
    problems = [
        Problem(
            f"the same image is in {' and '.join(sorted(together[key]))}",
            str(file),
            "qwendet data split SRC DST keeps identical images together",
        )
        for file, key in keys.items()
        if len(together[key]) > 1
    ]
    if problems:
        raise DataError.of(problems[:MAX_PROBLEMS])


def _windows(records: Iterator[Record], how: Tiling, src: Path) -> Iterator[Item]:
    """A record of each window that is kept, and what became of boxes and empty windows."""
    empty: dict[str, Counter[bool]] = defaultdict(Counter)  # windows of a split by whether they were kept
    is_any = False
    for record in records:
        turn, where = record.turn, record.where
        scene = scene_of(turn, where)
        windows = windows_of(scene.image.size, how.tiles, how.overlap)
        yield from record.findings
        for window in windows:
            left, top, right, bottom = window
            view = scene.seen(window, (right - left, bottom - top), how.min_visible)
            is_kept = bool(view.objects)
            if not is_kept:
                is_kept = Random(f"{how.seed} {turn.image} {window}").random() < how.negatives
                empty[record.split][is_kept] += 1
            if is_kept:
                is_any = True
                yield _record(record, window, view)
        for item in turn.objects:
            if not any(_holds(window, item.bbox_2d) for window in windows):
                yield Finding("cut_everywhere", where, f"{list(item.bbox_2d)} ({item.desc})")
    if not is_any:
        raise DataError("no window is left: none has a box", str(src), "raise --negatives")
    for split, counts in empty.items():
        yield Finding("empty_windows", split, f"{counts[True]} of {counts.total()}")


def _record(record: Record, window: Window, view: Scene) -> Record:
    """A window as an image of its own."""
    path, turn = PurePosixPath(record.name), record.turn
    suffix = path.suffix if path.suffix.lower() in JPEG_SUFFIXES else ".png"
    width, height = view.image.size
    part = replace(turn, image=f"{turn.image} {window}", objects=view.objects, pixels=view.image)
    part = replace(part, width=width, height=height)
    name = str(path.with_name(f"{path.stem}_{window[0]}_{window[1]}{suffix}"))
    return Record(record.split, part, record.where, name)


def _holds(window: Window, box: tuple[float, float, float, float]) -> bool:
    (left, top, right, bottom), (x1, y1, x2, y2) = window, box
    return left <= x1 and top <= y1 and x2 <= right and y2 <= bottom
