"""Files of annotation tools, as these write them: each image with its size and its boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pytest

from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Finding, Record
from qwendet.errors import DataError, Problem
from tests.unit.data.test_quirks import lay_out

WIDTH, HEIGHT = 64, 48


class Boxed(NamedTuple):
    """A box: label, corners, whether it is difficult."""

    label: str
    box: Sequence[float]
    difficult: bool = False


class Pictured(NamedTuple):
    """An image of a data set."""

    name: str
    size: tuple[int, int]
    boxes: Sequence[Boxed]


@dataclass
class Read:
    """What a reader yields: boxes and labels by image, kinds and notes of findings, problems."""

    boxes: dict[str, list[tuple[str, tuple[float, ...]]]]
    splits: dict[str, str]
    findings: dict[str, list[str]]
    problems: list[Problem]


def read(
    path: Path, source: str = "auto", image_dir: Path | None = None, *, may_be_absent: bool = False
) -> Read:
    found = Read({}, {}, {}, [])
    for item in open_source(path, source, image_dir, may_be_absent=may_be_absent).items:
        if isinstance(item, Record):
            turn = item.turn
            found.boxes[turn.image] = [(own.desc, own.bbox_2d) for own in turn.objects]
            found.splits[turn.image] = item.split
        findings = item.findings if isinstance(item, Record) else [item] if isinstance(item, Finding) else []
        for finding in findings:
            found.findings.setdefault(finding.kind, []).append(finding.note)
        if isinstance(item, Problem):
            found.problems.append(item)
    return found


def read_one(folder: Path, files: dict[str, str | int | bytes], **how: object) -> Read:
    """What is read of files; a number makes an image of 64×48."""
    return read(lay_out(folder, files), **how)  # type: ignore[arg-type]


def refusal(folder: Path, files: dict[str, str | int | bytes]) -> str:
    """What is said of files that hold one mistake."""
    try:
        (problem,) = read_one(folder, files).problems
    except DataError as error:
        (problem,) = error.problems
    assert problem.fix
    return f"{problem.where}: {problem.what}"


def cvat_xml(*images: str) -> str:
    labels = "<labels><label><name>bolt</name><attributes></attributes></label></labels>"
    meta = f"<meta><task><id>1</id>{labels}</task></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"


def cvat_image(
    content: str = "", name: str = "a.jpg", size: tuple[int, int] = (WIDTH, HEIGHT), more: str = ""
) -> str:
    sides = f'width="{size[0]}" height="{size[1]}"'
    return f'<image id="0" name={quoteattr(name)} {sides} {more}>{content}</image>'


def cvat_box(found: Boxed, more: str = "") -> str:
    sides = zip(("xtl", "ytl", "xbr", "ybr"), found.box, strict=True)
    flag = f'<attribute name="difficult">{str(found.difficult).lower()}</attribute>'
    values = " ".join(f'{side}="{value}"' for side, value in sides)
    return f'<box label={quoteattr(found.label)} occluded="0" {values} {more}>{flag}</box>'


def write_cvat(folder: Path, images: Sequence[Pictured]) -> None:
    written = [cvat_image("".join(map(cvat_box, each.boxes)), each.name, each.size) for each in images]
    (folder / "annotations.xml").write_text(cvat_xml(*written), encoding="utf-8")


def percent(
    found: Boxed, size: tuple[int, int], kind: str = "rectanglelabels", **value: object
) -> dict[str, Any]:
    """A region of Label Studio."""
    x1, y1, x2, y2 = found.box
    across, down = 100 / size[0], 100 / size[1]
    box = {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down}
    return {
        "id": str(id(found)), "type": kind, "from_name": "label", "to_name": "image",
        "original_width": size[0], "original_height": size[1], "image_rotation": 0,
        "value": box | {"rotation": 0, kind: [found.label]} | value,
    }  # fmt: skip


def choice(region: dict[str, Any], name: str) -> dict[str, Any]:
    """What a region of Label Studio is said to be besides."""
    return region | {"type": "choices", "from_name": "flags", "value": {"choices": [name]}}


def task(result: Sequence[dict[str, Any]], name: str = "a.jpg", **annotation: object) -> dict[str, Any]:
    return {
        "id": 1,
        "data": {"image": name},
        "predictions": [],
        "annotations": [{"result": result} | annotation],
    }


def write_labelstudio(folder: Path, images: Sequence[Pictured]) -> None:
    tasks = []
    for number, each in enumerate(images):
        regions = [percent(found, each.size) | {"id": f"r{at}"} for at, found in enumerate(each.boxes)]
        flags = [
            choice(region, "Difficult")
            for region, own in zip(regions, each.boxes, strict=True)
            if own.difficult
        ]
        name = quote(f"/data/upload/1/{number:08x}-{each.name}")
        tasks.append(task([*regions, *flags], name))
    (folder / "project-1.json").write_text(json.dumps(tasks), encoding="utf-8")


def labelme(
    shapes: Sequence[dict[str, Any]], name: str = "a.jpg", size: tuple[int, int] = (WIDTH, HEIGHT)
) -> str:
    sides = {"imageData": None, "imageHeight": size[1], "imageWidth": size[0]}
    return json.dumps({"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name} | sides)


def labelme_shape(found: Boxed, **more: object) -> dict[str, Any]:
    x1, y1, x2, y2 = found.box
    flags = {"difficult": found.difficult}
    shape = {"label": found.label, "points": [[x2, y1], [x1, y2]], "group_id": None, "flags": flags}
    return shape | {"shape_type": "rectangle"} | more


def write_labelme(folder: Path, images: Sequence[Pictured]) -> None:
    for each in images:
        text = labelme(list(map(labelme_shape, each.boxes)), f"..\\images\\{each.name}", each.size)
        (folder / f"{each.name}.json").write_text(text, encoding="utf-8")


def via_region(found: Boxed, attribute: str = "class") -> dict[str, Any]:
    x1, y1, x2, y2 = found.box
    shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    return {
        "shape_attributes": shape,
        "region_attributes": {attribute: found.label, "difficult": str(found.difficult)},
    }


def via(*images: tuple[str, Sequence[dict[str, Any]]]) -> str:
    found = {
        f"{name}9": {"filename": name, "size": 9, "regions": own, "file_attributes": {}}
        for name, own in images
    }
    return json.dumps({"_via_settings": {}, "_via_img_metadata": found, "_via_attributes": {}})


def write_via(folder: Path, images: Sequence[Pictured]) -> None:
    text = via(*((each.name, list(map(via_region, each.boxes))) for each in images))
    (folder / "via.json").write_text(text, encoding="utf-8")


def write_via_csv(folder: Path, images: Sequence[Pictured]) -> None:
    with (folder / "via.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        names = "filename file_size file_attributes region_count region_id"
        rows.writerow([*names.split(), "region_shape_attributes", "region_attributes"])
        for each in images:
            regions = list(map(via_region, each.boxes))
            for index, own in enumerate(regions or [{"shape_attributes": {}, "region_attributes": {}}]):
                rows.writerow([each.name, 9, "{}", len(regions), index, *map(json.dumps, own.values())])


def createml(*images: tuple[str, Sequence[Boxed]]) -> str:
    def item(found: Boxed) -> dict[str, Any]:
        x1, y1, x2, y2 = found.box
        middle = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}
        return {"label": found.label, "coordinates": middle}

    return json.dumps([{"image": name, "annotations": list(map(item, own))} for name, own in images])


def write_createml(folder: Path, images: Sequence[Pictured]) -> None:
    text = createml(*((each.name, each.boxes) for each in images))
    (folder / "_annotations.createml.json").write_text(text, encoding="utf-8")


def datumaro(items: Sequence[dict[str, Any]], names: Sequence[str] = ("bolt", "nut")) -> str:
    labels = [{"name": name, "parent": "", "attributes": []} for name in names]
    categories = {"label": {"labels": labels, "attributes": []}, "points": {"items": []}}
    return json.dumps({"dm_format_version": "1.0", "infos": {}, "categories": categories, "items": items})


def datumaro_item(
    annotations: Sequence[dict[str, Any]], name: str = "a.jpg", size: tuple[int, int] = (WIDTH, HEIGHT)
) -> dict[str, Any]:
    media = {"path": name, "size": [size[1], size[0]]}
    return {"id": name[:-4], "annotations": annotations, "attr": {"frame": 0}, "image": media}


def write_datumaro(folder: Path, images: Sequence[Pictured]) -> None:
    names = list(dict.fromkeys(found.label for each in images for found in each.boxes))

    def annotation(found: Boxed) -> dict[str, Any]:
        x1, y1, x2, y2 = found.box
        attributes = {"occluded": False, "difficult": found.difficult, "is_crowd": False}
        own = {
            "id": 0,
            "type": "bbox",
            "attributes": attributes,
            "group": 0,
            "label_id": names.index(found.label),
        }
        return own | {"z_order": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}

    items = [datumaro_item(list(map(annotation, each.boxes)), each.name, each.size) for each in images]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "default.json").write_text(datumaro(items, names), encoding="utf-8")


def supervisely(
    objects: Sequence[dict[str, Any]], size: tuple[int, int] = (WIDTH, HEIGHT), tags: Sequence[str] = ()
) -> str:
    named = [{"name": name, "value": None} for name in tags]
    sides = {"height": size[1], "width": size[0]}
    return json.dumps({"description": "", "tags": named, "size": sides, "objects": objects})


def supervisely_object(found: Boxed, **more: object) -> dict[str, Any]:
    x1, y1, x2, y2 = found.box
    tags = [{"name": "difficult", "value": None}] if found.difficult else []
    points = {"exterior": [[x1, y1], [x2, y2]], "interior": []}
    return {"classTitle": found.label, "geometryType": "rectangle", "tags": tags, "points": points} | more


def write_supervisely(folder: Path, images: Sequence[Pictured]) -> None:
    (folder / "ds0" / "ann").mkdir(parents=True)
    (folder / "images").rename(folder / "ds0" / "img")
    for each in images:
        text = supervisely(list(map(supervisely_object, each.boxes)), each.size)
        (folder / "ds0" / "ann" / f"{each.name}.json").write_text(text, encoding="utf-8")
    (folder / "meta.json").write_text('{"classes": [], "tags": []}', encoding="utf-8")


OPENIMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)

WRITERS: dict[str, Callable[[Path, Sequence[Pictured]], None]] = {
    "cvat": write_cvat,
    "labelstudio": write_labelstudio,
    "labelme": write_labelme,
    "via": write_via,
    "via, csv": write_via_csv,
    "createml": write_createml,
    "datumaro": write_datumaro,
    "supervisely": write_supervisely,
}
"""By the reader's name: images of these names lie in ``images/``."""
NO_FLAGS = ("createml",)


def approx(*box: float) -> object:
    return pytest.approx(box, abs=1e-3)
