"""Samples: one JSON object a line, read by byte offset, every mistake named with file and line.

    {"images": ["a.jpg"], "objects": [{"bbox_2d": [x1, y1, x2, y2], "desc": "red circle"}]}
    {"teachers": [{"images": [...], "objects": [...]}], "student": {"images": [...], "objects": [...]}}

``bbox_2d`` is xyxy in pixels of the image as displayed (EXIF orientation applied); an object may have a
``polygon`` or COCO's ``rle`` beside it, which are kept and not trained on. ``"labels": [...]`` beside
``images`` is what is asked about this image; without it that is the label set of the config. What
``neg_labels`` and ``not_exhaustive_labels`` are says :class:`Turn`.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from qwendet.data.characters import SPACES, unseen_character
from qwendet.data.segmentation import Segmentation, read_segmentation, require_size
from qwendet.errors import DataError, expect

SPECIAL_TOKEN_MARKS = ("<|", "|>")
MAX_SIDE = 2**31 - 1  # pixels; formats of images cannot say more
TURN_KEYS = frozenset(
    {"images", "objects", "width", "height", "labels", "neg_labels", "not_exhaustive_labels"}
)
CONVERSATION_KEYS = frozenset({"messages", "conversations", "instruction", "query"})
SAMPLE_KEYS = frozenset({"teachers", "student"})
EXAMPLE_LINE = '{"images": ["a.jpg"], "objects": [{"bbox_2d": [x1, y1, x2, y2], "desc": "label"}]}'
OBJECT_KEYS = frozenset({"bbox_2d", "desc", "crowd", "difficult", "area", "polygon", "rle", "frequency"})
FREQUENCIES = ("r", "c", "f")  # LVIS's words for rare, common and frequent


@dataclass(frozen=True, slots=True)
class DetectedObject:
    """One box and what it shows.

    Attributes:
        bbox_2d: x1, y1, x2, y2; the frame is that of whoever holds the object (a sample's objects
            are in pixels of the image as displayed, a parsed answer's in the model's image).
        desc: the label text.
        crowd: the box holds many objects (COCO ``iscrowd``); neither trained on nor scored.
        difficult: VOC ``difficult``; trained on, not scored.
        area: COCO ``area``, what the object itself covers, in square pixels of the image as displayed; by it
            scores tell small from large. ``None`` takes the box's. It makes no other object of one.
        segmentation: the polygons or the mask that its source has, in the frame of the box.
        frequency: LVIS's of the label: ``r``, ``c`` or ``f``.
    """

    bbox_2d: tuple[float, float, float, float]
    desc: str
    crowd: bool = False
    difficult: bool = False
    area: float | None = field(default=None, compare=False)
    segmentation: Segmentation | None = field(default=None, compare=False, repr=False)
    frequency: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """An image and the objects in it: one question and its answer.

    Attributes:
        image: path as written in the file, relative to ``root``.
        objects: the boxes in it; empty for a negative.
        width: declared width of the displayed image in pixels, if the file says so.
        height: declared height.
        labels: what is asked, at least one; ``None`` is what the student is asked, and there the label set.
        root: folder that the image's path starts from and must stay in.
        pixels: the image itself, where it is not the file's: training images that were augmented.
        window: xyxy pixels of the file's image as displayed, where the turn shows that part of it alone; then
            ``width`` and ``height`` are the window's.
        neg_labels: were looked for and not found. Where it is set, annotations are federated, as LVIS's: of a
            label that is neither here nor among the objects nothing is known.
        not_exhaustive_labels: some of their objects may have no box.
    """

    image: str
    objects: tuple[DetectedObject, ...]
    width: int | None = None
    height: int | None = None
    labels: tuple[str, ...] | None = None
    root: Path = Path()
    pixels: Image.Image | None = field(default=None, compare=False, repr=False)
    window: tuple[int, int, int, int] | None = None
    neg_labels: tuple[str, ...] | None = None
    not_exhaustive_labels: tuple[str, ...] = ()

    @property
    def declared_size(self) -> tuple[int, int] | None:
        """Width and height, if the file says both."""
        return (self.width, self.height) if self.width and self.height else None

    def require_masks_of(self, size: tuple[int, int], where: str, path: str = "") -> None:
        """Refuse masks of images of another size."""
        for index, item in enumerate(self.objects):
            require_size(item.segmentation, size, where, f"{path}objects[{index}].rle")

    def asking(self, labels: tuple[str, ...]) -> Turn:
        """The turn with what is asked, ``labels`` where it does not say, and objects of that alone."""
        asked = self.labels or labels
        found = (item for item in self.objects if item.desc in asked)
        return replace(self, labels=asked, objects=tuple(found))


@dataclass(frozen=True, slots=True)
class Sample:
    """Demonstrations (``teachers``) followed by the turn to be learned or answered (``student``)."""

    student: Turn
    teachers: tuple[Turn, ...] = ()
    where: str = ""

    def asking(self, labels: tuple[str, ...]) -> Sample:
        """The sample with what is asked in each turn; ``labels`` is the label set."""
        student = self.student.asking(labels)
        assert student.labels is not None
        teachers = tuple(turn.asking(student.labels) for turn in self.teachers)
        return replace(self, student=student, teachers=teachers)


def parse_sample(line: str, where: str, root: Path = Path()) -> Sample:
    """Read one line.

    Args:
        line: a JSON object.
        where: ``file:line``, put into errors and into the sample.
        root: folder that image paths start from.

    Raises:
        DataError: naming the field, for JSON or values that do not fit.

    Example:
        >>> parse_sample('{"images": ["a.jpg"], "objects": []}', "x.jsonl:1").student.image
        'a.jpg'
    """
    try:
        record = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        what = f"expected one JSON object a line, got {line[:60]!r} ({error})"
        fix = "write each sample on one line of its own; a file cut in mid-line must be written again"
        raise DataError(what, where, fix) from error
    if not isinstance(record, dict):
        what = f"expected a JSON object, got {type(record).__name__}"
        raise DataError(what, where, f"write {EXAMPLE_LINE}")
    if CONVERSATION_KEYS & record.keys():
        what = "this is a conversation, as other tools train on, and no sample"
        raise DataError(what, where, "qwendet data convert FILE DIR makes samples of the file")
    if "images" in record:
        return Sample(student=_parse_turn(record, where, root, ""), where=where)
    _refuse_unknown_keys(record, SAMPLE_KEYS if "student" in record else SAMPLE_KEYS | TURN_KEYS, where, "")
    if "student" not in record:
        raise DataError('expected "images" or "student", got neither', where, f"write {EXAMPLE_LINE}")
    teachers, fix = record.get("teachers", []), 'write "teachers": [{"images": […], "objects": […]}]'
    expect(isinstance(teachers, list), "teachers", "a list", teachers, where, fix)
    return Sample(
        student=_parse_turn(record["student"], where, root, "student."),
        teachers=tuple(
            _parse_turn(turn, where, root, f"teachers[{index}].") for index, turn in enumerate(teachers)
        ),
        where=where,
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a key written twice is an error instead of the last one winning."""
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is written twice")
    return record


def _refuse_unknown_keys(record: dict[str, Any], known: frozenset[str], where: str, path: str) -> None:
    unknown = sorted(set(record) - known)
    if unknown:
        what = f"unknown key {path}{unknown[0]}; known here: {', '.join(sorted(known))}"
        raise DataError(what, where, "remove it or correct its name")


def _parse_turn(record: Any, where: str, root: Path, path: str) -> Turn:
    fix = 'write {"images": ["a.jpg"], "objects": […]}'
    expect(isinstance(record, dict), path[:-1], "an object", record, where, fix)
    _refuse_unknown_keys(record, TURN_KEYS, where, path)
    images = record.get("images")
    is_one = isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) and images[0] != ""
    fix = "one image a turn: boxes of several images could not be kept apart"
    expect(is_one, f"{path}images", "a list of one path", images, where, fix)
    objects, fix = record.get("objects"), 'write "objects": [] for a negative'
    expect(isinstance(objects, list), f"{path}objects", "a list", objects, where, fix)
    found = tuple(_parse_object(item, where, f"{path}objects[{index}]") for index, item in enumerate(objects))
    absent, partial = (
        _parse_texts(record[key], where, f"{path}{key}") if key in record else None
        for key in ("neg_labels", "not_exhaustive_labels")
    )
    require_absent(absent or (), found, where, f"{path}neg_labels")
    turn = Turn(
        image=images[0],
        objects=found,
        labels=_parse_labels(record.get("labels"), found, where, path),
        neg_labels=absent,
        not_exhaustive_labels=partial or (),
        width=_parse_size(record, "width", where, path),
        height=_parse_size(record, "height", where, path),
        root=root,
    )
    if turn.declared_size:
        turn.require_masks_of(turn.declared_size, where, path)
    return turn


def _parse_labels(
    value: Any, objects: Sequence[DetectedObject], where: str, path: str
) -> tuple[str, ...] | None:
    if value is None:
        return None
    labels = _parse_texts(value, where, f"{path}labels", at_least=1)
    for index, item in enumerate(objects):
        if item.desc not in labels:
            shown = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
            what = f"{path}objects[{index}].desc: {item.desc!r} is not among the labels of the sample"
            fix = "add it to labels, or remove the object: nobody asks for it"
            raise DataError(f"{what} ({shown})", where, fix)
    return labels


def _parse_texts(value: Any, where: str, path: str, at_least: int = 0) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) >= at_least
    expect(is_list, path, "a list of label texts", value, where, "name labels, or leave it out")
    labels = tuple(check_label(label, where, f"{path}[{at}]") for at, label in enumerate(value))
    twice = next((label for at, label in enumerate(labels) if label in labels[:at]), None)
    if twice is not None:
        raise DataError(f"{path} names {twice!r} twice", where, "name each label once")
    return labels


def require_absent(absent: Collection[str], objects: Sequence[DetectedObject], where: str, path: str) -> None:
    """Refuse labels that are said to be absent and have an object."""
    there = next((item.desc for item in objects if item.desc in absent), None)
    if there is not None:
        what = f"{path} says that {there!r} is absent, but there is an object of it"
        raise DataError(what, where, "remove the one or the other")


def _parse_size(record: dict[str, Any], key: str, where: str, path: str) -> int | None:
    value: int | None = record.get(key)
    is_size = value is None or (type(value) is int and 1 <= value <= MAX_SIDE)
    expect(is_size, f"{path}{key}", "a positive integer", value, where, "give pixels, or leave it out")
    return value


def _parse_object(record: Any, where: str, path: str) -> DetectedObject:
    fix = 'write {"bbox_2d": [x1, y1, x2, y2], "desc": "label"}'
    expect(isinstance(record, dict), path, "an object", record, where, fix)
    _refuse_unknown_keys(record, OBJECT_KEYS, where, f"{path}.")
    return DetectedObject(
        bbox_2d=_parse_box(record.get("bbox_2d"), where, f"{path}.bbox_2d"),
        desc=check_label(record.get("desc"), where, f"{path}.desc"),
        crowd=_parse_flag(record, "crowd", where, path),
        difficult=_parse_flag(record, "difficult", where, path),
        area=_parse_area(record.get("area"), where, f"{path}.area"),
        segmentation=read_segmentation(record, where, path),
        frequency=parse_frequency(record.get("frequency"), where, f"{path}.frequency"),
    )


def parse_frequency(value: Any, where: str, path: str) -> str | None:
    """LVIS's frequency of a label; raises :class:`DataError` for another one."""
    is_one = value is None or value in FREQUENCIES
    expect(is_one, path, "r, c or f", value, where, "correct it or leave it out")
    return None if value is None else str(value)


def _parse_flag(record: dict[str, Any], key: str, where: str, path: str) -> bool:
    value: bool = record.get(key, False)
    fix = "write true, or leave it out"
    expect(isinstance(value, bool), f"{path}.{key}", "true or false", value, where, fix)
    return value


def _parse_area(value: Any, where: str, path: str) -> float | None:
    is_area = value is None or (type(value) in (int, float) and 0 < value <= sys.float_info.max)
    fix = "give what the object covers, or leave it out"
    expect(is_area, path, "square pixels above 0", value, where, fix)
    return None if value is None else float(value)


def _parse_box(value: Any, where: str, path: str) -> tuple[float, float, float, float]:
    is_box = isinstance(value, list) and len(value) == 4 and set(map(type, value)) <= {int, float}
    fix = "give four numbers, in pixels and not in quotes"
    expect(is_box, path, "[x1, y1, x2, y2]", value, where, fix)
    # NaN, infinity and integers beyond float are none.
    are_finite = all(abs(number) <= sys.float_info.max for number in value)
    expect(are_finite, path, "finite numbers", value, where, "remove this box")
    x1, y1, x2, y2 = map(float, value)
    fix = "boxes are [x1, y1, x2, y2], not [x, y, width, height]; remove boxes without area"
    expect(x1 < x2 and y1 < y2, path, "x1 < x2 and y1 < y2", value, where, fix)
    return x1, y1, x2, y2


def check_label(value: Any, where: str, path: str) -> str:
    """Return a label text, blanks of every kind as one kind; or refuse one that is empty or no plain text.

    Raises:
        DataError: for anything but a non-empty string without ``<|``, ``|>`` or control characters.
    """
    is_text = isinstance(value, str) and value.strip() != ""
    expect(is_text, path, "a label text", value, where, "name what the box shows")
    if any(mark in value for mark in SPECIAL_TOKEN_MARKS):
        fix = "remove <| and |>: the tokenizer would read them as control tokens"
        raise DataError(f"{path}: the label {value!r} holds special-token text", where, fix)
    unseen = unseen_character(value)
    if unseen is not None:
        what = f"{path}: the label {value!r} holds control characters ({unseen})"
        raise DataError(what, where, "remove them: line breaks, escapes, and what nobody sees")
    # NFC as Qwen's tokenizer does: answers are compared with labels.
    return unicodedata.normalize("NFC", value.translate(SPACES))


class SampleLine(NamedTuple):
    """A sample as it is written, or as its source would write it.

    Attributes:
        raw: a JSON object; an error where the source cannot tell one.
        where: its place.
        root: folder that image paths start from.
    """

    raw: bytes | DataError
    where: str
    root: Path

    def parse(self) -> Sample:
        """The sample; raises :class:`DataError` if it is broken."""
        if isinstance(self.raw, DataError):
            raise self.raw
        try:
            text = self.raw.decode("utf-8-sig")  # Windows editors put a mark in front of the first line
        except UnicodeDecodeError as error:
            what = f"the line is not UTF-8 ({error.reason})"
            raise DataError(what, self.where, "save it as UTF-8") from error
        return parse_sample(text, self.where, self.root)


class SampleSource(ABC):
    """Samples by index, none of which is held in memory.

    Attributes:
        path: what a user calls it.
        files: what it lies in.
        form: how boxes of another tool are read, in words; empty where they are ours.
    """

    path: Path
    files: Sequence[Path] = ()
    form = ""

    @property
    def parts(self) -> Sequence[SampleSource]:
        """The sources that it joins, else itself."""
        return [self]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def line(self, index: int) -> SampleLine:
        """A sample as it is written."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The place of a sample, such as ``file:line``."""

    @abstractmethod
    def line_bytes(self) -> Sequence[int]:
        """Length of each sample's line: a cheap stand-in for the length of its answer."""

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Parse the sample at ``index``; raises :class:`DataError` if it is broken."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.line(index).parse()


class SampleFile(SampleSource):
    """The samples of a JSONL file.

    Only number and byte offset of each non-blank line are kept (16 bytes a sample).

    Args:
        path: the JSONL file.
        root: folder that image paths start from; ``None`` is the file's own.

    Raises:
        DataError: if the file is absent, unreadable, or holds no sample and not ``may_be_empty``.
    """

    def __init__(self, path: Path, root: Path | None = None, *, may_be_empty: bool = False) -> None:
        self.path = path
        self.root = path.parent if root is None else root
        self._offsets = array("Q")
        self._lines = array("Q")
        try:
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        self._offsets.append(offset)
                        self._lines.append(number)
                    offset += len(line)
        except OSError as error:
            what = f"cannot read the sample file ({error.strerror})"
            raise DataError(what, str(path), "correct the path, or fix the permissions") from error
        if not self._offsets and not may_be_empty:
            raise DataError("the file holds no samples", str(path), "give a file with one sample a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def line_bytes(self) -> list[int]:
        """Bytes of each line, and of blank ones behind it."""
        ends = [*self._offsets[1:], self.path.stat().st_size]
        return [end - start for start, end in zip(self._offsets, ends, strict=True)]

    def where(self, index: int) -> str:
        """``file:line``."""
        return f"{self.path}:{self._lines[index]}"

    def line(self, index: int) -> SampleLine:
        """The line."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return SampleLine(file.readline(), self.where(index), self.root)
