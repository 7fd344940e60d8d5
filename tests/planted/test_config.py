"""Every bug of :mod:`tests.planted.bugs_config` is found by its check, in its words; sound data passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from qwendet.checks import scan
from qwendet.checks.config import Thoroughness, known_ids, run_config_checks
from qwendet.config_file import load_config
from qwendet.data.convert import Conversion, convert_dataset
from qwendet.data.shapes import DEMO, write_dataset
from qwendet.progress import silent
from tests.planted.bugs_config import BUGS
from tests.planted.planting import Bug, Project


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_planted_bug__is_found(bug: Bug, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    project = Project.sound(folder)
    bug.plant(project)
    found = project.failures(**dict(bug.how))
    said = [words for id, words in found if id == bug.check_id]
    assert said, found
    assert any(bug.says in words for words in said), said
    assert not any("could not run" in words for _, words in found), found
    assert all(not words.endswith("| ") for words in said if " more" not in words), said  # each has a mend


def test_every_check__has_a_bug_that_it_finds() -> None:
    without = {
        "config.environment.gpu",
        "config.environment.flash_attention",
        "config.data.train",
        "config.labels.none",
    }
    assert (
        set(known_ids()) - {bug.check_id for bug in BUGS} == without
    )  # these: tests/unit/test_checks_config.py
    assert len(BUGS) > 80
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_every_check__is_explained(repo_root: Path) -> None:
    text = (repo_root / "docs" / "config_checks.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(config\.[\w.]+)`", text, re.MULTILINE))
    assert explained == {*known_ids(), "config.data.files"}
    assert f"plant {len(BUGS)} bugs" in text
    assert f"On {len(SOUND)} sound projects" in text


# Sound data, on which nothing fails


def negatives_only(project: Project) -> None:
    for split, records in project.files.items():
        for index in range(len(records)):
            project.at(index, split)["objects"] = []
    project.set("data.labels", ["crack"])
    project.set("detection.enabled", False)


def relabelled(*labels: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        for split in project.files:
            for index, item in enumerate(project.objects(split)):
                item["desc"] = labels[index % len(labels)]

    return change


def sized(*sizes: tuple[int, int]) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        for split, records in project.files.items():
            project.files[split] = [
                project.record(f"{split}{index}.png", sizes[index % len(sizes)])
                for index in range(len(records))
            ]

    return change


def one_image(project: Project) -> None:
    del project.files["val"]
    project.values = {"data": {"train": "train.jsonl"}}
    project.files["train"] = project.files["train"][:1]


def every_format(project: Project) -> None:
    """Also a photograph turned by its EXIF orientation, and one with a trailer of its camera."""
    exif = Image.Exif()
    exif[0x0112] = 6
    box = {"bbox_2d": [0, 0, 120, 160], "desc": "red cell"}
    for name in ("a.jpg", "b.webp", "c.bmp", "d.gif", "e.tiff", "f.jpg"):
        options = {"exif": exif} if name == "a.jpg" else {}
        path = project.draw(name, **options)
        item = box if name == "a.jpg" else {**box, "bbox_2d": [0, 0, 160, 120]}
        project.files["train"].append({"images": [name], "objects": [item]})
    path.write_bytes(path.read_bytes() + b"SEFT" * 500)


def own_demonstrations(project: Project) -> None:
    """Two for a validation sample, and the same image asked about after different ones."""
    shown, other = project.record("shown.png"), project.record("other.png")
    project.files["val"][0] = {"teachers": [shown, other], "student": project.at(0, "val")}
    student = project.at(0)
    project.files["train"] += [
        {"teachers": [shown], "student": student},
        {"teachers": [other], "student": student},
    ]


def pool_of_training_samples(project: Project) -> None:
    project.files["teachers"] = project.files["train"][:5]
    project.set("data.teachers", "teachers.jsonl")
    project.set("data.teacher_ratio", 1.0)
    project.set("data.num_teachers", 2)


def frozen_tower(project: Project) -> None:
    project.set("train.vision_learning_rate", 0.0)
    project.set("train.merger_learning_rate", 0.0)
    project.set("detection.enabled", True)


def still_camera(project: Project) -> None:
    """Objects that always appear in the same place, away from the edges."""
    sized((1280, 720))(project)
    for split in project.files:
        for index, item in enumerate(project.objects(split)):
            item["bbox_2d"] = [300 + index, 200 + index, 420 + 2 * index, 330 + index]


def crowds_and_borders(project: Project) -> None:
    project.at(0)["objects"] += [
        {"bbox_2d": [0, 0, 160, 120], "desc": "white cell", "crowd": True},
        {"bbox_2d": [159, 119, 160, 120], "desc": "red cell", "difficult": True},
    ]


SOUND: dict[str, Callable[[Project], None]] = {
    "as it is": lambda project: None,
    "negatives only": negatives_only,
    "Chinese labels": relabelled("红细胞", "白细胞", "血小板"),
    "right-to-left labels": relabelled("خلية", "תא אדום", "می‌خواهم"),
    "Cyrillic and Greek labels": relabelled("стоп", "сор", "μήλο", "cat"),
    "single letters": relabelled("A", "a", "B", "1", "l"),
    "labels that are nearly the same": relabelled("C", "C++", "C#", "type 1", "type 2", "t-shirt", "shirt"),
    "not square": sized((400, 30), (30, 400), (161, 97)),
    "large images": sized((2400, 1800), (1800, 2400)),
    "small images": sized((28, 28), (40, 30)),
    "one image": one_image,
    "every format": every_format,
    "demonstrations of their own": own_demonstrations,
    "pool of training samples": pool_of_training_samples,
    "frozen vision tower": frozen_tower,
    "still camera": still_camera,
    "crowds and borders": crowds_and_borders,
}


def _config_of(folder: Path) -> Path:
    """A config that names the sample files of a folder."""
    names = {"train": "train.jsonl" if (folder / "train.jsonl").exists() else "all.jsonl"}
    if (folder / "val.jsonl").exists():
        names["val"] = "val.jsonl"
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"data": names}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SOUND)
def test_sound_project__passes(name: str, tmp_path: Path) -> None:
    project = Project.sound(tmp_path)
    SOUND[name](project)
    assert project.failures(images="full", tokens=True) == []


def test_generated_shapes__pass_in_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FEW_SAMPLES", 100)
    for split, count, seed in (("train", 270, 1), ("val", 30, 2)):
        write_dataset(DEMO, tmp_path / f"{split}.jsonl", count, seed)
    config = load_config(_config_of(tmp_path))
    results, tables = run_config_checks(config, silent, Thoroughness(workers=2))
    assert [result for result in results if result.status == "fail"] == []
    assert [(row[0], row[1], row[2]) for row in tables[0].rows] == [("val", 30, 30), ("train", 270, 270)]
    alone, same = run_config_checks(config, silent)
    assert [(r.id, r.status, r.what) for r in alone] == [(r.id, r.status, r.what) for r in results]
    assert same == tables


@pytest.mark.parametrize(
    ("source", "splits"), [("bccd/BCCD", {"train": 205, "val": 87}), ("nuts/data", {"all": 18})]
)
def test_real_data__passes(shared: Path, tmp_path: Path, source: str, splits: dict[str, int]) -> None:
    folder = shared / "data" / source
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    convert_dataset(folder, tmp_path / "out", Conversion(), silent)
    config = load_config(_config_of(tmp_path / "out"))
    results, tables = run_config_checks(config, silent, Thoroughness(images="full"))
    assert [result for result in results if result.status == "fail"] == []
    assert sorted(row[1] for row in tables[0].rows) == sorted(splits.values())
