"""The sound project that bugs of config and data are planted into."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import run_config_checks
from qwendet.config.load import load_config
from qwendet.errors import QwendetError
from tests.planted.start import HEAD, start_of

Record = dict[str, Any]
WIDTH, HEIGHT = 160, 120
LABELS = ("red cell", "white cell")


@dataclass
class Project:
    """A project on disk: sample files, images and a config, all of it sound until it is spoilt.

    Attributes:
        folder: where it is.
        files: records, or raw lines, of each sample file.
        values: the config.
        tail: what each file ends with.
    """

    folder: Path
    files: dict[str, list[Record | str | bytes]] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    tail: bytes = b"\n"

    @classmethod
    def sound(
        cls, folder: Path, *, size: tuple[int, int] = (WIDTH, HEIGHT), train: int = 12, val: int = 4
    ) -> Project:
        """Images of noise, three boxes in each, two labels."""
        project = cls(folder)
        project.values = {"data": {"train": "train.jsonl", "val": "val.jsonl"}}
        for split, count in (("train", train), ("val", val)):
            project.files[split] = [project.record(f"{split}_{index}.png", size) for index in range(count)]
        return project

    def draw(self, name: str, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
        """Write an image that no other is like."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        grain = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(grain).resize(size, Image.Resampling.NEAREST).save(path, **options)
        return path

    def record(self, name: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Record:
        """A flat sample with an image of its own."""
        self.draw(name, size)
        width, height = size
        draw = np.random.default_rng(len(name) + sum(name.encode()))
        objects = []
        for index in range(3):
            x1, y1 = draw.integers(0, [width * 3 // 4, height * 3 // 4])
            x2, y2 = draw.integers([x1 + width // 8, y1 + height // 8], [width + 1, height + 1])
            box = [int(number) for number in (x1, y1, x2, y2)]
            objects.append({"bbox_2d": box, "desc": LABELS[index % 2]})
        objects[0]["bbox_2d"][2:] = [width, height]  # one reaches the corner
        return {"images": [name], "objects": objects}

    def at(self, index: int, split: str = "train") -> Record:
        """A record, to be changed."""
        record = self.files[split][index]
        assert isinstance(record, dict)
        return record

    def objects(self, split: str = "train") -> list[Record]:
        """Every object of a file, to be changed."""
        return [item for index in range(len(self.files[split])) for item in self.at(index, split)["objects"]]

    def set(self, key: str, value: Any) -> None:
        """Set a key of the config, such as ``train.learning_rate``."""
        section, _, name = key.partition(".")
        self.values.setdefault(section, {})[name] = value

    def of(self, family: str) -> None:
        """Take the small model of a family, unless another one is taken."""
        model = self.values.setdefault("model", {})
        if "path" not in model and start_of(family) != "tiny":
            model["path"] = start_of(family)
            self.values["detection"] = HEAD | self.values.get("detection", {})

    def write(self) -> Path:
        """Write sample files and config; returns the config's path."""
        for split, records in self.files.items():
            lines = [
                line if isinstance(line, bytes) else (line if isinstance(line, str) else _dump(line)).encode()
                for line in records
            ]
            (self.folder / f"{split}.jsonl").write_bytes(b"\n".join(lines) + (self.tail if lines else b""))
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.values, allow_unicode=True), encoding="utf-8")
        return config

    def failures(self, **how: Any) -> list[tuple[str, str]]:
        """Id and words of everything that is found wrong, in the order in which it is said."""
        try:
            results, _ = run_config_checks(load_config(self.write()), Thoroughness(**how))
        except QwendetError as error:
            return [(p.id or "config", f"{p.what} | {p.where} | {p.fix}") for p in error.problems]
        return [(r.id, f"{r.what} | {r.where} | {r.fix}") for r in results if r.status == "fail"]


def _dump(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False)
