"""Conversations about images as a data set: each image whose boxes they ask for is a sample.

record ─► Conversation(messages, images) ─► boxes of each answer ─► frame of the file ─► a Record an image
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

from qwendet.answers.format import parse_answer
from qwendet.data.formats.box_frames import NAMES, BoxFrame, FrameEvidence, to_pixels
from qwendet.data.formats.coco_layout import end_in
from qwendet.data.formats.conversation_layouts import (
    IMAGE,
    Conversation,
    is_conversations,
    read_conversation,
)
from qwendet.data.formats.fitting import is_absolute, join_image
from qwendet.data.formats.json_stream import records
from qwendet.data.formats.records import MEASURED, WHOLE, Box, Finding, Item, Labels, Record, Source, split_of
from qwendet.data.images import image_size
from qwendet.data.samples import DetectedObject, Turn, check_label
from qwendet.errors import DataError, Problem
from qwendet.families.chat import END_OF_THOUGHT, LABEL_TEXT
from qwendet.files import list_folder

ASKED = re.compile(re.escape(LABEL_TEXT.format(label="@")).replace("@", "(.*?)"), re.DOTALL)
NOTHING = re.compile(r"\s*(?:```(?:json)?)?\s*\[\s*\]\s*(?:```)?\s*")
"""An answer that says that there are none."""
MAX_FILES = 20
"""Files that a folder of conversations has at most."""
MAX_LABELS = 300
"""With more, labels are descriptions of single things, and no question asks for all of them."""


def conversation_files(path: Path) -> dict[str, Path]:
    """Files of conversations by split: ``path`` itself, or those of a folder."""
    files = [path] if path.is_file() else list_folder(path)
    files = [file for file in files if file.suffix.lower() in (".json", ".jsonl")]
    found: dict[str, Path] = {}
    for file in filter(is_conversations, files if len(files) <= MAX_FILES else ()):
        other = found.setdefault(split_of(file.stem) or WHOLE, file)
        if other != file:
            what = f"expected one file of conversations a split, got {other.name} and {file.name}"
            raise DataError(what, str(path), "give one of them")
    return found


def open_conversations(path: Path, image_dir: Path | None = None, frame: BoxFrame | None = None) -> Source:
    """Open files of conversations.

    What a file says of an image becomes one record. Answers without boxes (captions, questions) are left out
    and counted.
    """
    files = conversation_files(path)
    if not files:
        fix = "give a file, JSON or JSONL, whose records have messages, conversations or an instruction"
        raise DataError("expected conversations, got none", str(path), fix)
    root = image_dir or (path if path.is_dir() else path.parent)

    def items() -> Iterator[Item]:
        for split, file in files.items():
            yield from _File(file, split, root, seek=image_dir is not None).items(frame)

    return Source(root, 0, items())


Answer = tuple[str, str, str, Sequence[tuple[Box, str]] | None]
"""Image, question, place and boxes; None instead of boxes if it is about none."""


@dataclass
class _Annotated:
    """What a file says of one image: boxes with label, place and declared frame, and the labels asked for."""

    where: str
    boxes: list[tuple[Box, str, str, BoxFrame | None]] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)


class _File:
    """One file, read twice: for what all of it tells, then image by image.

    Between the passes an image's path, its size and how many conversations are about it are kept; in the
    second one what has been said of images that others will speak of.
    """

    def __init__(self, file: Path, split: str, root: Path, *, seek: bool) -> None:
        self.file, self.split, self.root, self.seek = file, split, root, seek
        self.sizes: dict[str, tuple[int, int]] = {}
        self.mentions: Counter[str] = Counter()
        self.broken: set[str] = set()  # images of conversations that cannot be read
        self.num_left_out = 0
        self.labels: dict[str, None] = {}
        self.declared: set[BoxFrame] = set()
        self.evidence = FrameEvidence()

    def items(self, frame: BoxFrame | None) -> Iterator[Item]:
        """Records of all images, each when the last conversation about it is read."""
        problems: list[Problem] = []
        for conversation, answers in self._conversations(problems):
            yield from problems
            problems.clear()
            yield from self._survey(conversation, answers)
        yield from problems
        yield Labels(tuple(self.labels))
        if self.num_left_out:
            yield Finding("no_boxes", f"{self.file}: {self.num_left_out}")
        if not self.mentions and not self.broken:
            yield Problem("no answer holds boxes", str(self.file), "give conversations that ask for boxes")
        frame, known = self._frame(frame)
        yield from (Finding("frame", f"{self.file}: {NAMES[own]} ({why})") for own, why in known)
        yield from self._records(frame)

    def _conversations(self, problems: list[Problem]) -> Iterator[tuple[Conversation, list[Answer]]]:
        """Each conversation with its answers; to ``problems`` is added what is wrong with others."""
        for where, record in records(self.file):
            paths: dict[str, str] = {}
            try:
                conversation = read_conversation(record, where)
                paths = {image: self._path(image, where) for image in conversation.images}
                answers = [(paths.get(answer[0], ""), *answer[1:]) for answer in _answers(conversation)]
            except DataError as error:
                self.broken.update(paths.values())
                problems += error.problems
                continue
            yield conversation, answers

    def _survey(self, conversation: Conversation, answers: Sequence[Answer]) -> Iterator[Problem]:
        """Note what a conversation says of the whole file; yields images that cannot be opened."""
        self.mentions.update({image for image, _, _, boxes in answers if boxes is not None})
        for image, _, _, boxes in answers:
            if boxes is None:
                self.num_left_out += 1
                continue
            self.labels |= dict.fromkeys(label for _, label in boxes)
            if image in self.broken:
                continue
            is_new = image not in self.sizes
            try:
                size = self.sizes[image] if not is_new else image_size(image, self.root, conversation.where)
            except DataError as error:
                self.broken.add(image)
                yield from error.problems
                continue
            self.sizes[image] = size
            if conversation.frame is None:
                self.evidence.add(size, [box for box, _ in boxes], is_new=is_new)
            elif boxes:
                self.declared.add(conversation.frame)

    def _records(self, frame: BoxFrame) -> Iterator[Record]:
        waiting: dict[str, _Annotated] = {}
        asked_of = cache(self._asked)
        for conversation, answers in self._conversations([]):
            for image, question, place, boxes in answers:
                if boxes is not None and image not in self.broken:
                    found = waiting.setdefault(image, _Annotated(conversation.where))
                    found.asked |= asked_of(question)
                    own = conversation.frame
                    found.boxes += [(box, label, f"{place} ({label})", own) for box, label in boxes]
            for image in {image for image, _, _, boxes in answers if boxes is not None}:
                self.mentions[image] -= 1
                if not self.mentions[image] and image in waiting:
                    yield self._record(image, waiting.pop(image), self.sizes[image], frame)

    def _path(self, image: str, where: str) -> str:
        """An image's path relative to the root."""
        if image.startswith("data:"):
            what = "the image is in the file itself (base64)"
            raise DataError(what, where, "write the images into a folder, and their paths into the file")
        name, home = image.removeprefix("file://").replace("\\", "/"), self.root.resolve()
        if self.seek:
            name = end_in(self.root, name) or name
        elif is_absolute(name) and Path(name).is_relative_to(home):
            name = Path(name).relative_to(home).as_posix()
        return join_image("", name, where)

    def _frame(self, given: BoxFrame | None) -> tuple[BoxFrame, list[tuple[BoxFrame, str]]]:
        """The frame of the boxes that declare none; and all frames, with how they are known."""
        known = [(own, "objects.bbox_type says so") for own in sorted(self.declared)]
        if given is not None or not self.evidence.count:
            return given or "pixels", known
        frame, why = self.evidence.tell()
        if frame is None:
            fix = f"say it: --frame {'|'.join(NAMES)}"
            raise DataError(f"the frame of the boxes is not clear: {why}", str(self.file), fix)
        return frame, [*known, (frame, why)]

    def _asked(self, question: str) -> set[str]:
        """The labels that a question names; all of them where it names none."""
        labels = self.labels if len(self.labels) <= MAX_LABELS else ()
        lowered = question.lower()
        return {label for label in labels if label.lower() in lowered} or set(labels)

    def _record(self, image: str, found: _Annotated, size: tuple[int, int], frame: BoxFrame) -> Record:
        objects = tuple(
            DetectedObject(to_pixels(box, own or frame, size), label) for box, label, _, own in found.boxes
        )
        asked = found.asked | {item.desc for item in objects}
        findings: tuple[Finding, ...] = ()
        if asked != set(self.labels):
            names = ", ".join(map(repr, sorted(asked)[:3])) + " …" * (len(asked) > 3)
            findings = (Finding("asked_of_some", found.where, f"{image!r} is asked about {names} alone"),)
        turn = Turn(image, objects, *size)
        places = tuple(place for _, _, place, _ in found.boxes)
        return Record(
            self.split, turn, found.where, image.removeprefix("images/"), places, findings, size=MEASURED
        )


def _answers(conversation: Conversation) -> Iterator[Answer]:
    """Image, question, place and boxes of each answer; None instead of boxes if it is about none."""
    shown, image, question = iter(conversation.images), "", ""
    for number, (role, text) in enumerate(conversation.messages, start=1):
        if role == "user":
            question = text.replace(IMAGE, "").strip()
            images = list(islice(shown, text.count(IMAGE)))
            image = image if not images else images[0] if len(images) == 1 else ""
        elif role == "assistant":
            place = f"{conversation.where}: message {number}"
            boxes = _boxes(text, question, place)
            if boxes is not None and not image:
                what = f"a set of boxes for {len(conversation.images)} images: which one is not clear"
                raise DataError(what, place, "ask about one image in each question, marked <image>")
            yield image, question, place, boxes


def _boxes(answer: str, question: str, where: str) -> Sequence[tuple[Box, str]] | None:
    """Boxes and labels of an answer; None if it is about none."""
    parsed = parse_answer(answer)
    if parsed.rejected:
        what = f"{parsed.rejected} boxes of the answer cannot be read: {answer.strip()[:80]!r}"
        raise DataError(what, where, "write x1 < x2 and y1 < y2 of each box, and the whole answer")
    if not parsed.objects:
        return () if NOTHING.fullmatch(answer.rpartition(END_OF_THOUGHT)[2]) else None
    asked = ASKED.findall(question) or question.rsplit(":", 1)[1:]
    described = asked[0].strip(" .\n") if len(asked) == 1 else ""
    return [
        (found.bbox_2d, check_label((found.desc or described).strip(), where, "label"))
        for found in parsed.objects
    ]
