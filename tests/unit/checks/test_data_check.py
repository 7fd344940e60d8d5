"""data check, data stats and what they are made of: sample files by name, charts, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwendet.checks.config import scan
from qwendet.checks.config.plots import save_plots
from qwendet.checks.config.sample_files import find_data
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import read_data, run_data_checks
from qwendet.checks.config.summary import summary_tables
from qwendet.cli.main import run
from qwendet.config.schema import Config
from qwendet.data.samples import SampleFile
from qwendet.errors import DataError
from qwendet.visualization.augmented import CELL, COLUMNS, ROWS
from tests.planted.planting import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.sound(tmp_path)
    project.write()
    return project


# Files by name


def test_folder__gives_files_by_their_names(project: Project) -> None:
    (project.folder / "test.jsonl").write_bytes((project.folder / "val.jsonl").read_bytes())
    (project.folder / "notes.jsonl").write_text("not for us")
    files = find_data([project.folder]).files
    assert [(part, path.name) for part, path in files.items()] == [
        ("val", "val.jsonl"),
        ("test", "test.jsonl"),
        ("train", "train.jsonl"),
    ]


def test_single_file__of_any_name_counts_as_training(project: Project) -> None:
    path = project.folder / "train.jsonl"
    found = find_data([path.rename(path.with_name("cells.jsonl"))])
    assert (found.files, found.datasets) == ({"train": project.folder / "cells.jsonl"}, {})


def test_files__whose_part_is_unknown_or_taken_are_refused(project: Project, tmp_path: Path) -> None:
    for name, what in (
        ("more.jsonl", "cannot tell what more.jsonl is for"),
        ("all.jsonl", "both train files"),
    ):
        (project.folder / name).write_text("{}")
        with pytest.raises(DataError) as caught:
            find_data([project.folder / "train.jsonl", project.folder / name])
        assert what in caught.value.problems[0].what


# data check


def run_check(project: Project) -> dict[str, str]:
    project.write()
    results, _ = run_data_checks(find_data([project.folder]), None, Thoroughness())
    return {result.id: result.what for result in results if result.status == "fail"}


def test_data_check__passes_sound_data_and_asks_nothing_of_settings(project: Project) -> None:
    results, tables = run_data_checks(find_data([project.folder]), None, Thoroughness())
    assert {result.status for result in results} == {"pass"}
    prefixes = {result.id.split(".")[1] for result in results}
    assert prefixes == {"boxes", "data", "images", "labels", "teachers"}
    assert [table.title.split(" (")[0] for table in tables] == ["Data", "Boxes of each label", "Box sizes"]


def test_data_check__compares_training_with_the_test_split(project: Project) -> None:
    project.files["test"] = [project.at(0)]
    assert "also in the test samples" in run_check(project)["config.data.train_val_overlap"]


def test_data_check__tells_of_polygons_elsewhere_and_refuses_masks_of_another_size(project: Project) -> None:
    x1, y1, x2, y2 = project.at(0)["objects"][0]["bbox_2d"]
    project.at(0)["objects"][0]["polygon"] = [[x1, y1, x2, y1, x2, y2 + 1]]
    project.at(1)["objects"][0]["polygon"] = [[0, 0, 3, 0, 3, 3]]
    project.write()
    results, _ = run_data_checks(find_data([project.folder]), None, Thoroughness())
    (told,) = (result for result in results if result.what.startswith("note: "))
    assert (told.id, told.status, told.where) == (
        "config.data.samples",
        "pass",
        f"{project.folder / 'train.jsonl'}:2",
    )
    assert told.what.endswith("but its polygon or mask extends over [0, 0, 3, 3]")
    project.at(2)["objects"][0]["rle"] = {"size": [2, 3], "counts": [6]}
    what = run_check(project)["config.data.samples"]
    assert what.startswith("objects[0].rle: the mask is of 3×2, and the image ")


def test_data_check__accepts_negatives_only(project: Project) -> None:
    for index in range(12):
        project.at(index)["objects"] = []
    assert run_check(project).keys() == {"config.labels.only_in_validation"}


def test_data_check__as_a_command(project: Project) -> None:
    project.at(2)["objects"][0]["bbox_2d"] = [-5, 0, 10, 10]
    project.write()
    words = ["-m", "qwendet", "data", "check", str(project.folder), "--format", "json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (failed,) = (check for check in json.loads(done.stdout)["checks"] if check["status"] == "fail")
    assert (failed["id"], failed["where"]) == ("config.boxes.inside", f"{project.folder}/train.jsonl:3")


# Figures and pictures


def test_tables__count_samples_boxes_and_sizes(project: Project) -> None:
    (project.folder / "val.jsonl").unlink()
    project.files = {"train": [project.record("a.png"), project.record("b.png")]}
    project.at(0)["objects"] = [
        {"bbox_2d": [0, 0, 31, 33], "desc": "x"},
        {"bbox_2d": [0, 0, 32, 32], "desc": "x"},
        {"bbox_2d": [0, 0, 96, 96], "desc": "y"},
        {"bbox_2d": [0, 0, 9, 9], "desc": "y", "crowd": True},
    ]
    project.at(1)["objects"] = []
    project.write()
    seen, broken = read_data(find_data([project.folder]), None, Thoroughness())
    samples, labels, sizes = summary_tables(seen.splits)
    assert samples.rows == [("train", 2, 2, 1, 0, 3, 2, 1, 1)]
    assert labels.rows == [("x", 2), ("y", 1)]
    assert [row[1:3] for row in sizes.rows] == [
        ("side, pixels", 9),
        ("side, share of the image", pytest.approx(0.065, abs=1e-3)),
    ]
    assert broken == 0


def test_plots__are_pictures_with_something_in_them(project: Project, tmp_path: Path) -> None:
    for index, item in enumerate(project.objects()):
        item["desc"] = ("红细胞", "תא", "cell")[index % 3]
    project.write()
    seen, _ = read_data(find_data([project.folder]), None, Thoroughness())
    files = save_plots(seen.splits, tmp_path / "plots")
    assert [file.name for file in files] == [
        "boxes_per_image.png",
        "box_sizes.png",
        "aspect_ratios.png",
        "labels.png",
        "positions.png",
    ]
    for file in files:
        with Image.open(file) as picture:
            assert (np.asarray(picture) != 255).mean() > 0.01


def test_pieces__hold_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "PIECE_SAMPLES", 3)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n1\n2\n\n3\n4\n \n5\n6\r\n7")
    task = scan.Task(Config(), "train", path, "none", None)
    pieces = [lines for _, lines in scan.pieces_of(task, SampleFile(path))]
    assert [[number for number, _ in lines] for lines in pieces] == [[1, 2, 3], [4, 5, 6], [7]]
    found = [line for lines in pieces for _, line in lines]
    assert b"".join(line.raw for line in found) == b"1\n2\n3\n4\n5\n6\r\n7"
    assert [line.where for line in found] == [f"{path}:{number}" for number in (2, 3, 5, 6, 8, 9, 10)]


# What augmentation makes of it


def stats(project: Project, *words: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        run(["data", "stats", str(project.folder / "train.jsonl"), *words])
    return ended.value.code


def test_stats__draws_images_as_they_are_and_augmented(project: Project, tmp_path: Path) -> None:
    assert stats(project, "--augment", "light", "--output", str(tmp_path / "plots")) == 0
    with Image.open(tmp_path / "plots" / "augmented.png") as grid:
        assert grid.size == (COLUMNS * CELL, ROWS * CELL)
        pixels = np.asarray(grid)
    first = [pixels[:CELL, column * CELL : (column + 1) * CELL] for column in range(COLUMNS)]
    assert any((cell != first[0]).any() for cell in first[1:])


def test_stats__a_preset_that_cannot_be_drawn_leaves_nothing(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats(project, "--augment", "light") == 2
    assert "add --output DIR" in capsys.readouterr().err
    project.at(0)["objects"][0]["desc"] = "left hand"
    project.write()
    assert stats(project, "--augment", "light", "--output", str(tmp_path / "plots")) == 2
    assert "a flipped image no longer shows 'left hand'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "plots").exists()
