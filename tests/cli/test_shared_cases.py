"""Small data sets of kinds that people reported: each read as its user expects, or told in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qwendet.config.load import load_config
from qwendet.data.images import open_image
from qwendet.inference.inputs import collect_samples
from tests.commands import Qwendet

ENGLAND = "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng") + "\U000e007f"
BOX = [40, 60, 140, 160]
ROUNDED = [40, 60, 139.2, 160.8]  # from YOLO's fractions
READ: dict[str, list[tuple[str, list[list[float]]]]] = {
    "appledouble_yolo": [("a.jpg", [ROUNDED]), ("b.jpg", [ROUNDED])],
    "coco_bbox_strings": [("a.jpg", [BOX])],
    "coco_cat_name_int": [("a.jpg", [BOX])],
    "coco_cat_name_quote_comma": [("a.jpg", [BOX, [150, 60, 200, 110], [210, 60, 260, 110]])],
    "coco_iscrowd_string": [("a.jpg", [BOX])],
    "coco_no_ext": [("a.jpg", [BOX]), ("b.jpg", [BOX])],
    "coco_poly_flat_nobbox": [("a.jpg", [BOX])],
    "coco_url_encoded": [("my photo.jpg", [BOX]), ("b.jpg", [BOX])],
    "datumaro_json": [("default/a.jpg", [BOX])],
    "ipynb_checkpoints_voc": [("a.jpg", [BOX]), ("b.jpg", [BOX])],
    "ipynb_checkpoints_yolo": [("a.jpg", [ROUNDED]), ("b.jpg", [ROUNDED])],
    "jpeg_no_eoi": [("a.jpg", [BOX])],
    "label_nbsp_coco": [("a.jpg", [BOX])],
    "msswift_jsonl": [("a.jpg", [BOX])],
    "name_u202f_coco": [("Screenshot 2025-03-04 at 9.15.02\u202fPM.png", [BOX]), ("plain.png", [BOX])],
    "png16_12bit": [("a.png", [BOX])],
    "png_text_bomb": [("a.png", [BOX])],
    "ppm": [("a.ppm", [BOX])],
    "rgba_alpha_zero": [("a.png", [BOX])],
    "voc_a_jpg_xml": [("a.jpg", [BOX])],
    "voc_object_nested": [("a.jpg", [BOX])],
    "yolo_a_jpg_txt": [("a.jpg", [ROUNDED]), ("b.jpg", [ROUNDED])],
    "yolo_labels_txt": [("a.jpg", [ROUNDED])],
    "yolo_names_file": [("a.jpg", [ROUNDED])],
    "yolo_nc_str": [("a.jpg", [ROUNDED])],
}
"""Each image and its boxes."""
LABELS = {
    "coco_cat_name_int": {"7"},
    "coco_cat_name_quote_comma": {'bolt, M8 "long"', "\U0001f529", ENGLAND},
    "label_nbsp_coco": {"fire truck"},
}  # fmt: skip
TOLD = {
    "avif_named_jpg": "got an AVIF image",
    "coco_annotations_dict": 'expected a list "annotations", got an object',
    "coco_category_dict": 'expected a list "categories", got an object',
    "coco_images_dict": 'expected a list "images", got an object',
    "coco_null_ann": 'expected a list "annotations", got null',
    "fair1m_annotations": "expected <name> and <bndbox> in <object>, got <coordinate>",
    "hf_metadata_jsonl": "label: expected a label text, got 0",
    "kaggle_csv_retinanet": "a table of boxes (annotations.csv): not read",
    "llamafactory_json": "the frame of the boxes is not clear: of 1 boxes 0 leave their image as pixels",
    "openimages_csv": "there is no name for the class '/m/0abc'",
    "same_bytes_two_boxes": "'images/a (1).jpg', the same as 'images/a.jpg', is asked about with other",
    "tif_5ch": "got a TIFF whose channels or bits are not read",
    "yolo_pose_plate4x2": "expected four numbers or a polygon, got a box and 8 numbers more",
    "yolo_track_conf1": "expected four numbers or a polygon, got a box and 2 numbers more",
    "yolo_yaml_elsewhere": "but below it: configs/rel.yaml, configs/x.yaml, datasets/x",
}
"""What ``data check`` says of each, with an exit code that is not 0."""
CONVERTED_ALL_THE_SAME = {"same_bytes_two_boxes"}
OTHER_TESTS = {"coco_over_edge_3px_nosize", "dense400", "infer_appledouble", "infer_ipynb"}


@pytest.fixture
def cases(shared: Path) -> Path:
    folder = shared / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return folder


def lines_of(folder: Path) -> list[str]:
    (file,) = folder.glob("*.jsonl")
    return file.read_text(encoding="utf-8").splitlines()


def converted(folder: Path) -> list[tuple[str, list[list[float]]]]:
    found = []
    for line in lines_of(folder):
        sample = json.loads(line)
        boxes = [item["bbox_2d"] for item in sample["objects"]]
        found.append((sample["images"][0].removeprefix("images/"), boxes))
    return found


def test_every_case__has_its_row(cases: Path) -> None:
    names = {folder.name for folder in cases.iterdir() if folder.is_dir()}
    data = {name for name in names if not name.startswith("answer_")}
    assert data == {*READ, *TOLD, *OTHER_TESTS}


@pytest.mark.parametrize("case", READ)
def test_case__is_read(qwendet: Qwendet, cases: Path, tmp_path: Path, case: str) -> None:
    check = qwendet("data", "check", cases / case, "--workers", "1", "--decode")
    assert check.code == 0, check.out
    ending = qwendet("data", "convert", cases / case, tmp_path / "out")
    assert ending.code == 0, ending.err
    assert sorted(converted(tmp_path / "out")) == sorted(READ[case])
    samples = map(json.loads, lines_of(tmp_path / "out"))
    labels = {item["desc"] for sample in samples for item in sample["objects"]}
    assert labels == LABELS.get(case, {"bolt"})


@pytest.mark.parametrize("case", TOLD)
def test_case__is_told(qwendet: Qwendet, cases: Path, tmp_path: Path, case: str) -> None:
    check = qwendet("data", "check", cases / case, "--workers", "1")
    assert check.code in (1, 2)
    assert TOLD[case] in check.out + check.err
    assert "this is a bug" not in check.err
    if case not in CONVERTED_ALL_THE_SAME:
        ending = qwendet("data", "convert", cases / case, tmp_path / "out")
        assert (ending.code, (tmp_path / "out").exists()) == (2, False)
        assert TOLD[case] in ending.err


def test_yaml_elsewhere__the_next_message_says_how(qwendet: Qwendet, cases: Path) -> None:
    ending = qwendet("data", "check", cases / "yolo_yaml_elsewhere" / "configs" / "rel.yaml")
    assert "path leads out of the data set" in ending.err
    assert (
        f"copy the file into {cases.resolve()}/yolo_yaml_elsewhere/datasets/x, without its line" in ending.err
    )


def test_over_the_edge_without_size__is_cut_and_told(qwendet: Qwendet, cases: Path, tmp_path: Path) -> None:
    ending = qwendet("data", "convert", cases / "coco_over_edge_3px_nosize", tmp_path / "out")
    assert ending.code == 0
    assert "[250, 60, 323, 160] cut to [250, 60, 320, 160]" in ending.err
    assert converted(tmp_path / "out") == [("a.jpg", [[250, 60, 320, 160]])]


def test_dense__as_many_detections_as_queries(qwendet: Qwendet, cases: Path, tmp_path: Path) -> None:
    ending = qwendet("init", tmp_path / "p", "--model", "tiny", "--data", cases / "dense400")
    assert ending.code == 0, ending.err
    config = load_config(tmp_path / "p" / "config.yaml")
    assert (config.detection.num_queries, config.infer.max_detections) == (600, 600)


@pytest.mark.parametrize("case", ["infer_appledouble", "infer_ipynb"])
def test_infer__passes_over_what_is_hidden(cases: Path, case: str) -> None:
    assert [sample.student.image for sample in collect_samples([cases / case])] == ["a.jpg"]


@pytest.mark.parametrize(("case", "spread"), [("png16_12bit", 50), ("rgba_alpha_zero", 50)])
def test_pixels__can_be_seen(cases: Path, case: str, spread: int) -> None:
    pixels = np.asarray(open_image("images/a.png", cases / case, "x"))
    assert np.ptp(pixels) > spread
    assert 30 < pixels.mean() < 220
