"""Polygons and masks through conversions: COCO and YOLO-seg to JSONL and back, and out of every tool."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Record
from qwendet.data.samples import SampleFile
from qwendet.data.segmentation import Rle, rle_of
from qwendet.data.split import split_dataset
from tests.property.test_round_trips import png
from tests.property.test_tools import places
from tests.property.test_untrusted_annotations import assert_sound, junk
from tests.unit.data.tool_files import (
    cvat_image,
    cvat_xml,
    datumaro,
    datumaro_item,
    labelme,
    refusal,
    supervisely,
    task,
    via,
)

WIDTH, HEIGHT = 64, 48
HALF = np.zeros((HEIGHT, WIDTH), dtype=bool)
HALF[8:28, 4:14] = True
HALF[8:14, 4:8] = False
"""A mask that is no rectangle, within x 4 to 14 and y 8 to 28."""


@st.composite
def polygons(draw: st.DrawFn) -> list[float]:
    """Corners with up to two places, in an image of 64×48."""
    seed, count = Random(draw(st.integers(0, 10**6))), draw(st.integers(3, 9))
    return [round(seed.uniform(0, side), 2) for _ in range(count) for side in (WIDTH, HEIGHT)]


def extent(rings: list[list[float]]) -> list[float]:
    xs, ys = ([value for ring in rings for value in ring[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), max(xs), max(ys)]


def rle(seed: int, is_compressed: bool) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    mask = np.kron(chance.random((6, 8)) < 0.4, np.ones((8, 8))) > 0
    mask[3:9, 3:9] = True
    found = rle_of(mask).to_coco()
    if is_compressed:
        return found
    return {"size": found["size"], "counts": runs(mask.T.ravel())}


def runs(flat: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs, the first of the background."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    found: list[int] = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *found] if flat[0] else found


objects = st.lists(
    st.one_of(
        st.lists(polygons(), min_size=1, max_size=3),
        st.builds(rle, st.integers(0, 10**6), st.booleans()),
        st.just([]),
    ),
    min_size=1,
    max_size=5,
)


def box_of(found: Any) -> list[float]:
    """xywh."""
    if isinstance(found, dict):
        packed = found if isinstance(found["counts"], str) else coco.frPyObjects(found, HEIGHT, WIDTH)
        return [float(value) for value in coco.toBbox(packed)]
    x1, y1, x2, y2 = extent(found) if found else (1, 2, 30, 40)
    return [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(found=objects)
def test_coco__through_jsonl_and_back(found: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every segmentation is the same JSON, polygons and masks, compressed and not."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "0" / "annotations").mkdir(parents=True)
    (folder / "0" / "images").mkdir()
    (folder / "0" / "images" / "a.png").write_bytes(png((WIDTH, HEIGHT)))
    own = [segmentation for segmentation in found if min(box_of(segmentation)[2:]) > 0.1]
    annotations = [
        {"id": at, "image_id": 1, "category_id": 1, "iscrowd": int(isinstance(each, dict))}
        | {"bbox": box_of(each), "area": 9, "segmentation": each}
        for at, each in enumerate(own, start=1)
    ]
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": annotations}
    file = folder / "0" / "annotations" / "instances_train.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    for step, target in enumerate(("jsonl", "coco", "jsonl")):
        source, done = folder / str(step), folder / str(step + 1)
        report = convert_dataset(source, done, Conversion(target=target))  # type: ignore[arg-type]
        assert report.findings.keys() <= {"repeated", "unused"}
    again = json.loads((folder / "2" / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    assert [each["segmentation"] for each in again["annotations"]] == own
    assert (folder / "1" / "train.jsonl").read_bytes() == (folder / "3" / "train.jsonl").read_bytes()
    for sample in SampleFile(folder / "1" / "train.jsonl"):
        assert len(sample.student.objects) == len(own)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(found=st.lists(polygons(), min_size=1, max_size=5))
def test_yolo_seg__through_jsonl_and_back(
    found: list[list[float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("yolo")
    own = [ring for ring in found if min(box_of([ring])[2:]) > 0.1]
    rows = [[value / (WIDTH, HEIGHT)[at % 2] for at, value in enumerate(ring)] for ring in own]
    for kind in ("images", "labels"):
        (folder / "0" / kind / "train").mkdir(parents=True)
    (folder / "0" / "images" / "train" / "a.png").write_bytes(png((WIDTH, HEIGHT)))
    lines = ["0 " + " ".join(f"{value:.8f}".rstrip("0").rstrip(".") for value in row) + "\n" for row in rows]
    (folder / "0" / "labels" / "train" / "a.txt").write_text("".join(lines))
    (folder / "0" / "data.yaml").write_text("train: images/train\nnames: {0: cat}\ntask: segment\n")
    for step, target in enumerate(("jsonl", "yolo-seg", "jsonl")):
        source, done = folder / str(step), folder / str(step + 1)
        report = convert_dataset(source, done, Conversion(target=target))  # type: ignore[arg-type]
        assert report.findings.keys() <= {"repeated", "derived", "unused"}
    assert (folder / "2" / "labels" / "train" / "a.txt").read_text() == "".join(lines)
    for sample in SampleFile(folder / "3" / "train.jsonl"):
        rings = [item.segmentation for item in sample.student.objects]
        assert rings == [(pytest.approx(tuple(ring), abs=1e-4),) for ring in own]
        boxes = [item.bbox_2d for item in sample.student.objects]
        assert boxes == [pytest.approx(extent([ring]), abs=1e-4) for ring in own]


def sample_set(folder: Path, *objects: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(png((WIDTH, HEIGHT)))
    record = {"images": ["a.png"], "objects": list(objects)}
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return folder


TRIANGLE = {"bbox_2d": [1, 2, 30, 40.5], "desc": "cat", "polygon": [[1, 2, 30, 3, 9, 40.5]]}
BOX = {"bbox_2d": [5, 6, 15, 16], "desc": "cat"}
MASK = {"bbox_2d": [4, 8, 14, 28], "desc": "cat", "rle": rle_of(HALF).to_coco()}


@pytest.mark.parametrize("target", ["voc", "yolo", "swift", "llamafactory"])
def test_formats_without_polygons__say_that_they_are_lost(tmp_path: Path, target: str) -> None:
    src = sample_set(tmp_path / "in", TRIANGLE, BOX)
    report = convert_dataset(src, tmp_path / "out", Conversion(target=target, is_strict=True))  # type: ignore[arg-type]
    (note,) = report.findings["segmentations_lost"]
    assert note.endswith("train.jsonl:1: 'a.png'")


def test_yolo_seg__of_a_box_and_a_polygon_is_all_polygons_and_a_mask_is_told(tmp_path: Path) -> None:
    """Ultralytics takes every line of a file for a polygon if one is."""
    src = sample_set(tmp_path / "in", TRIANGLE, BOX, MASK)
    report = convert_dataset(src, tmp_path / "out", Conversion(target="yolo-seg"))
    assert len(report.findings["segmentations_lost"]) == 1
    lines = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [7, 9, 9]
    back = convert_dataset(tmp_path / "out", tmp_path / "back", Conversion())
    assert back.findings.keys() == {"derived"}
    (sample,) = SampleFile(tmp_path / "back" / "train.jsonl")
    boxes = [item.bbox_2d for item in sample.student.objects]
    assert boxes == [(1, 2, 30, 40.5), (5, 6, 15, 16), (4, 8, 14, 28)]


def test_split_and_shards__keep_them(tmp_path: Path) -> None:
    src = tmp_path / "in"
    src.mkdir()
    lines = []
    for number in range(4):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(src / f"{number}.png")
        lines.append(json.dumps({"images": [f"{number}.png"], "objects": [TRIANGLE, MASK]}) + "\n")
    (src / "all.jsonl").write_text("".join(lines))
    split_dataset(src, tmp_path / "parts", {"val": 0.25}, 0, Conversion())
    convert_dataset(tmp_path / "parts", tmp_path / "shards", Conversion(target="webdataset"))
    for folder in ("parts", "shards"):
        for sample in SampleFile(tmp_path / folder / "train.jsonl"):
            polygon, mask = (item.segmentation for item in sample.student.objects)
            assert polygon == ((1, 2, 30, 3, 9, 40.5),)
            assert mask == rle_of(HALF)


# Annotation tools

RING = ((1.0, 2.0, 30.0, 3.0, 9.0, 40.5),)
PAIRS = [[1, 2], [30, 3], [9, 40.5]]


def in_png(kind: str) -> bytes:
    """The part of ``HALF`` that its box holds, as tools store it."""
    part, file = HALF[8:28, 4:14].astype(np.uint8), io.BytesIO()
    if kind == "palette":  # Supervisely's SDK: index 0 is transparent
        image = Image.new("P", part.shape[::-1])
        image.putdata(part.ravel().tolist())
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(file, "PNG", transparency=0)
    else:  # Labelme: one bit or grey
        Image.fromarray(part * 255).save(file, "PNG")
    return file.getvalue()


def runs_by_rows() -> str:
    """CVAT's: row by row, within the mask's box."""
    return ", ".join(map(str, runs(HALF[8:28, 4:14].ravel())))


def percent_region() -> dict[str, Any]:
    value = {"points": [[x * 100 / WIDTH, y * 100 / HEIGHT] for x, y in PAIRS], "polygonlabels": ["cat"]}
    own = {"id": "a", "type": "polygonlabels", "from_name": "label", "to_name": "image", "image_rotation": 0}
    return own | {"original_width": WIDTH, "original_height": HEIGHT, "value": value}


def bitmap() -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(in_png("palette"))).decode()
    return {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"origin": [4, 8], "data": data}}


SHAPE = {"label": "cat", "group_id": None, "flags": {}}
OWN = {"label_id": 0, "group": 0}
AREA = {"classTitle": "cat", "geometryType": "polygon"}
VIA = {"name": "polygon", "all_points_x": [1, 30, 9], "all_points_y": [2, 3, 40.5]}
LABELME_MASK = {"shape_type": "mask", "points": [[4, 8], [13, 27]]}
TOOLS: dict[str, tuple[str, str, Any]] = {
    "cvat polygon": (
        "a.xml",
        cvat_xml(cvat_image('<polygon label="cat" points="1,2;30,3;9,40.5"/>')),
        RING,
    ),
    "cvat mask": (
        "a.xml",
        cvat_xml(
            cvat_image(f'<mask label="cat" rle="{runs_by_rows()}" left="4" top="8" width="10" height="20"/>')
        ),
        rle_of(HALF),
    ),
    "labelstudio": ("a.json", json.dumps([task([percent_region()])]), RING),
    "labelme polygon": ("a.json", labelme([SHAPE | {"shape_type": "polygon", "points": PAIRS}]), RING),
    "labelme mask": (
        "a.json",
        labelme([SHAPE | LABELME_MASK | {"mask": base64.b64encode(in_png("grey")).decode()}]),
        rle_of(HALF),
    ),
    "labelme group": (
        "a.json",
        labelme(
            [
                SHAPE | {"shape_type": "polygon", "points": PAIRS, "group_id": 1},
                SHAPE | {"shape_type": "polygon", "points": [[40, 5], [50, 5], [45, 9]], "group_id": 1},
                SHAPE | {"shape_type": "rectangle", "points": [[1, 2], [50, 41]], "group_id": 1},
            ]
        ),
        (*RING, (40.0, 5.0, 50.0, 5.0, 45.0, 9.0)),
    ),
    "via": (
        "a.json",
        via(("a.jpg", [{"shape_attributes": VIA, "region_attributes": {"label": "cat"}}])),
        RING,
    ),
    "datumaro polygon": (
        "d.json",
        datumaro([datumaro_item([OWN | {"type": "polygon", "points": [1, 2, 30, 3, 9, 40.5]}])]),
        RING,
    ),
    "datumaro mask": (
        "d.json",
        datumaro([datumaro_item([OWN | {"type": "mask", "rle": rle_of(HALF).to_coco()}])]),
        rle_of(HALF),
    ),
    "supervisely polygon": (
        "ds/ann/a.jpg.json",
        supervisely([AREA | {"points": {"exterior": PAIRS, "interior": []}}]),
        RING,
    ),
    "supervisely bitmap": ("ds/ann/a.jpg.json", supervisely([bitmap()]), rle_of(HALF)),
}


@pytest.mark.parametrize("kind", TOOLS)
def test_tools__polygons_and_masks_are_kept(tmp_path: Path, kind: str) -> None:
    name, text, expected = TOOLS[kind]
    image = tmp_path / ("ds/img/a.jpg" if name.startswith("ds") else "images/a.jpg")
    for file in (tmp_path / name, image):
        file.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    (record,) = (item for item in open_source(tmp_path).items if isinstance(item, Record))
    (found,) = record.turn.objects
    if isinstance(expected, Rle):
        assert found.segmentation == expected
        assert found.bbox_2d == (4, 8, 14, 28) or kind == "labelme mask"
    else:
        assert found.segmentation == tuple(pytest.approx(ring, abs=1e-4) for ring in expected)
    assert "misfit" not in {finding.kind for finding in record.findings}


@pytest.mark.parametrize("kind", [kind for kind in TOOLS if "cvat" not in kind])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 10**6), value=st.one_of(junk, st.just({}), st.lists(junk, max_size=2)))
@example(at=4693, value=float("nan"))
def test_tools__any_value_anywhere_gives_sound_records_or_data_errors(
    kind: str, at: int, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, text, _ = TOOLS[kind]
    folder = tmp_path_factory.mktemp("junk")
    image = folder / ("ds/img/a.jpg" if name.startswith("ds") else "images/a.jpg")
    for file in (folder / name, image):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    content = json.loads(text)
    found = list(places(content))
    container, key = found[at % len(found)]
    container[key] = value
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    assert_sound(folder, size=(WIDTH, HEIGHT))


def test_supervisely__holes_are_holes(tmp_path: Path) -> None:
    square = [[10, 10], [40, 10], [40, 40], [10, 40]]
    hole = [[20, 20], [30, 20], [30, 30], [20, 30]]
    text = supervisely([AREA | {"points": {"exterior": square, "interior": [hole]}}])
    (tmp_path / "ds" / "ann").mkdir(parents=True)
    (tmp_path / "ds" / "img").mkdir()
    (tmp_path / "ds" / "ann" / "a.jpg.json").write_text(text)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "ds" / "img" / "a.jpg")
    (record,) = (item for item in open_source(tmp_path).items if isinstance(item, Record))
    (found,) = record.turn.objects
    assert isinstance(found.segmentation, Rle)
    assert coco.area(found.segmentation.to_coco()) == 30 * 30 - 10 * 10


# What is told and refused

COCO_KINDS: dict[str, tuple[Any, str]] = {
    "odd": ([[1, 2, 30, 3, 9, 40, 5]], "segmentation[0]: expected x and y of three corners or more, got 7"),
    "two corners": ([[1, 2, 30, 40]], "segmentation[0]: expected x and y of three corners or more, got 4"),
    "other size": (
        {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]},
        f"segmentation: the mask is of {HEIGHT}×{WIDTH}, and the image {WIDTH}×{HEIGHT}",
    ),
    "too short": ({"size": [HEIGHT, WIDTH], "counts": [9]}, "the mask's counts do not fill its size"),
    "words": ("polygon", "segmentation[0]: expected [x1, y1, x2, y2, x3, y3, …], got 'polygon'"),
}


@pytest.mark.parametrize("kind", COCO_KINDS)
def test_coco__malformed_ones_beside_a_box_are_told_and_refused_if_strict(tmp_path: Path, kind: str) -> None:
    """A box that was sound stays so; without a box there is nothing to go by."""
    segmentation, words = COCO_KINDS[kind]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 29, 38], "segmentation": segmentation}
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [entry]}
    (tmp_path / "a.png").write_bytes(png((WIDTH, HEIGHT)))
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    report = convert_dataset(file, tmp_path / "out", Conversion())
    (note,) = report.findings["unreadable"]
    assert "annotations[0]" in note
    assert words in note
    (sample,) = SampleFile(tmp_path / "out" / "train.jsonl")
    assert [(item.bbox_2d, item.segmentation) for item in sample.student.objects] == [((1, 2, 30, 40), None)]
    with pytest.raises(Exception, match="polygons or masks that are none"):
        convert_dataset(file, tmp_path / "strict", Conversion(is_strict=True))
    assert not (tmp_path / "strict").exists()
    del entry["bbox"]
    file.write_text(json.dumps(content))
    (problem,) = (item for item in open_source(file).items if hasattr(item, "fix"))
    assert "annotations[0]" in problem.where


TOO_LARGE = 'rle="1" left="0" top="0" width="1" height="1"'
MASKS = {
    "too few runs": (
        'rle="4" left="4" top="8" width="10" height="20"',
        "runs of 10×20 pixels of the image, got 4",
    ),
    "outside": ('rle="200" left="60" top="8" width="10" height="20"', "of the image, got 200 at 60, 8"),
    "no number": ('rle="a" left="4" top="8" width="10" height="20"', "expected a valid integer"),
    "none": ('left="4" top="8" width="10" height="20"', "expected a valid integer"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_cvat__masks_that_are_none_are_refused(tmp_path: Path, kind: str) -> None:
    mask, words = MASKS[kind]
    message = refusal(tmp_path, {"a.xml": cvat_xml(cvat_image(f'<mask label="cat" {mask}/>')), "a.jpg": 1})
    assert "mask 1" in message
    assert words in message


@pytest.mark.parametrize("kind", ["via", "datumaro polygon"])
def test_tools__an_odd_number_of_coordinates_is_refused(tmp_path: Path, kind: str) -> None:
    name, text, _ = TOOLS[kind]
    message = refusal(tmp_path, {name: text.replace("9, 40.5", "9").replace("3, 40.5", "3"), "a.jpg": 1})
    assert "expected x and y of each corner, got 3 and 2 numbers" in message


def test_cvat__the_mask_of_an_image_of_claimed_gigapixels_takes_no_memory(tmp_path: Path) -> None:
    image = cvat_image(f'<mask label="cat" {TOO_LARGE}/>', size=(100_000, 100_000))
    message = refusal(tmp_path, {"a.xml": cvat_xml(image), "a.jpg": 1})
    assert "the image is said to have 100000×100000 pixels, too many for a mask" in message


def test_polygon_elsewhere__is_told(tmp_path: Path) -> None:
    src = sample_set(tmp_path / "in", TRIANGLE | {"bbox_2d": [20, 2, 49, 40.5]}, TRIANGLE)
    report = convert_dataset(src, tmp_path / "out", Conversion(target="coco", is_strict=True))
    (note,) = report.findings["misfit"]
    assert note.endswith("train.jsonl:1: objects[0] (cat): [20, 2, 49, 40.5]")


def test_polygon_over_the_edge__is_cut_with_its_box(tmp_path: Path) -> None:
    polygon = [50, 2, 64.5, 2, 64.5, 10, 50, 10]
    src = sample_set(tmp_path / "in", {"bbox_2d": [50, 2, 64.5, 10], "desc": "cat", "polygon": [polygon]})
    convert_dataset(src, tmp_path / "out", Conversion(target="coco"))
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    (found,) = content["annotations"]
    assert found["bbox"] == [50, 2, 14, 8]
    assert found["segmentation"] == [[50, 2, 64, 2, 64, 10, 50, 10]]
