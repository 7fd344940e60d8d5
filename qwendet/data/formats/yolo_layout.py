"""Where a YOLO data set keeps names, images and labels.

    data.yaml: names, train, val, test (folders, or .txt of image paths), path     Ultralytics
    obj.data: names, train, valid (.txt of image paths)                            darknet, CVAT
    classes.txt + images/ + labels/, or images and labels in one folder            LabelImg
    _darknet.labels, images and labels beside it, in one folder or in one a split  Roboflow's darknet

Where the labels of an image are: :mod:`qwendet.data.formats.yolo_files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwendet.data.formats.records import WHOLE, split_of
from qwendet.data.formats.yolo_files import TEXT_SUFFIXES, first_there, tails
from qwendet.data.images import ABSENT_FIX
from qwendet.data.samples import check_label
from qwendet.errors import DataError, Problem, expect
from qwendet.files import files_below, list_folder, read_text

SETTINGS_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
NAME_FILES = (
    *("obj.names", "classes.txt", "labels/classes.txt", "train/classes.txt", "train/labels/classes.txt"),
    *("_darknet.labels", "train/_darknet.labels"),
)


@dataclass(frozen=True, slots=True)
class YoloLayout:
    """A YOLO data set.

    Attributes:
        root: the folder that its paths start from.
        entries: what each split consists of: folders, and ``.txt`` lists of images, relative to the root.
        settings: the file that says so, put into errors.
        absent: what is wrong with splits that are named but not there.
        columns: numbers after class and box that every line has (key points), 0 without.
        is_segmented: the settings say that long lines are polygons.
    """

    root: Path
    names: Mapping[int, str]
    entries: Mapping[str, Sequence[str]]
    settings: Path
    absent: tuple[Problem, ...] = ()
    columns: int = 0
    is_segmented: bool = False


def is_yolo(path: Path) -> bool:
    """Whether a file is YOLO settings, or a folder holds such or labels."""
    if path.is_file():
        return _is_settings(path)
    has_names = any((path / name).is_file() for name in NAME_FILES)
    has_labels = any(files_below(path / "labels", TEXT_SUFFIXES))
    return _settings_file(path) is not None or has_names or has_labels


def find_yolo(path: Path, image_dir: Path | None = None) -> YoloLayout:
    """Find names and splits."""
    settings = path if path.is_file() else _settings_file(path)
    if settings is None:
        return _of_folders(path, image_dir or path)
    return _of_settings(_Settings(settings, [settings.parent, *([image_dir] if image_dir else [])]))


def _settings_file(folder: Path) -> Path | None:
    for name in ("data.yaml", "data.yml", "dataset.yaml", "obj.data"):
        if (folder / name).is_file():
            return folder / name
    others = settings_files(folder)
    return others[0] if len(others) == 1 else None


def settings_files(folder: Path) -> list[Path]:
    """YAML files of a folder that name labels."""
    return [file for file in list_folder(folder) if file.suffix in (".yaml", ".yml") and _is_settings(file)]


def _is_settings(file: Path) -> bool:
    if file.suffix == ".data" or file.name in ("data.yaml", "data.yml"):
        return True
    return file.suffix in (".yaml", ".yml") and any(
        line.startswith("names:") for line in read_text(file).splitlines()
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """A settings file, and the folders that its paths may start from."""

    file: Path
    homes: Sequence[Path]

    def existing(self, entry: str, base: str, key: str) -> str:
        """An entry's path relative to the home that it is in."""
        found = first_there(tails(entry), base, self.homes)
        if found is None:
            what = f"there is no {entry!r} in the data set's folder"
            raise DataError(what, f"{self.file}: {key}", ABSENT_FIX)
        return found

    def splits(self, values: Mapping[str, Any], base: str) -> tuple[dict[str, list[str]], list[Problem]]:
        """What each split consists of, and what is wrong with those that are not there; one must be."""
        found: dict[str, list[str]] = {}
        absent: list[Problem] = []
        for key, split in SETTINGS_KEYS.items():
            value = values.get(key)
            entries = value if isinstance(value, list) else [value] if value else []
            are_texts = all(isinstance(entry, str) for entry in entries)
            expect(are_texts, "", "folders or .txt files", value, f"{self.file}: {key}", "correct it")
            try:
                paths = [self.existing(entry, base, key) for entry in entries]
            except DataError as error:
                absent += error.problems
            else:
                found |= {split: paths} if paths else {}
        if absent and not found:
            raise DataError.of(absent)
        return found, absent


def _of_settings(settings: _Settings) -> YoloLayout:
    file = settings.file
    is_darknet = file.suffix == ".data"
    values = _darknet_values(file) if is_darknet else _yaml_values(file)
    base, names = _base(values.get("path"), file), values.get("names")
    if isinstance(names, str) and (is_darknet or "." in names):  # as YOLOv3 and v7 have it
        names = _names_in(file.parent / settings.existing(names, base, "names"))
    names = _names_of(names, f"{file}: names")
    count = values.get("nc")
    if count is not None and str(count) != str(len(names)):
        what = f"nc is {count!r}, but there are {len(names)} names"
        raise DataError(what, str(file), "correct one of them")
    entries, absent = settings.splits(values, base)
    if not entries and not is_darknet:
        raise DataError("expected train, val or test, got none", str(file), "name the folders of the images")
    if "train" in entries and entries["train"] == entries.get("val"):
        entries = {key: entries[key] for key in ("train", "test") if key in entries}
        entries = entries if "test" in entries else {WHOLE: entries["train"]}
    columns, is_segmented = _key_point_columns(values, file), values.get("task") == "segment"
    entries = entries or {WHOLE: ["."]}
    return YoloLayout(file.parent, names, entries, file, tuple(absent), columns, is_segmented)


def _yaml_values(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"expected YAML, got a broken file ({error})", str(file), "correct it") from error
    is_dict = isinstance(values, dict)
    expect(is_dict, "", "keys such as names and train", values, str(file), "correct it")
    return dict(values)


def _darknet_values(file: Path) -> dict[str, Any]:
    """Of the keys those that Ultralytics' settings have too: ``classes`` says no more than the names."""
    pairs = (line.partition("=") for line in read_text(file).splitlines() if "=" in line)
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if "names" not in values:
        raise DataError("expected a line names = FILE", str(file), "name the file of labels")
    return {key: values[key] for key in ("names", *SETTINGS_KEYS) if key in values}


def _names_of(value: Any, where: str) -> dict[int, str]:
    pairs = dict(enumerate(value)) if isinstance(value, list) else value
    fix = "list the label names"
    expect(isinstance(pairs, dict), "", "a list or index: name pairs", value, where, fix)
    names: dict[int, str] = {}
    for index, name in pairs.items():
        if isinstance(index, str) and index.isdecimal():
            index = int(index)
        is_index = type(index) is int and index >= 0
        expect(is_index, "", "a class index", index, where, "correct it")
        is_name = type(name) in (str, int, float)
        expect(is_name, "", "a name", name, f"{where}[{index}]", "put it into quotes")
        names[index] = check_label(str(name).strip(), f"{where}[{index}]", "name")
    return names


def _base(value: Any, file: Path) -> str:
    """``path``, relative to the file's folder; one of another machine is that folder itself."""
    if value is None:
        return ""
    folder, home = (file.parent / str(value)).resolve(), file.parent.resolve()
    if not folder.is_dir():
        return ""
    if not folder.is_relative_to(home):
        fix = f"copy the file into {folder}, without its line path, and give that one"
        raise DataError(f"path leads out of the data set: {value!r}", f"{file}: path", fix)
    return folder.relative_to(home).as_posix().removeprefix(".")


def _key_point_columns(values: Mapping[str, Any], file: Path) -> int:
    shape = values.get("kpt_shape")
    if shape is None:
        return 0
    is_shape = isinstance(shape, list) and len(shape) == 2 and set(map(type, shape)) == {int}
    is_shape = is_shape and 0 < min(shape) <= max(shape) < 1000
    expect(is_shape, "", "[points, numbers]", shape, f"{file}: kpt_shape", "correct it")
    return int(shape[0] * shape[1])


def _names_in(file: Path) -> dict[int, str]:
    """A name a line."""
    lines = [line.strip() for line in read_text(file).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return _names_of(lines, str(file))


def _of_folders(root: Path, image_root: Path) -> YoloLayout:
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        raise DataError(
            "expected data.yaml or classes.txt, got neither: nothing says what class 0 is",
            str(root),
            "write classes.txt, a label a line",
        )
    images = image_root / "images" if (image_root / "images").is_dir() else image_root
    found = {
        split: [child.relative_to(image_root).as_posix()]
        for child in list_folder(images)
        if child.is_dir() and (split := split_of(child.name))
    }
    whole = images.relative_to(image_root).as_posix()
    return YoloLayout(root, _names_in(file), found or {WHOLE: [whole]}, file)
