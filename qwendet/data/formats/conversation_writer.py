"""Records as conversations for ms-swift and LLaMA-Factory: a question for every label, and its answer."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from qwendet.answers.format import format_answer
from qwendet.config.schema import DEFAULT_REQUEST
from qwendet.data.formats.box_frames import from_pixels
from qwendet.data.formats.writer import Writer, number
from qwendet.data.samples import Turn

INFO_FILE = "dataset_info.json"
"""Where LLaMA-Factory looks up its data sets."""
MARKS = ("<image>", "<bbox>", "<ref-object>")


class SwiftWriter(Writer):
    """Writes ``<split>.jsonl`` for ms-swift: boxes in pixels of the image, which it scales for its model.

    Crowds are no part of an answer. Records wait in memory until all labels are known.
    """

    def __init__(self, folder: Path, *, has_images: bool = True) -> None:
        super().__init__(folder, has_images=has_images)
        self._turns: dict[str, list[tuple[Turn, str]]] = defaultdict(list)

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Keep an image's annotations."""
        for found in turn.objects:
            self.number_of(found.desc)
        self._turns[split].append((turn, self.place(split, image) if self.has_images else image))

    def finish(self) -> list[str]:
        """Write a line a record."""
        for split in self._turns:
            self._write(f"{split}.jsonl", "".join(f"{line}\n" for line in self._lines(split)))
        return [f"{split}.jsonl" for split in self._turns]

    def _write(self, name: str, text: str) -> None:
        # A file name that is not UTF-8 becomes JSON's own escapes.
        (self.folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _lines(self, split: str) -> list[str]:
        question = "<image>" + DEFAULT_REQUEST.replace("{labels}", ", ".join(self.labels))
        return [
            json.dumps(self._record(question, turn, image), ensure_ascii=False)
            for turn, image in self._turns[split]
        ]

    def _record(self, question: str, turn: Turn, image: str) -> dict[str, Any]:
        objects = [found for found in turn.objects if not found.crowd]
        labels = (_without_marks(json.dumps(found.desc, ensure_ascii=False)) for found in objects)
        answer = ", ".join(f'{{"bbox_2d": <bbox>, "label": {label}}}' for label in labels)
        record = _conversation(question, f"[{answer}]", image)
        if objects:
            boxes = [[number(value) for value in found.bbox_2d] for found in objects]
            record["objects"] = {"ref": [], "bbox": boxes, "bbox_type": "real"}
        return record


class LlamaFactoryWriter(SwiftWriter):
    """Writes ``<split>.json`` and ``dataset_info.json``; answers are in 0-1000, and taken as they are."""

    def finish(self) -> list[str]:
        """Write a list a split, and how LLaMA-Factory is to read it."""
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        how = {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": tags,
        }
        files = {split: f"{split}.json" for split in self._turns}
        for split, file in files.items():
            self._write(file, "[\n" + ",\n".join(self._lines(split)) + "\n]\n")
        info = {split: {"file_name": file, **how} for split, file in files.items()}
        self._write(INFO_FILE, json.dumps(info, indent=1) + "\n")
        return list(files.values())

    def _record(self, question: str, turn: Turn, image: str) -> dict[str, Any]:
        size = turn.declared_size
        assert size is not None, "what is converted was held against its image"
        objects = [from_pixels(found, "thousandths", size) for found in turn.objects if not found.crowd]
        return _conversation(question, _without_marks(format_answer(objects)), image)


def _without_marks(answer: str) -> str:
    """JSON in which a label that holds a mark of these tools is no mark."""
    for mark in MARKS:
        answer = answer.replace(mark, f"\\u003c{mark[1:]}")
    return answer


def _conversation(question: str, answer: str, image: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [image]}
