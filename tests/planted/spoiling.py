"""Ways to spoil a sound project."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.planted.planting import HEIGHT, WIDTH, Project

Plant = Callable[[Project], object]
ORIENTATION = 0x0112


def setting(key: str, value: Any) -> Plant:
    return lambda project: project.set(key, value)


def in_object(key: str, value: Any, index: int = 2) -> Plant:
    return lambda project: project.at(index)["objects"][1].update({key: value})


def all_boxes(change: Callable[[int, int, int, int], list[Any]]) -> Plant:
    """Write every box in another way."""

    def plant(project: Project) -> None:
        for split in project.files:
            for item in project.objects(split):
                item["bbox_2d"] = change(*item["bbox_2d"])

    return plant


def large_images(size: tuple[int, int], change: Callable[[float, float, float, float], list[Any]]) -> Plant:
    """Larger images, and boxes written in another way, from shares of the image."""

    def plant(project: Project) -> None:
        for split, records in project.files.items():
            for index in range(len(records)):
                record = project.at(index, split)
                project.draw(record["images"][0], size)
                for item in record["objects"]:
                    x1, y1, x2, y2 = item["bbox_2d"]
                    item["bbox_2d"] = change(x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT)

    return plant


def spoilt_image(spoil: Callable[[Path], object], name: str = "spoilt.jpg", **options: Any) -> Plant:
    """An image of its own that is then spoilt."""

    def plant(project: Project) -> None:
        path = project.draw(name, **options)
        project.at(3)["images"] = [name]
        spoil(path)

    return plant


def cut_to(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def relabel(label: str, *, split: str = "train", index: int = 1) -> Plant:
    return lambda project: project.at(index, split)["objects"][0].update(desc=label)


def line(text: str | bytes) -> Plant:
    return lambda project: project.files["train"].append(text)


def exif_boxes(project: Project) -> None:
    """Stored 160×120, displayed 120×160; the boxes are those of the stored image, one at its right edge."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    project.draw("turned.jpg", exif=exif)
    project.at(0)["images"] = ["turned.jpg"]


def exif_size(project: Project) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    project.draw("turned.jpg", exif=exif)
    box = {"bbox_2d": [1, 2, 50, 60], "desc": "red cell"}
    turned = {"images": ["turned.jpg"], "objects": [box], "width": WIDTH, "height": HEIGHT}
    project.files["train"].append(turned)


def cut_behind_thumbnail(path: Path) -> None:
    """A file cut behind the end mark of the thumbnail in its EXIF block."""
    whole = path.read_bytes()
    thumbnail = b"\xff\xe1\x00\x0a" + b"Exif\x00\x00" + b"\xff\xd9"
    path.write_bytes((whole[:2] + thumbnail + whole[2:])[:400])


def shown_before(image: str, copy_of: str = "", split: str = "train") -> Plant:
    """A demonstration in front of a sample."""

    def plant(project: Project) -> None:
        if copy_of:
            shutil.copyfile(project.folder / copy_of, project.folder / image)
        student = project.at(0, split)
        demonstration = {"images": [image], "objects": []}
        project.files[split][0] = {"teachers": [demonstration], "student": student}

    return plant


def pool(*records: str, ratio: float = 0.5) -> Plant:
    def plant(project: Project) -> None:
        project.files["teachers"] = [
            project.record(name)
            if not (project.folder / name).exists()
            else {"images": [name], "objects": []}
            for name in records
        ]
        project.set("data.teachers", "teachers.jsonl")
        project.set("data.teacher_ratio", ratio)

    return plant


def also_in_train(make: Callable[[Path, Path], object], name: str = "other.png") -> Plant:
    """A validation image that is trained on too, reached in another way."""

    def plant(project: Project) -> None:
        make(project.folder / "val_0.png", project.folder / name)
        project.at(0)["images"] = [name]

    return plant


def no_boxes(*splits: str) -> Plant:
    def plant(project: Project) -> None:
        project.set("data.labels", ["red cell", "white cell"])
        for split in splits:
            for index in range(len(project.files[split])):
                project.at(index, split)["objects"] = []

    return plant


def no_labels(project: Project) -> None:
    """Nothing but negatives, no head, and a label set that nobody wrote."""
    project.set("detection.enabled", False)
    for split, records in project.files.items():
        for index in range(len(records)):
            project.at(index, split)["objects"] = []


def asked_twice(project: Project) -> None:
    """The same labels of an image asked twice, one object then left out."""
    record = project.at(0)
    record["labels"] = ["white cell", "red cell"]
    other = {"labels": ["red cell", "white cell"], "objects": record["objects"][1:]}
    project.files["train"].append({**record, **other})


def one_box_a_sample(project: Project) -> None:
    record = project.files["train"].pop(0)
    assert isinstance(record, dict)
    project.files["train"] += [{**record, "objects": [item]} for item in record["objects"]]


def copied_image(project: Project) -> None:
    """The second sample's image becomes a copy of the first one's; each keeps its boxes."""
    first, second = (project.folder / project.at(index)["images"][0] for index in (0, 1))
    second.write_bytes(first.read_bytes())


def same_files(project: Project) -> None:
    project.files["val"] = list(project.files["train"])


def cut_file(project: Project) -> None:
    project.files["train"].append('{"images": ["train_1.png"], "objects": [{"bbox_2d": [1, 2')
    project.tail = b""


def wrong_root(project: Project) -> None:
    (project.folder / "elsewhere").mkdir()
    project.set("data.root", "elsewhere")


def leading_out(project: Project) -> None:
    (project.folder.parent / "outside.png").write_bytes((project.folder / "train_0.png").read_bytes())
    project.at(0)["images"] = ["../outside.png"]


def copied(project: Project) -> None:
    project.files["copy"] = [*project.files["train"]]
    project.set("data.train", ["train.jsonl", "copy.jsonl"])


def twice(project: Project) -> None:
    project.files["train"].append(dict(project.at(2)))


def repeated_box(project: Project) -> None:
    objects = project.at(2)["objects"]
    objects.append({**objects[0], "bbox_2d": [number - 0.2 for number in objects[0]["bbox_2d"]]})


def many_boxes(project: Project) -> None:
    boxes = [[x, y, x + 9, y + 9] for x in range(0, 150, 10) for y in range(0, 110, 10)]
    project.at(0)["objects"] = [{"bbox_2d": box, "desc": "red cell"} for box in boxes]


def long_answer(project: Project) -> None:
    many_boxes(project)
    project.set("detection.num_queries", 200)
    project.set("data.max_tokens", 1024)


def long_drawn(project: Project) -> None:
    """Only two samples drawn as each other's demonstrations are too long."""
    many_boxes(project)
    project.set("detection.num_queries", 200)
    project.set("data.max_tokens", 5800)
    project.set("data.teacher_ratio", 1.0)
    project.set("data.num_teachers", 4)
    project.files["train"][1] = {**project.record("second.png"), "objects": project.at(0)["objects"]}


def blocked_output(project: Project) -> None:
    (project.folder / "occupied").write_text("a file")
    project.set("train.output_dir", str(project.folder / "occupied" / "run"))
