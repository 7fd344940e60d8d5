"""Conversations about images, as other tools train on them: whose question asks for boxes is a sample.

messages, images, objects: {ref, bbox}   ms-swift           conversations, from / value   LLaVA, Qwen
messages or conversations, images        LLaMA-Factory      content in parts, image_url   OpenAI
instruction, input, output, images       LLaMA-Factory, Alpaca

line ─► Conversation(messages, images) ─► boxes of each answer ─► frame of the file ─► a Record an image
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from qwendet.answers.format import parse_answer
from qwendet.data.formats.box_frames import NAMES, BoxFrame, tell_frame, to_pixels
from qwendet.data.formats.coco_layout import end_in
from qwendet.data.formats.fitting import is_absolute, join_image
from qwendet.data.formats.json_stream import stream_list
from qwendet.data.formats.records import MEASURED, WHOLE, Box, Finding, Item, Labels, Record, Source, split_of
from qwendet.data.images import image_size
from qwendet.data.samples import DetectedObject, Sample, Turn, check_label
from qwendet.errors import DataError, Problem
from qwendet.families.chat import END_OF_THOUGHT, LABEL_TEXT
from qwendet.files import list_folder

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
IMAGE = "<image>"
PLACEHOLDER = re.compile("<bbox>|<ref-object>")
REFERENCE = re.compile(re.escape(LABEL_TEXT.format(label="@")).replace("@", "(.*?)"), re.DOTALL)
NOTHING = re.compile(r"\s*(?:```(?:json)?)?\s*\[\s*\]\s*(?:```)?\s*")
"""An answer that says that there are none."""
MAX_FILES = 20
"""Files that a folder of conversations has at most."""
MAX_LABELS = 1000
"""With more, labels are descriptions of single things, and no question asks for all of them."""
FRAME_FIX = f"say it: --frame {'|'.join(NAMES)}"


class Message(NamedTuple):
    """What one side says."""

    role: str
    text: str


@dataclass
class Conversation:
    """One record of a file.

    Attributes:
        messages: questions and answers in turn; each image stands as ``<image>``.
        images: their paths, in the order of the marks.
        where: file and line.
        frame: of the boxes, where the record declares it.
    """

    messages: list[Message]
    images: list[str]
    where: str
    frame: BoxFrame | None = None


@dataclass
class _Annotated:
    """What all conversations of a split say of one image."""

    where: str
    boxes: list[tuple[Box, str, str, BoxFrame | None]] = field(default_factory=list)  # label, place, frame
    asked: set[str] = field(default_factory=set)  # the questions


def conversation_files(path: Path) -> dict[str, Path]:
    """Files of conversations by split: ``path`` itself, or those of a folder; none where there are others.

    Raises:
        DataError: if two are of one split.
    """
    if path.is_file():
        return {split_of(path.stem) or WHOLE: path} if is_conversations(path) else {}
    files = [file for file in list_folder(path) if file.suffix.lower() in (".json", ".jsonl")]
    found: dict[str, Path] = {}
    for file in filter(is_conversations, files if len(files) <= MAX_FILES else ()):
        other = found.setdefault(split_of(file.stem) or WHOLE, file)
        if other != file:
            what = f"expected one file of conversations a split, got {other.name} and {file.name}"
            raise DataError(what, str(path), "give one of them")
    return found


def is_conversations(file: Path) -> bool:
    """Whether the first record of a JSON or JSONL file is a conversation."""
    with suppress(DataError, OSError):
        return any(_messages(record) for _, record in islice(_records(file), 1))
    return False


def open_conversations(path: Path, image_dir: Path | None = None, frame: BoxFrame | None = None) -> Source:
    """Open files of conversations.

    What all conversations of a file say of an image becomes one record. Answers without boxes (captions,
    questions) are left out and counted.

    Args:
        path: a file, or a folder with one a split.
        image_dir: the folder that image paths start from; the end of a path of another machine will do.
        frame: of the boxes; ``None`` tells it from all of a file.

    Raises:
        DataError: if there is no such file.
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


class _File:
    """One file: its conversations by image."""

    def __init__(self, file: Path, split: str, root: Path, *, seek: bool) -> None:
        self.file, self.split, self.root, self.seek = file, split, root, seek
        self.images: dict[str, _Annotated] = {}
        self.broken: set[str] = set()  # images of conversations that cannot be read
        self.num_left_out = 0
        self.labels: dict[str, None] = {}

    def items(self, frame: BoxFrame | None) -> Iterator[Item]:
        """Records of all images, when all conversations are read."""
        for where, record in _records(self.file):
            try:
                self._take(_conversation(record, where))
            except DataError as error:
                yield from error.problems
        yield Labels(tuple(self.labels))
        if self.num_left_out:
            yield Finding("no_boxes", f"{self.file}: {self.num_left_out}")
        if not self.images and not self.broken:
            yield Problem("no answer holds boxes", str(self.file), "give conversations that ask for boxes")
        sizes: dict[str, tuple[int, int]] = {}
        for image in self.images.keys() - self.broken:
            try:
                sizes[image] = image_size(image, self.root, self.images[image].where)
            except DataError as error:
                yield from error.problems
        frame, told = self._frame(frame, sizes)
        yield from told
        asked_of = self._asked()
        for image, found in self.images.items():
            if image in sizes:
                yield self._record(image, found, sizes[image], frame, asked_of)

    def _take(self, conversation: Conversation) -> None:
        """Note the boxes of each answer with the image that is asked about."""
        paths = {image: self._path(image, conversation.where) for image in conversation.images}
        try:
            answers = list(_answers(conversation))
        except DataError:
            self.broken.update(paths.values())
            raise
        for image, question, place, boxes in answers:
            if boxes is None:
                self.num_left_out += 1
                continue
            found = self.images.setdefault(paths[image], _Annotated(conversation.where))
            found.asked.add(question)
            found.boxes += [(box, label, f"{place} ({label})", conversation.frame) for box, label in boxes]
            self.labels |= dict.fromkeys(label for _, label in boxes)

    def _frame(
        self, given: BoxFrame | None, sizes: Mapping[str, tuple[int, int]]
    ) -> tuple[BoxFrame, list[Finding]]:
        """The frame of the boxes that declare none, and what is worth telling of it and of the others.

        Raises:
            DataError: if it is not given and cannot be told.
        """
        found = [(sizes[image], self.images[image].boxes) for image in sizes]
        declared = sorted({own for _, boxes in found for *_, own in boxes if own})
        told = [
            Finding("frame", f"{self.file}: {NAMES[own]} (objects.bbox_type says so)") for own in declared
        ]
        open_boxes = [(size, [box for box, _, _, own in boxes if own is None]) for size, boxes in found]
        if given is not None or not any(boxes for _, boxes in open_boxes):
            return given or "pixels", told
        frame, why = tell_frame(open_boxes)
        if frame is None:
            raise DataError(f"the frame of the boxes cannot be told: {why}", str(self.file), FRAME_FIX)
        return frame, [*told, Finding("frame", f"{self.file}: {NAMES[frame]} ({why})")]

    def _path(self, image: str, where: str) -> str:
        """An image's path relative to the root."""
        if image.startswith("data:"):
            what = "the image is in the file itself (base64)"
            raise DataError(what, where, "write the images into a folder, and their paths into the file")
        name = image.removeprefix("file://").replace("\\", "/")
        if self.seek:
            name = end_in(self.root, name) or name
        elif is_absolute(name) and Path(name).is_relative_to(self.root.resolve()):
            name = Path(name).relative_to(self.root.resolve()).as_posix()
        return join_image("", name, where)

    def _asked(self) -> Mapping[str, set[str]]:
        """Of each question the labels that it names; all of them where it names none."""
        labels, questions = set(self.labels), {text for found in self.images.values() for text in found.asked}
        if len(labels) > MAX_LABELS:
            return {question: set() for question in questions}
        named = {text: {label for label in labels if label.lower() in text.lower()} for text in questions}
        return {text: found or labels for text, found in named.items()}

    def _record(
        self,
        image: str,
        found: _Annotated,
        size: tuple[int, int],
        frame: BoxFrame,
        asked_of: Mapping[str, set[str]],
    ) -> Record:
        objects = tuple(
            DetectedObject(to_pixels(box, own or frame, size), label) for box, label, _, own in found.boxes
        )
        asked = {item.desc for item in objects}.union(*(asked_of[question] for question in found.asked))
        findings: tuple[Finding, ...] = ()
        if asked != set(self.labels):
            what = f"{image!r} is asked about {_few(asked)} alone"
            findings = (Finding("asked_of_some", found.where, what),)
        sample = Sample(Turn(image, objects, *size), where=found.where)
        places = tuple(place for _, _, place, _ in found.boxes)
        return Record(self.split, sample, image.removeprefix("images/"), places, findings, size=MEASURED)


def _answers(conversation: Conversation) -> Iterator[tuple[str, str, str, Sequence[tuple[Box, str]] | None]]:
    """Image, question, place and boxes of each answer; None instead of boxes if it is about none.

    Raises:
        DataError: if boxes cannot be read, or belong to several images.
    """
    shown, image, question = iter(conversation.images), "", ""
    for number, message in enumerate(conversation.messages, start=1):
        if message.role == "user":
            question = message.text.replace(IMAGE, "").strip()
            images = list(islice(shown, message.text.count(IMAGE)))
            image = image if not images else images[0] if len(images) == 1 else ""
        elif message.role == "assistant":
            place = f"{conversation.where}: message {number}"
            boxes = _boxes(message.text, question, place)
            if boxes is not None and not image:
                what = f"a set of boxes for {len(conversation.images)} images: which one cannot be told"
                raise DataError(what, place, "ask about one image in each question, marked <image>")
            yield image, question, place, boxes


def _few(labels: set[str]) -> str:
    shown = sorted(labels)[:3]
    return ", ".join(map(repr, shown)) + (" …" if len(labels) > len(shown) else "")


def _records(file: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each record: elements of a list, or a line each.

    Raises:
        DataError: for what is neither.
    """
    if file.suffix.lower() != ".jsonl":
        yield from ((f"{file}: [{index}]", record) for index, record in stream_list(file))
        return
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    what = f"expected one JSON object a line ({error})"
                    raise DataError(what, where, "write the file again") from error


def _conversation(record: Any, where: str) -> Conversation:
    """Read a record.

    Raises:
        DataError: if it is no conversation, or its images and marks differ.
    """
    said = _messages(record)
    if not said:
        what = "expected messages, conversations, or instruction and output, got neither"
        raise DataError(what, where, "leave this record out, or write it as the others are")
    messages, images = [], _images(record)
    for role, content in said:
        text, own = _content(content)
        images += own
        messages.append(Message(ROLES.get(role, role), text))
    marks = sum(message.text.count(IMAGE) for message in messages)
    first = next((at for at, message in enumerate(messages) if message.role == "user"), None)
    if images and not marks and first is not None:  # the tools put them there
        messages[first] = Message("user", IMAGE * len(images) + messages[first].text)
    elif marks != len(images):
        raise DataError(f"{len(images)} images and {marks} marks {IMAGE}", where, "give each image its mark")
    conversation = Conversation(messages, images, where)
    objects = record.get("objects")
    if isinstance(objects, dict) and objects.get("bbox") is not None:
        _fill_in(conversation, objects)
    return conversation


def _messages(record: Any) -> list[tuple[str, Any]]:
    """Role and content of each message; none if the record is no conversation."""
    if not isinstance(record, dict):
        return []
    said = record.get("messages") or record.get("conversations")
    if isinstance(said, list) and all(isinstance(one, dict) for one in said):
        return [
            (str(one.get("role", one.get("from", ""))), one.get("content", one.get("value"))) for one in said
        ]
    for asked, more, answered in (("instruction", "input", "output"), ("query", "", "response")):
        if isinstance(record.get(asked), str) and isinstance(record.get(answered), str):
            pairs = [*(record.get("history") or ()), (record[asked] + "\n" + str(record.get(more) or ""), "")]
            pairs[-1] = (pairs[-1][0], record[answered])
            return [turn for pair in pairs for turn in zip(("user", "assistant"), pair, strict=False)]
    return []


def _images(record: Mapping[str, Any]) -> list[str]:
    given = record.get("images") or record.get("image") or []
    several = given if isinstance(given, list) else [given]
    return [
        str(one.get("path") or one.get("image") or "") if isinstance(one, dict) else str(one)
        for one in several
    ]


def _content(content: Any) -> tuple[str, list[str]]:
    """Text of a message, ``<image>`` for each image in parts, and these images."""
    if not isinstance(content, list):
        return str(content or ""), []
    text, images = "", []
    for part in content:
        if not isinstance(part, dict):
            text += str(part)
        elif (url := part.get("image") or part.get("image_url")) is not None:
            text += IMAGE
            images.append(str(url.get("url") if isinstance(url, dict) else url))
        else:
            text += str(part.get("text") or "")
    return text, images


def _fill_in(conversation: Conversation, objects: Mapping[str, Any]) -> None:
    """Put ms-swift's ``objects`` in place of their marks, in order; their frame is declared.

    Raises:
        DataError: if there are not as many boxes as marks, or labels, which may stand for several marks.
    """
    marked = [mark for message in conversation.messages for mark in PLACEHOLDER.findall(message.text)]
    given = {"<bbox>": list(objects["bbox"]), "<ref-object>": list(objects.get("ref") or [])}
    for mark, values in given.items():
        count, is_label = marked.count(mark), mark == "<ref-object>"
        if count != len(values) and not (is_label and values and count % len(values) == 0):
            what = f"{count} marks {mark} and {len(values)} values in objects.{'ref' if is_label else 'bbox'}"
            raise DataError(what, conversation.where, "give each mark its value")
    conversation.frame = "fractions" if objects.get("bbox_type") == "norm1" else "pixels"
    values_of = {mark: cycle(values) for mark, values in given.items()}

    def value(mark: re.Match[str]) -> str:
        own = next(values_of[mark[0]])
        return json.dumps(own) if mark[0] == "<bbox>" else LABEL_TEXT.format(label=own)

    conversation.messages = [
        Message(role, PLACEHOLDER.sub(value, text)) for role, text in conversation.messages
    ]


def _boxes(answer: str, question: str, where: str) -> Sequence[tuple[Box, str]] | None:
    """Boxes and labels of an answer; None if it is about none.

    Raises:
        DataError: if a box cannot be read, or nothing says what it shows.
    """
    parsed = parse_answer(answer)
    if parsed.rejected:
        what = f"{parsed.rejected} boxes of the answer cannot be read: {answer.strip()[:80]!r}"
        raise DataError(what, where, "write x1 < x2 and y1 < y2 of each box, and the whole answer")
    if not parsed.objects:
        return () if NOTHING.fullmatch(answer.rpartition(END_OF_THOUGHT)[2]) else None
    asked = REFERENCE.findall(question) or question.rsplit(":", 1)[1:]
    described = asked[0].strip(" .\n") if len(asked) == 1 else ""
    return [
        (found.bbox_2d, check_label((found.desc or described).strip(), where, "label"))
        for found in parsed.objects
    ]
