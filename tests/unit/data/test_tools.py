"""Labelme, VIA, CreateML, Datumaro, Supervisely and Open Images, and the mistakes that their users make."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.checks.config.sample_files import find_data
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import run_data_checks
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import detect_format, open_source
from qwendet.data.formats.records import Record
from qwendet.errors import DataError
from tests.unit.data.test_quirks import lay_out
from tests.unit.data.tool_files import (
    OPENIMAGES,
    Boxed,
    approx,
    createml,
    cvat_image,
    cvat_xml,
    datumaro,
    datumaro_item,
    labelme,
    labelme_shape,
    read,
    read_one,
    refusal,
    supervisely,
    supervisely_object,
    via,
    via_region,
)

BOLT = Boxed("bolt", (4, 8, 20, 28))
IMAGE: dict[str, Any] = {"images/a.jpg": 1}
LABELME = labelme_shape(BOLT)
VIA = via_region(BOLT)
SUPERVISELY = supervisely_object(BOLT)
DATUMARO = {"type": "bbox", "label_id": 0, "bbox": [4, 8, 16, 20], "attributes": {}, "group": 0}
ROW = "a,xclick,/m/1,1,{},{},0,0,0,0,0"


def via_shape(**shape: object) -> str:
    return via(("a.jpg", [VIA | {"shape_attributes": shape}]))


def via_attributes(**attributes: object) -> str:
    return via(("a.jpg", [VIA | {"region_attributes": attributes}]))


def ann(*objects: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"ds/ann/a.jpg.json": supervisely(objects, **more), "ds/img/a.jpg": 1}


def bitmap(size: tuple[int, int]) -> str:
    png = io.BytesIO()
    Image.new("1", size, 1).save(png, "PNG")
    return base64.b64encode(zlib.compress(png.getvalue())).decode()


def items(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"annotations/default.json": datumaro([datumaro_item(annotations, **more)]), **IMAGE}


def rows(*own: str) -> dict[str, Any]:
    table = "\n".join([OPENIMAGES, *own]) + "\n"
    return {"train-annotations-bbox.csv": table, "class-descriptions-boxable.csv": "/m/1,bolt\n/m/2,nut\n"}


SHAPES: dict[str, tuple[dict[str, Any], tuple[float, ...], str]] = {
    "labelme polygon": (
        {
            "a.json": labelme([LABELME | {"shape_type": "polygon", "points": [[1, 2], [30, 3], [9, 40.5]]}]),
            "a.jpg": 1,
        },
        (1, 2, 30, 40.5),
        "(polygon)",
    ),
    "labelme circle": (
        {"a.json": labelme([LABELME | {"shape_type": "circle", "points": [[20, 20], [23, 24]]}]), "a.jpg": 1},
        (15, 15, 25, 25),
        "(circle)",
    ),
    "labelme group": (
        {
            "a.json": labelme(
                [LABELME | {"group_id": 1}, LABELME | {"group_id": 1, "points": [[9, 9], [40, 10]]}]
            ),
            "a.jpg": 1,
        },
        (4, 8, 40, 28),
        "(2 shapes of group 1)",
    ),
    "via circle": (
        {"v.json": via_shape(name="circle", cx=20, cy=20, r=5), **IMAGE},
        (15, 15, 25, 25),
        "(circle)",
    ),
    "via ellipse": (
        {"v.json": via_shape(name="ellipse", cx=20, cy=20, rx=5, ry=9, theta=0), **IMAGE},
        (15, 11, 25, 29),
        "(ellipse)",
    ),
    "via polygon": (
        {"v.json": via_shape(name="polygon", all_points_x=[1, 30, 9], all_points_y=[2, 3, 40]), **IMAGE},
        (1, 2, 30, 40),
        "(polygon)",
    ),
    "datumaro polygon": (
        items(DATUMARO | {"type": "polygon", "points": [1, 2, 30, 3, 9, 40]}),
        (1, 2, 30, 40),
        "(polygon)",
    ),
    "datumaro rotated": (
        items(DATUMARO | {"type": "rotated_bbox", "bbox": [30, 15, 20, 10, 90]}),
        (25, 5, 35, 25),
        "(rotated_bbox)",
    ),
    "datumaro mask": (
        items(
            DATUMARO | {"type": "mask", "rle": {"size": [48, 64], "counts": [48 * 4 + 8, 20, 48 * 60 - 28]}}
        ),
        (4, 8, 5, 28),
        "(mask)",
    ),
    "datumaro box and mask": (
        items(
            DATUMARO | {"group": 2},
            DATUMARO | {"group": 2, "type": "polygon", "points": [4, 8, 20, 8, 20, 28]},
        ),
        (4, 8, 20, 28),
        "(2 shapes of group 2)",
    ),
    "supervisely polygon": (
        ann(SUPERVISELY | {"geometryType": "polygon", "points": {"exterior": [[1, 2], [30, 3], [9, 40]]}}),
        (1, 2, 30, 40),
        "(polygon)",
    ),
    "supervisely bitmap": (
        ann(SUPERVISELY | {"geometryType": "bitmap", "bitmap": {"origin": [5, 6], "data": bitmap((10, 20))}}),
        (5, 6, 15, 26),
        "(bitmap)",
    ),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes__give_their_extent_and_are_told(tmp_path: Path, kind: str) -> None:
    files, box, note = SHAPES[kind]
    found = read_one(tmp_path, files)
    assert list(found.boxes.values()) == [[("bolt", approx(*box))]]
    assert [told.endswith(note) for told in found.findings["derived"]] == [True]


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "labelme point": (
        {"a.json": labelme([LABELME | {"shape_type": "point", "points": [[1, 2]]}]), "a.jpg": 1},
        "point",
    ),
    "via point": ({"v.json": via_shape(name="point", cx=1, cy=2), **IMAGE}, "point"),
    "via polyline": (
        {"v.json": via_shape(name="polyline", all_points_x=[1], all_points_y=[2]), **IMAGE},
        "polyline",
    ),
    "datumaro label": (items({"type": "label", "label_id": 1}), "label"),
    "supervisely line": (ann(SUPERVISELY | {"geometryType": "line"}), "line"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_no_box__is_left_out_and_told(tmp_path: Path, kind: str) -> None:
    files, note = LEFT_OUT[kind]
    found = read_one(tmp_path, files)
    assert list(found.boxes.values()) == [[]]
    assert [told.endswith(f": {note}") for told in found.findings["no_extent"]] == [True]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "labelme without points": ({"a.json": labelme([LABELME | {"points": []}])}, "shapes.0.points: "),
    "labelme cut": ({"a.json": labelme([LABELME])[:-5]}, "a.json: expected JSON, got a broken file"),
    "labelme without label": (
        {"a.json": labelme([LABELME | {"label": ""}]), "a.jpg": 1},
        "shapes[0]: label: expected",
    ),
    "labelme image elsewhere": (
        {"a.json": labelme([LABELME], "C:\\pictures\\b.jpg")},
        "'C:\\\\pictures\\\\b.jpg' is abs",
    ),
    "via several attributes": (
        {"v.json": via_attributes(kind="bolt", state="new"), **IMAGE},
        "which of the attributes kind, state is the lab",
    ),
    "via no attribute": (
        {"v.json": via_attributes(), **IMAGE},
        "region 1: label: expected a label text, got None",
    ),
    "via two choices": (
        {"v.json": via_attributes(label={"bolt": True, "nut": True}), **IMAGE},
        "label: expected one choice, got bolt, nut",
    ),
    "via shape": ({"v.json": via_shape(name="star"), **IMAGE}, "expected a shape of VIA, got 'star'"),
    "via polygon of no number": (
        {
            "v.json": via_shape(name="polygon", all_points_x=[1, float("nan"), 9], all_points_y=[2, 3, 40]),
            **IMAGE,
        },
        "1: expected a finite number, got nan",
    ),
    "via number": (
        {"v.json": via_shape(name="rect", x=1, y=2, width="w", height=3), **IMAGE},
        "width: expected a valid",
    ),
    "createml fractions": (
        {"c.json": createml(("a.jpg", [Boxed("bolt", (0.1, 0.1, 0.5, 0.5))])), **IMAGE},
        "expected pixels, got fractions",
    ),
    "createml corner as centre": (
        {"c.json": createml(("a.jpg", [Boxed("bolt", (-20, -20, 20, 20))])), **IMAGE},
        "leaves the image of 64×48 by 20",
    ),
    "datumaro label id": (
        items(DATUMARO | {"label_id": 7}),
        "annotations[0]: label_id: there is no label 7 among 2",
    ),
    "datumaro box": (
        items(DATUMARO | {"bbox": [1, 2, 3]}),
        "annotations[0]: h: expected a valid number, got None",
    ),
    "datumaro points in space": (
        items(DATUMARO | {"type": "cuboid_3d"}),
        "of the type 'cuboid_3d' is not read",
    ),
    "supervisely bitmap": (
        ann(SUPERVISELY | {"bitmap": {"origin": [5, 6], "data": "AAAA"}, "geometryType": "bitmap"}),
        "bitmap.data cannot be",
    ),
    "supervisely absent image": (
        {"ds/ann/a.jpg.json": supervisely([SUPERVISELY]), "ds/img/b.jpg": 1},
        "the image 'ds/ann/a.jpg' is absent",
    ),
    "open images code": (
        rows(ROW.format("0.1,0.5", "0.2,0.6").replace("/m/1", "/m/9")) | {"a.jpg": 1},
        "class '/m/9'",
    ),
    "open images pixels": (
        rows(ROW.format("1,50", "2,60")) | {"a.jpg": 1},
        "expected fractions of the image, got",
    ),
    "open images in another code": (
        {"train-annotations-bbox.csv": rows()["train-annotations-bbox.csv"].encode() + b"\xff\n", "a.jpg": 1},
        "train-annotations-bbox.csv: expected a table in UTF-8",
    ),
    "via with a polygon beyond a table's limits": (
        {
            "v.csv": "filename,region_id,region_shape_attributes\na.jpg,0," + "1" * 140_000,
            **IMAGE,
        },
        "v.csv: expected a table (field larger than field limit",
    ),
    "open images apart": (
        rows(*(ROW.format(".1,.5", ".2,.6").replace("a,", f"{name},", 1) for name in "aba"))
        | {"a.jpg": 1, "b.jpg": 2},
        "train-annotations-bbox.csv:4: the rows of 'a' are not together",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mistakes__are_told_with_their_place(tmp_path: Path, kind: str) -> None:
    files, what = REFUSED[kind]
    assert what in refusal(tmp_path, files)


def test_labelme__flags_and_files_beside(tmp_path: Path) -> None:
    shapes = [LABELME, LABELME | {"flags": {"Difficult": True}, "points": [[1, 1], [9, 9]]}]
    files = {
        "train/a.json": labelme(shapes),
        "train/a.jpg": 1,
        "val/b.json": labelme([], "b.jpg"),
        "val/b.jpg": 2,
    }
    found = read_one(tmp_path, files | {"train/config.json": "{}", "train/c.jpg": 3})
    assert found.splits == {"train/a.jpg": "train", "val/b.jpg": "val"}
    assert {kind: len(notes) for kind, notes in found.findings.items()} == {"unlisted": 1, "no_annotation": 1}
    records = [item for item in open_source(tmp_path).items if isinstance(item, Record)]
    assert [own.difficult for record in records for own in record.turn.objects] == [False, True]


def test_labelme__a_word_for_a_split_in_the_name_of_an_image_is_none(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"train_1.json": labelme([LABELME], "train_1.jpg"), "train_1.jpg": 1})
    assert found.splits == {"train_1.jpg": "all"}


def test_via__attribute_called_as_a_label_counts(tmp_path: Path) -> None:
    text = via_attributes(state="new", Class="bolt", color={"red": True})
    assert read_one(tmp_path, {"v.json": text, **IMAGE}).boxes == {"images/a.jpg": [("bolt", (4, 8, 20, 28))]}


def test_via__version_1(tmp_path: Path) -> None:
    text = json.dumps({"a.jpg9": {"filename": "a.jpg", "regions": {"0": VIA}, "size": 9}})
    found = read_one(tmp_path, {"train/via_region_data.json": text, "train/a.jpg": 1})
    assert (found.boxes, found.splits) == (
        {"train/a.jpg": [("bolt", (4, 8, 20, 28))]},
        {"train/a.jpg": "train"},
    )


def test_supervisely__splits_by_tags_and_folders(tmp_path: Path) -> None:
    files = {
        "ds1/ann/a.jpg.json": supervisely([SUPERVISELY], tags=["val"]),
        "ds1/img/a.jpg": 1,
        "ds2/ann/a.jpg.json": supervisely([], tags=["train", "night"]),
        "ds2/img/a.jpg": 2,
    }
    found = read_one(tmp_path, files)
    assert found.splits == {"ds1/img/a.jpg": "val", "ds2/img/a.jpg": "train"}
    assert [len(boxes) for boxes in found.boxes.values()] == [1, 0]


def test_open_images__groups_are_crowds_and_absent_images_are_counted(tmp_path: Path) -> None:
    group = "a,xclick,/m/2,1,0,1,0,1,0,0,1,0,0"
    absent = [ROW.format("0,1", "0,1").replace("a,", f"{name},", 1) for name in ("b", "c")]
    found = read_one(tmp_path, rows(ROW.format("0.25,0.5", "0.5,0.75"), group, *absent) | {"train/a.jpg": 1})
    assert found.boxes == {"train/a.jpg": [("bolt", approx(16, 24, 32, 36)), ("nut", approx(0, 0, 64, 48))]}
    assert found.splits == {"train/a.jpg": "train"}
    assert found.findings == {"not_there": [f"{tmp_path}: 2"]}
    (record,) = [item for item in open_source(tmp_path).items if isinstance(item, Record)]
    assert [own.crowd for own in record.turn.objects] == [False, True]


def turned_jpeg(size: tuple[int, int]) -> bytes:
    """An image that is displayed upright by its EXIF orientation."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", size).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("annotations.xml", cvat_xml(cvat_image('<box label="bolt" xtl="4" ytl="8" xbr="20" ybr="28"/>'))),
        ("a.json", labelme([LABELME])),
        ("d.json", datumaro([datumaro_item([DATUMARO])])),
        ("ann/a.jpg.json", supervisely([SUPERVISELY])),
    ],
)
def test_size_before_the_orientation__is_refused(tmp_path: Path, name: str, text: str) -> None:
    """The tools show images upright; who gives their size otherwise has drawn boxes elsewhere."""
    assert "before its EXIF orientation" in refusal(
        tmp_path, {name: text, "images/a.jpg": turned_jpeg((64, 48))}
    )


def test_boxes_on_a_turned_image__stay(tmp_path: Path) -> None:
    text = labelme([LABELME], size=(48, 64))
    found = read_one(tmp_path, {"a.json": text, "a.jpg": turned_jpeg((64, 48))})
    assert (found.boxes, found.findings) == ({"a.jpg": [("bolt", (4, 8, 20, 28))]}, {})


EVERY: dict[str, dict[str, Any]] = {
    "labelme": {"a.json": labelme([LABELME]), "a.jpg": 1},
    "via": {"v.json": via(("a.jpg", [VIA])), **IMAGE},
    "createml": {"train/_annotations.createml.json": createml(("a.jpg", [BOLT])), "train/a.jpg": 1},
    "datumaro": items(DATUMARO),
    "supervisely": ann(SUPERVISELY),
    "openimages": rows(ROW.format("0.25,0.5", "0.5,0.75")) | {"train/a.jpg": 1},
}


@pytest.mark.parametrize("tool", EVERY)
def test_every_tool__is_recognised_checked_and_converted(tmp_path: Path, tool: str) -> None:
    folder = lay_out(tmp_path / "in", EVERY[tool])
    assert detect_format(folder) == tool
    results, _ = run_data_checks(find_data([folder]), None, Thoroughness("full", workers=1))
    assert [result.what for result in results if result.status == "fail"] == []
    report = convert_dataset(folder, tmp_path / "out", Conversion(is_strict=True))
    assert [sum(boxes.values()) for boxes in report.boxes.values()] == [1]
    assert report.left_out == ()


@pytest.mark.parametrize("tool", EVERY)
def test_from__another_format_is_refused(tmp_path: Path, tool: str) -> None:
    folder = lay_out(tmp_path / "in", {"readme.txt": "", **IMAGE})
    with pytest.raises(DataError, match=r"expected .*, got none"):
        open_source(folder, tool)


def coco_of(image: dict[str, Any], **annotation: Any) -> str:
    own = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [4, 8, 16, 20], "area": 320.0, "iscrowd": 0}
    content = {
        "images": [{"id": 7, "width": 64, "height": 48} | image],
        "annotations": [own | annotation],
        "categories": [{"id": 3, "name": "bolt"}],
    }
    return json.dumps(content)


def test_objects365__is_coco(tmp_path: Path) -> None:
    """Names hold folders of the publisher; with --image-dir their end counts."""
    text = coco_of({"file_name": "images/v1/patch0/objects365_v1_1.jpg"}, isfake=0, isreflected=0)
    folder = lay_out(tmp_path, {"zhiyuan_objv2_train.json": text, "train/patch0/objects365_v1_1.jpg": 1})
    found = read(folder, image_dir=folder / "train")
    assert (found.boxes, found.problems) == ({"patch0/objects365_v1_1.jpg": [("bolt", (4, 8, 20, 28))]}, [])
    assert found.splits == {"patch0/objects365_v1_1.jpg": "train"}


def test_lvis__is_coco(tmp_path: Path) -> None:
    """Images have a URL and no name."""
    image = {"coco_url": "http://images.cocodataset.org/train2017/000000000007.jpg", "neg_category_ids": []}
    folder = lay_out(tmp_path, {"lvis_v1_train.json": coco_of(image), "train2017/000000000007.jpg": 1})
    found = read(folder)
    assert (found.boxes, found.problems) == ({"train2017/000000000007.jpg": [("bolt", (4, 8, 20, 28))]}, [])
