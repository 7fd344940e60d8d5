"""COCO: layouts, boxes of every kind, and mistakes, each named with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from qwendet.data.formats.coco_layout import find_coco
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Finding, Labels, Record
from qwendet.errors import DataError, Problem

WIDTH, HEIGHT = 64, 48
IMAGE = {"id": 10, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}
CELL = {"id": 7, "name": "cell", "supercategory": "thing"}


def box(bbox: Any = (1, 2, 30, 40), **changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 10, "category_id": 7, "bbox": list(bbox), "iscrowd": 0} | changes


def write(
    folder: Path,
    annotations: Sequence[Any] = (),
    images: Sequence[Any] = (IMAGE,),
    categories: Sequence[Any] = (CELL,),
    name: str = "instances.json",
    files: Mapping[str, tuple[int, int]] | None = None,
) -> Path:
    """Write an annotation file, and the images beside it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    for file, size in (files if files is not None else {"a.jpg": (WIDTH, HEIGHT)}).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / file)
    return path


def records(path: Path, **options: Any) -> list[Record]:
    return [item for item in open_source(path, "coco", **options).items if isinstance(item, Record)]


def problems(path: Path) -> list[str]:
    found = [item for item in open_source(path, "coco").items if isinstance(item, Problem)]
    return [f"{problem.where}: {problem.what}" for problem in found]


def findings(path: Path) -> list[tuple[str, str]]:
    items = list(open_source(path, "coco").items)
    inner = [finding for item in items if isinstance(item, Record) for finding in item.findings]
    return [(item.kind, item.note) for item in [*items, *inner] if isinstance(item, Finding)]


# Layouts


def test_layout__as_published(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image = IMAGE | {"file_name": f"{split}.jpg"}
        write(tmp_path, [box()], [image], name=f"annotations/instances_{split}2017.json", files={})
        Path(tmp_path / f"{split}2017").mkdir()
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{split}2017" / f"{split}.jpg")
    write(tmp_path, name="annotations/captions_val2017.json", files={})
    found = records(tmp_path)
    assert [(record.split, record.turn.image, record.name) for record in found] == [
        ("train", "train2017/train.jpg", "train.jpg"),
        ("val", "val2017/val.jpg", "val.jpg"),
    ]
    assert findings(tmp_path) == [("other_task", f"{tmp_path}/annotations/captions_val2017.json")]
    (alone,) = records(tmp_path / "annotations" / "instances_val2017.json")
    assert (alone.split, alone.turn.image) == ("val", "val2017/val.jpg")


def test_layout__roboflow(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        write(tmp_path / folder, [box()], name="_annotations.coco.json")
    found = [(record.split, record.turn.image, record.name) for record in records(tmp_path)]
    assert found == [
        ("test", "test/a.jpg", "a.jpg"),
        ("train", "train/a.jpg", "a.jpg"),
        ("val", "valid/a.jpg", "a.jpg"),
    ]


def test_layout__sub_folders_and_windows_separators(tmp_path: Path) -> None:
    images = [IMAGE | {"file_name": "x/a.jpg"}, IMAGE | {"id": 11, "file_name": "y\\a.jpg"}]
    write(tmp_path, [], images, files={f"images/{name}/a.jpg": (WIDTH, HEIGHT) for name in "xy"})
    assert [(record.turn.image, record.name) for record in records(tmp_path)] == [
        ("images/x/a.jpg", "x/a.jpg"),
        ("images/y/a.jpg", "y/a.jpg"),
    ]


def test_layout__trainval(tmp_path: Path) -> None:
    write(tmp_path, name="trainval.json")
    assert [file.split for file in find_coco(tmp_path).files] == ["all"]
    write(tmp_path, name="test.json")
    assert {file.path.stem: file.split for file in find_coco(tmp_path).files} == {
        "trainval": "train",
        "test": "test",
    }
    write(tmp_path, name="train.json")
    assert {file.path.stem for file in find_coco(tmp_path).files} == {"train", "test"}


def test_layout__two_files_for_a_split(tmp_path: Path) -> None:
    for name in ("instances_train.json", "instances_train2017.json"):
        write(tmp_path, name=name)
    with pytest.raises(DataError, match=r"two annotation files for train: instances_train.json and inst"):
        find_coco(tmp_path)


def test_image__named_by_its_url_alone(tmp_path: Path) -> None:
    """As LVIS has it, whose validation images lie in both of COCO's folders."""
    entry = {key: value for key, value in IMAGE.items() if key != "file_name"}
    url = "http://images.cocodataset.org/val2017/a.jpg"
    write(tmp_path, [box()], [entry | {"coco_url": url}], files={"val2017/a.jpg": (WIDTH, HEIGHT)})
    assert [record.turn.image for record in records(tmp_path)] == ["val2017/a.jpg"]


@pytest.mark.parametrize(
    ("entry", "task"),
    [
        ({"id": 1, "image_id": 10, "caption": "a cell"}, "captions"),
        ({"image_id": 10, "segments_info": [], "file_name": "a.png"}, "panoptic segmentation"),
    ],
)
def test_files_of_other_tasks__are_told(tmp_path: Path, entry: dict[str, Any], task: str) -> None:
    write(tmp_path, [entry])
    with pytest.raises(DataError, match=f"this is a COCO file of {task}, without boxes"):
        problems(tmp_path)


def test_layout__images_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "data", [box()], files={})
    with pytest.raises(DataError, match=r"found none of the first images \('a.jpg', …\) in any of: \."):
        records(tmp_path / "data")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "photos" / "a.jpg")
    (record,) = records(tmp_path / "data", image_dir=tmp_path / "photos")
    assert record.turn.image == "a.jpg"


@pytest.mark.parametrize(
    "name",
    ["/home/x/up/a.jpg", "C:\\up\\a.jpg", "../../label-studio/data/media/up/a.jpg", "images/v1/up/a.jpg"],
)
def test_layout__images_elsewhere__of_another_machine(tmp_path: Path, name: str) -> None:
    """As Label Studio and Objects365 name them: what ends like the path is the image."""
    images = [IMAGE | {"file_name": name}, IMAGE | {"id": 11, "file_name": "/other/a.jpg"}]
    path = write(tmp_path / "set", [box()], images, files={"../pictures/up/a.jpg": (WIDTH, HEIGHT)})
    found = records(path, image_dir=tmp_path / "pictures")
    assert [record.turn.image for record in found] == ["up/a.jpg"]
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "pictures" / "up" / "b.jpg")
    images[1] = IMAGE | {"id": 11, "file_name": "/x/../up/b.jpg"}
    path = write(tmp_path / "set", [box()], images, files={})
    found = records(path, image_dir=tmp_path / "pictures")
    assert [record.turn.image for record in found] == ["up/a.jpg", "up/b.jpg"]


def test_layout__images_elsewhere__one_for_two(tmp_path: Path) -> None:
    """The second of two names that end alike is not given the first one's image."""
    images = [IMAGE | {"file_name": "/x/a.jpg"}, IMAGE | {"id": 11, "file_name": "/y/a.jpg"}]
    path = write(tmp_path / "set", [box()], images, files={"../pictures/a.jpg": (WIDTH, HEIGHT)})
    items = list(open_source(path, "coco", image_dir=tmp_path / "pictures").items)
    (problem,) = [item for item in items if isinstance(item, Problem)]
    assert "the image path '/y/a.jpg' is absolute" in problem.what


def test_layout__images_not_there_but_not_needed(tmp_path: Path) -> None:
    write(tmp_path, [box()], files={})
    (record,) = records(tmp_path, may_be_absent=True)
    assert (record.turn.width, record.turn.height) == (WIDTH, HEIGHT)
    assert [finding.kind for finding in record.findings] == ["absent"]


# What is read


def test_record(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            box((1.1, 2.2, 30.3, 40.4), iscrowd=1, area=3, attributes={"x": [1]}),
            box((0, 0, WIDTH, HEIGHT), id=2, difficult=1),
            box((0, 0, 1, 1), id=3, ignore=1),
        ],
    )
    labels, record = open_source(path, "coco").items
    assert labels == Labels(("cell",))
    assert isinstance(record, Record)
    assert (record.split, record.findings) == ("all", ())
    objects = record.turn.objects
    assert [(o.bbox_2d, o.desc, o.crowd, o.difficult, o.area) for o in objects] == [
        ((1.1, 2.2, 31.4, 42.6), "cell", True, False, 3),
        ((0, 0, WIDTH, HEIGHT), "cell", False, True, None),
        ((0, 0, 1, 1), "cell", False, True, None),
    ]


def test_area__is_kept_from_coco_through_jsonl_to_coco(tmp_path: Path) -> None:
    """To the last digit; 0, which tools write that do not compute it, and nothing are none."""
    source = write(
        tmp_path,
        [box(area=702.1057499999998), box(id=2, area=0), box((3, 4, 5, 6), id=3), box((0, 0, 9, 9), id=4)],
    )
    how = {"images": "reference"}
    convert_dataset(source, tmp_path / "jsonl", Conversion(**how))
    (line,) = (tmp_path / "jsonl" / "all.jsonl").read_text(encoding="utf-8").splitlines()
    found = [record.get("area") for record in json.loads(line)["objects"]]
    assert found == [702.1057499999998, None, None, None]
    convert_dataset(tmp_path / "jsonl", tmp_path / "coco", Conversion(target="coco", **how))
    written = json.loads((tmp_path / "coco" / "annotations" / "instances_all.json").read_text())
    assert [entry["area"] for entry in written["annotations"]] == [702.1057499999998, 1200, 30, 81]


def test_lvis__federated_annotations_are_kept(tmp_path: Path) -> None:
    """Into sample files and, numbered anew, into COCO."""
    categories = [
        CELL | {"frequency": "r"},
        {"id": 3, "name": "worm", "frequency": "f"},
        {"id": 5, "name": "egg"},
    ]
    lists = {"neg_category_ids": [3], "not_exhaustive_category_ids": [7, 7]}
    path = write(tmp_path / "src", [box()], [IMAGE | lists], categories)
    convert_dataset(path, tmp_path / "out", Conversion("coco"))
    line = json.loads((tmp_path / "out" / "all.jsonl").read_text())
    assert (line["neg_labels"], line["not_exhaustive_labels"]) == (["worm"], ["cell"])
    assert line["objects"][0]["frequency"] == "r"
    report = convert_dataset(tmp_path / "out", tmp_path / "coco", Conversion(target="coco"))
    assert "labels_lost" not in report.findings
    written = json.loads((tmp_path / "coco" / "annotations" / "instances_all.json").read_text())
    ids = {category["name"]: category["id"] for category in written["categories"]}
    assert written["images"][0]["neg_category_ids"] == [ids["worm"]]
    assert written["images"][0]["not_exhaustive_category_ids"] == [ids["cell"]]
    told = {category["name"]: category.get("frequency") for category in written["categories"]}
    assert told == {"cell": "r", "worm": None}
    report = convert_dataset(tmp_path / "out", tmp_path / "yolo", Conversion(target="yolo"))
    assert len(report.findings["labels_lost"]) == 1


@pytest.mark.parametrize(
    ("lists", "what"),
    [
        ({"neg_category_ids": [9]}, "there is no category with the id 9"),
        ({"neg_category_ids": 7}, "neg_category_ids: expected a list of ids, got 7"),
        (
            {"neg_category_ids": [7]},
            "neg_category_ids says that 'cell' is absent, but there is an object of it",
        ),
        ({"not_exhaustive_category_ids": [True]}, "not_exhaustive_category_ids: expected a number or a text"),
    ],
)
def test_lvis__mistakes(lists: dict[str, Any], what: str, tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, [box()], [IMAGE | lists]))
    assert what in problem
    assert "images[0]" in problem


def test_negatives_and_order_of_lists(tmp_path: Path) -> None:
    content = {
        "annotations": [box(image_id=11)],
        "categories": [CELL],
        "info": {"images": [1]},
        "images": [IMAGE, IMAGE | {"id": 11, "file_name": "b.jpg"}],
    }
    write(tmp_path, files={"a.jpg": (WIDTH, HEIGHT), "b.jpg": (WIDTH, HEIGHT)})
    (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    found = [(r.turn.image, len(r.turn.objects)) for r in records(tmp_path)]
    assert found == [("a.jpg", 0), ("b.jpg", 1)]


def test_ids__texts_gaps_and_zero(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "dummy"}, {"id": 90, "name": "bird"}, {"id": "x", "name": "Ей"}]
    annotations = [box(category_id=90, image_id="i"), box(id=2, category_id="x", image_id="i")]
    write(tmp_path, annotations, [IMAGE | {"id": "i"}], categories)
    (record,) = records(tmp_path)
    assert [found.desc for found in record.turn.objects] == ["bird", "Ей"]


def test_polygons_and_masks_without_bbox(tmp_path: Path) -> None:
    grid = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    grid[10:20, 5:30] = 1
    packed = coco_mask.encode(grid)
    packed = {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}
    edges = np.flatnonzero(np.diff(np.r_[0, grid.ravel(order="F"), 0]))
    runs = np.diff(np.r_[0, edges, grid.size]).tolist()
    polygon = [5.0, 10.0, 30.0, 10.5, 12.0, 20.0]
    shapes = [[polygon], [polygon, [1.0, 40.0, 2.0, 40.0, 2.0, 41.0]], packed]
    shapes.append({"size": [HEIGHT, WIDTH], "counts": runs})
    entries = [
        {key: value for key, value in box(id=at, segmentation=shape).items() if key != "bbox"}
        for at, shape in enumerate(shapes)
    ]
    write(tmp_path, entries)
    (record,) = records(tmp_path)
    assert [found.bbox_2d for found in record.turn.objects] == [
        (5, 10, 30, 20),
        (1, 10, 30, 41),
        (5, 10, 30, 20),
        (5, 10, 30, 20),
    ]
    assert [finding.kind for finding in record.findings] == ["derived"] * 4 + ["repeated"] * 2


def test_quirks__told_apart(tmp_path: Path) -> None:
    categories = [CELL, {"id": 8, "name": "cell "}, {"id": 9, "name": "nothing"}]
    annotations = [
        box((5, 5, 0, 9)),
        box((-0.5, 0, 10, 10), id=2),
        box((50, 0, 20, 10), id=2),
        box((1, 1, 5, 5), id=4, category_id=8),
        box((1, 1, 5, 5), id=5),
        box((0, 0, WIDTH + 0.004, 9), id=6),
    ]
    path = write(tmp_path, annotations, categories=categories)
    assert [(kind, note.removeprefix(f"{path}: ")) for kind, note in findings(tmp_path)] == [
        ("same_label", "categories[1]: 'cell'"),
        ("zero_area", "annotations[0] (cell): [5, 5, 5, 14] has no area, left out"),
        ("clipped", "annotations[1] (cell): [-0.5, 0, 9.5, 10] cut to [0, 0, 9.5, 10]"),
        ("cut", "annotations[2] (cell): [50, 0, 70, 10] cut to [50, 0, 64, 10]"),
        ("repeated", "annotations[4] (cell): [1, 1, 6, 6]"),
    ]


# Mistakes


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (box(image_id=99), "there is no image with the id 99"),
        (box(image_id="010"), "there is no image with the id '010'"),
        (box(image_id=None), "image_id: expected a number or a text, got None"),
        (box(category_id=0), "there is no category with the id 0"),
        (box(category_id=True), "category_id: expected a number or a text, got True"),
        (box((1, 2, -3, 4)), "bbox: expected width and height of at least 0, got [1, 2, -3, 4]"),
        (box((1, 2, 3)), "bbox: expected [x, y, width, height], got [1, 2, 3]"),
        (box((1, 2, math.nan, 4)), "bbox: expected [x, y, width, height], got [1, 2, nan, 4]"),
        (box((1, 2, math.inf, 4)), "bbox: expected [x, y, width, height], got [1, 2, inf, 4]"),
        (box((1, 2, "3px", 4)), "bbox: expected [x, y, width, height], got [1, 2, '3px', 4]"),
        (box((0, 0, 1e9, 1e9)), "(cell): the box [0, 0, 1000000000, 1000000000] leaves the image of 64×48"),
        (box((1e9, 0, 10, 10)), "(cell): the box [1000000000, 0, 1000000010, 10] leaves the image of 64×48"),
        (box((10**400, 0, 10, 10)), "bbox: expected [x, y, width, height], got [1000000"),
        (box(iscrowd=2), "iscrowd: expected 0 or 1, got 2"),
        (box(area=-4), "area: expected square pixels, got -4"),
        (box(area=math.nan), "area: expected square pixels, got nan"),
        (box(area="4"), "area: expected square pixels, got '4'"),
        (box(bbox=[], segmentation=[]), "expected a bbox or a segmentation, got []"),
        (box(bbox=[], segmentation=[[1, 2, 3, 4]]), "segmentation[0]: expected x and y of three corners"),
        (box(bbox=[], segmentation={"size": [9, 9], "counts": [1, 2]}), "counts do not fill its size"),
        (box(bbox=[], segmentation={"size": [9], "counts": "ab"}), "segmentation: expected a mask"),
        ("text", "image_id: expected a number or a text, got the element 'text'"),
    ],
)
def test_broken_annotation(tmp_path: Path, entry: Any, message: str) -> None:
    path = write(tmp_path, [box(), entry])
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{path}: annotations[1]")
    assert message in problem


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (IMAGE, "the image id 10 is that of 'a.jpg' too"),
        ({"id": 11}, "file_name: expected a path, got None"),
        ({"file_name": "b.jpg"}, "id: expected a number or a text, got None"),
        (IMAGE | {"id": 11, "file_name": "b.jpg"}, "the image 'b.jpg' is absent"),
        (IMAGE | {"id": 11, "file_name": "../../etc/passwd"}, "the image path '../../etc/passwd' leaves the"),
        (IMAGE | {"id": 11, "file_name": "/etc/passwd"}, "the image path '/etc/passwd' is absolute"),
        (IMAGE | {"id": 11, "file_name": "C:\\a.jpg"}, "the image path 'C:\\\\a.jpg' is absolute"),
        (IMAGE | {"id": 11, "file_name": "a\n.jpg"}, "the image name 'a\\n.jpg' holds control characters"),
        (IMAGE | {"id": 11, "width": -1}, "width: expected pixels, got -1"),
        (IMAGE | {"id": 11, "file_name": "x" * 400}, "cannot be followed"),
        (3, "id: expected a number or a text, got the element 3"),
    ],
)
def test_broken_image(tmp_path: Path, entry: Any, message: str) -> None:
    path = write(tmp_path, [], [IMAGE, entry])
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{path}: images[1]")
    assert message in problem


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1}], "categories[0]: name: expected a label text, got None"),
        ([{"id": 1, "name": " "}], "categories[0]: name: expected a label text, got ''"),
        ([{"name": "x"}], "categories[0]: id: expected a number or a text, got None"),
        ([CELL, CELL | {"name": "other"}], "categories[1]: the category id 7 is that of 'cell' too"),
        ([{"id": 1, "name": "<|im_end|>"}], "categories[0]: name: the label '<|im_end|>' holds special"),
    ],
)
def test_broken_categories__refuse_the_file(tmp_path: Path, categories: list[Any], message: str) -> None:
    path = write(tmp_path, categories=categories)
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_image_path_that_leaves_by_a_link(tmp_path: Path) -> None:
    """A link in the folder is followed; a path cannot use it to climb."""
    write(tmp_path / "data", images=[IMAGE, IMAGE | {"id": 11, "file_name": "link/../secret.jpg"}])
    (tmp_path / "other").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.jpg")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    assert "the image 'secret.jpg' is absent" in problems(tmp_path / "data")[0]


def test_size__real_one_counts_and_edges_are_then_in_doubt(tmp_path: Path) -> None:
    write(tmp_path, [box((50, 0, 20, 10))], [IMAGE | {"width": 100}])
    assert "the box [50, 0, 70, 10] leaves the image of 64×48 by 6 pixels" in problems(tmp_path)[0]
    write(tmp_path, [box()], [IMAGE | {"width": 100}])
    ((kind, note),) = findings(tmp_path)
    assert (kind, note.split(": ")[-1]) == (
        "resized",
        "the size in the file is 100×48, used 64×48 of 'a.jpg'",
    )


def test_size__before_exif_orientation(tmp_path: Path) -> None:
    write(tmp_path, [box()])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", exif=exif)
    assert "that of 'a.jpg' before its EXIF orientation is applied" in problems(tmp_path)[0]


# Parity


@pytest.mark.parametrize("data", ["nuts/data", "bccd"])
def test_output__is_what_pycocotools_reads(shared: Path, tmp_path: Path, data: str) -> None:
    source = shared / "data" / data
    how = Conversion(target="coco", images="reference")
    report = convert_dataset(source, tmp_path / "coco", how)
    for file in report.files:
        truth = COCO(file)
        split = file.stem.removeprefix("instances_")
        assert len(truth.imgs) == report.images[split]
        counts = {
            category["name"]: len(truth.getAnnIds(catIds=category["id"]))
            for category in truth.loadCats(truth.getCatIds())
        }
        assert {name: count for name, count in counts.items() if count} == report.boxes[split]
    assert "area" in truth.anns[1]


def test_nuts__box_for_box_as_pycocotools(shared: Path) -> None:
    path = shared / "data" / "nuts" / "data"
    truth = COCO(path / "trainval.json")
    expected = {
        entry["file_name"]: sorted(
            (*annotation["bbox"], truth.cats[annotation["category_id"]]["name"])
            for annotation in truth.loadAnns(truth.getAnnIds(imgIds=key))
        )
        for key, entry in truth.imgs.items()
    }
    found = {
        record.name: sorted(
            (x1, y1, x2 - x1, y2 - y1, item.desc)
            for item in record.turn.objects
            for x1, y1, x2, y2 in [item.bbox_2d]
        )
        for record in records(path)
    }
    assert found == expected
