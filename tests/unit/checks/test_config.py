"""validate-config: for each check, the bug that it is for, planted and found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.checks.config import samples as sample_rules
from qwendet.checks.config import scan, settings
from qwendet.checks.config import suite as config_checks
from qwendet.checks.runner import MAX_SHOWN
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.errors import DataError, EnvironmentLacksError, QwendetError, Result
from qwendet.progress import Advance, shown_by

ALL_IDS = set(config_checks.known_ids()) - set(config_checks.TOKENS)
BOX = {"bbox_2d": [1, 2, 20, 25], "desc": "dot"}

Record = dict[str, Any]


class Project:
    """Sample files to spoil, and the config that names them; images are 40×30."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, list[Record | str]] = {
            "train": [self.record("a.png"), self.record("b.png")],
            "val": [self.record("c.png")],
        }
        self.values: dict[str, dict[str, Any]] = {}

    def record(self, image: str, *objects: Mapping[str, Any], **extra: Any) -> Record:
        self.draw(image)
        return {"images": [image], "objects": list(objects or [BOX]), **extra}

    def draw(self, image: str, size: tuple[int, int] = (40, 30)) -> None:
        image_data = Image.new("RGB", size, "white")
        image_data.putpixel((0, 0), tuple(hashlib.sha256(Path(image).name.encode()).digest()[:3]))
        image_data.save(self.folder / image)

    def config(self, **sections: Mapping[str, Any]) -> Config:
        """Write the files and build the config; ``sections`` change its values."""
        data: dict[str, Any] = {}
        for split, records in self.files.items():
            path = self.folder / f"{split}.jsonl"
            path.write_text(
                "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records),
                encoding="utf-8",
            )
            data[split] = str(path)
        values = {**sections, "data": {**data, **sections.get("data", {})}}
        return build_config(values, "config.yaml")

    def run(self, **sections: Mapping[str, Any]) -> list[Result]:
        return config_checks.run_config_checks(self.config(**sections))[0]

    def failed(self, **sections: Mapping[str, Any]) -> list[Result]:
        return [result for result in self.run(**sections) if result.status == "fail"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def only(results: list[Result]) -> Result:
    assert len(results) == 1, results
    return results[0]


def test_sound_project__passes_every_check(project: Project) -> None:
    results = project.run()
    assert {result.id for result in results} == ALL_IDS
    assert {result.status for result in results} == {"pass"}
    assert "1 in val.jsonl, 2 in train.jsonl" in next(r.what for r in results if r.id == scan.PARSE)


# Sample files


@pytest.mark.parametrize("key", ["train", "val", "teachers", "root"])
def test_absent_file__is_an_error_at_once(project: Project, key: str) -> None:
    with pytest.raises(DataError) as caught:
        project.run(data={key: str(project.folder / "absent")})
    (problem,) = caught.value.problems
    assert problem.where == f"data.{key}"
    assert problem.id == "config.data.files"


def test_no_training_file__fails_and_skips_what_needs_it(project: Project) -> None:
    results = project.run(data={"train": None})
    assert only([r for r in results if r.status == "fail"]).id == "config.data.train"
    skipped = {r.id: r.what for r in results if r.status == "skip"}
    assert skipped["config.detection.off_with_boxes"] == "data.train not set"
    assert skipped["config.labels.only_in_validation"] == "data.train not set"


def test_no_validation_file__skips_what_needs_it(project: Project) -> None:
    del project.files["val"]
    skipped = {r.id: r.what for r in project.run() if r.status == "skip"}
    assert skipped == dict.fromkeys(
        ("config.labels.only_in_validation", "config.data.val_without_boxes", "config.train.best_metric"),
        "data.val not set",
    )


def test_empty_file__fails(project: Project) -> None:
    project.files["val"] = ["", "  "]
    assert only(project.failed()).id == "config.data.empty"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "expected one JSON object a line"),
        ('{"images": ["a.png"], "objects": [], "boxs": 1}', "unknown key boxs"),
        ('{"images": ["a.png"], "objects": [{"bbox_2d": [5, 5, 5, 9], "desc": "dot"}]}', "expected x1 < x2"),
        ('{"images": ["a.png"], "objects": [{"bbox_2d": [NaN, 5, 8, 9], "desc": "dot"}]}', "finite"),
        (
            '{"images": ["a.png"], "objects": [{"bbox_2d": [1, 5, 8, 9], "desc": "x<|im_end|>"}]}',
            "special-token text",
        ),
    ],
)
def test_broken_line__is_named(project: Project, line: str, what: str) -> None:
    project.files["train"] += ["", line]
    result = only(project.failed())
    assert result.id == "config.data.samples"
    assert what in result.what
    assert result.where == f"{project.folder / 'train.jsonl'}:4"


def test_many_broken_lines__are_counted(project: Project) -> None:
    project.files["train"] += ["{"] * (MAX_SHOWN + 5)
    failed = project.failed()
    assert len(failed) == MAX_SHOWN + 1
    assert failed[0].where.endswith("train.jsonl:3")
    assert failed[-1].what == "and 5 more"


def test_bad_samples__are_left_out_if_asked_for(project: Project) -> None:
    project.files["train"] += ["{", project.record("d.png", {"bbox_2d": [1, 2, 99, 25], "desc": "dot"})]
    results = project.run(data={"on_bad_sample": "skip"})
    assert not [result for result in results if result.status == "fail"]
    left_out = [
        result for result in results if result.what.startswith("left out (data.on_bad_sample: skip): ")
    ]
    assert [result.id for result in left_out] == ["config.data.samples", "config.boxes.inside"]


def test_all_samples_bad__fails_even_if_they_are_left_out(project: Project) -> None:
    project.files["train"] = ["{"]
    failed = project.failed(data={"on_bad_sample": "skip"}, detection={"enabled": False})
    assert "no sample of the file is usable" in [result.what for result in failed]


# Images and boxes


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: path.unlink(), "is absent"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "truncated or broken"),
        (lambda path: path.write_text("no image"), "is not an image"),
        (lambda path: Image.new("RGB", (1, 1)).save(path), "is too small"),
    ],
    ids=["absent", "truncated", "text", "1x1"],
)
def test_image__that_cannot_be_opened(project: Project, spoil: Callable[[Path], object], what: str) -> None:
    spoil(project.folder / "b.png")
    result = only(project.failed())
    assert result.id == "config.images.open"
    assert what in result.what
    assert result.where.endswith("train.jsonl:2")


def test_image_outside_the_root__is_refused(project: Project) -> None:
    project.files["train"].append({"images": ["../x.png"], "objects": []})
    assert "leaves the data root" in only(project.failed()).what


def test_declared_size__is_compared(project: Project) -> None:
    project.files["train"].append(project.record("d.png", width=30, height=40))
    result = only(project.failed())
    assert result.id == "config.images.size"
    assert result.what == "'d.png' is declared 30×40 but is displayed 40×30"


def test_declared_size__before_exif_is_explained(project: Project) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(project.folder / "d.jpg", exif=exif)
    project.files["train"].append({"images": ["d.jpg"], "objects": [], "width": 40, "height": 30})
    result = only(project.failed())
    assert "displayed 30×40" in result.what
    assert "EXIF" in result.fix


def test_box_outside__is_named(project: Project) -> None:
    project.files["val"].append(project.record("d.png", {"bbox_2d": [1, 2, 41, 25], "desc": "dot"}))
    result = only(project.failed())
    assert result.id == "config.boxes.inside"
    assert "40x30" in result.what


def test_duplicate_box__is_named(project: Project) -> None:
    other = {**BOX, "desc": "line"}
    project.files["train"].append(project.record("d.png", BOX, other, BOX))
    result = only(project.failed())
    assert result.id == "config.boxes.duplicate"
    assert result.what.startswith("objects[2] repeats objects[0]: 'dot'")


# Labels


def test_unlisted_label__is_named(project: Project) -> None:
    results = project.failed(data={"labels": ["line", "square"]})
    assert {result.id for result in results} == {"config.labels.unknown"}
    assert len(results) == 3
    assert results[0].what == "the label 'dot' is not in data.labels"


def test_listed_label__must_be_a_plain_text(project: Project) -> None:
    result = only(project.failed(data={"labels": ["dot", "a<|im_end|>"]}))
    assert result.id == "config.labels.text"


def test_label_only_in_validation__is_named(project: Project) -> None:
    project.files["val"].append(project.record("d.png", {**BOX, "desc": "line"}))
    result = only(project.failed())
    assert result.id == "config.labels.only_in_validation"
    assert "'line'" in result.what
    assert result.where.endswith("val.jsonl:2")


# Detection on and off


def test_detection_off_with_boxes__fails(project: Project) -> None:
    result = only(project.failed(detection={"enabled": False}))
    assert result.id == "config.detection.off_with_boxes"
    assert "train.jsonl has 2 boxes" in result.what


@pytest.mark.parametrize("objects", [[], [{**BOX, "crowd": True}]], ids=["none", "crowd only"])
def test_detection_on_without_boxes__fails(project: Project, objects: list[Record]) -> None:
    project.files["train"] = [project.record("a.png") | {"objects": objects}]
    project.files["val"] = [project.record("c.png") | {"objects": objects}]
    labels = {"labels": ["dot"]}
    assert only(project.failed(data=labels)).id == "config.detection.on_without_boxes"
    assert not project.failed(data=labels, detection={"enabled": False})


# Leaks


def test_training_image_in_validation__is_named(project: Project) -> None:
    project.files["train"].append(project.record("./c.png"))
    result = only(project.failed())
    assert result.id == "config.data.train_val_overlap"
    assert result.where.endswith("train.jsonl:3")


def test_teacher_pool_image_in_validation__is_named(project: Project) -> None:
    project.files["teachers"] = [project.record("d.png"), project.record("c.png")]
    result = only(project.failed(data={"teacher_ratio": 0.5}))
    assert result.id == "config.teachers.leak"
    assert result.where.endswith("teachers.jsonl:2")


def test_own_teacher_in_validation__is_named(project: Project) -> None:
    project.files["train"].append({"teachers": [project.record("c.png")], "student": project.record("d.png")})
    assert "also in validation" in only(project.failed()).what


@pytest.mark.parametrize("split", ["train", "val"])
def test_teacher_that_shows_the_very_image__is_named(project: Project, split: str) -> None:
    sample = {"teachers": [project.record("d.png")], "student": project.record("d.png")}
    project.files[split].append(sample)
    result = only(project.failed())
    assert result.id == "config.teachers.leak"
    assert "the very image that is asked about" in result.what


# The machine


@pytest.mark.parametrize(
    ("has_gpu", "has_package", "needs"),
    [(False, True, ["an NVIDIA GPU"]), (True, False, ["the package flash-attn"]), (True, True, [])],
)
def test_flash_attention__says_what_it_needs(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, has_package: bool, needs: list[str]
) -> None:
    monkeypatch.setattr(settings, "has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: object() if has_package else None)
    failed = project.failed(model={"attn_implementation": "flash_attention_2"})
    assert [result.what for result in failed] == [f"flash_attention_2 needs {need}" for need in needs]


def test_flash_attention__in_float32_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: object())
    model = {"attn_implementation": "flash_attention_2", "dtype": "float32"}
    assert "needs train.autocast bf16: it has no float32" in only(project.failed(model=model)).what
    assert project.failed(model=model, train={"autocast": "bf16"}) == []


def test_boards__that_are_not_installed_fail(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    failed = only(project.failed(train={"report_to": ["tensorboard", "wandb"]}))
    assert (failed.id, failed.where) == ("config.environment.report_to", "train.report_to")
    assert failed.fix == "pip install 'qwendet[wandb]', or leave it out"
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: object())
    assert project.failed(train={"report_to": "wandb"}) == []


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpu__is_none(project: Project, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert only(project.failed(model={"device": "cuda"})).id == "config.environment.gpu"


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_launcher__fsdp_needs_a_gpu_that_is_used(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, device: str
) -> None:
    monkeypatch.setattr(settings, "has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    failed = {result.id for result in project.failed(model={"device": device})}
    assert failed == (set() if has_gpu and device == "auto" else {"config.environment.launcher"})


def test_launcher__mixed_precision_is_left_to_the_config(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert only(project.failed(train={"autocast": "bf16"})).id == "config.environment.launcher"


def test_machine_alone_lacking__is_an_environment_error(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "has_nvidia_gpu", lambda: False)
    with pytest.raises(EnvironmentLacksError):
        config_checks.require_config_checks(project.config(model={"device": "cuda"}))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_model_path__that_can_be_no_hub_id_must_exist(project: Project, path: str) -> None:
    assert only(project.failed(model={"path": path})).id == "config.model.path"


def test_model_folder__needs_a_config(project: Project) -> None:
    assert "no config.json" in only(project.failed(model={"path": str(project.folder)})).what
    (project.folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    assert not project.failed(model={"path": str(project.folder)})


# data.allow


def test_allowed_finding__passes_and_says_so(project: Project) -> None:
    allow = ["config.detection.off_with_boxes"]
    results = project.run(detection={"enabled": False}, data={"allow": allow})
    result = only([result for result in results if result.id == allow[0]])
    assert result.status == "pass"
    assert result.what.startswith("accepted by data.allow: detection.enabled is false")


def test_allow__of_no_check_names_the_nearest(project: Project) -> None:
    result = only(project.failed(data={"allow": ["config.boxes.duplicates"]}))
    assert (result.id, result.fix) == ("config.data.allow", "did you mean config.boxes.duplicate?")


# The runner


def crash(*arguments: object) -> Any:
    raise ZeroDivisionError("planted")


def test_crashing_rule__fails_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sample_rules.RULES, "config.boxes.inside", sample_rules.Rule(crash, "fine"))  # type: ignore[arg-type]
    project.files["val"].append(project.record("d.png", BOX, BOX))
    failed = project.failed()
    assert {result.id for result in failed} == {"config.boxes.inside", "config.boxes.duplicate"}
    assert failed[0].what == "the check could not run: ZeroDivisionError: planted"


def test_crashing_check__fails_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.CHECKS, "config.model.path", settings.Check(crash, "fine"))  # type: ignore[arg-type]
    failed = project.failed(detection={"enabled": False})
    assert [result.id for result in failed] == ["config.model.path", "config.detection.off_with_boxes"]


def test_require__raises_every_failure_with_its_id(project: Project) -> None:
    project.files["train"] += ["{", project.record("d.png", BOX, BOX)]
    config_checks.require_config_checks(Project(project.folder).config())
    with pytest.raises(QwendetError) as caught:
        config_checks.require_config_checks(project.config())
    assert caught.value.exit_code == 2
    assert [problem.id for problem in caught.value.problems] == [
        "config.data.samples",
        "config.boxes.duplicate",
    ]


def test_progress__is_told_over_all_files(project: Project) -> None:
    told: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def tracker(description: str, total: int) -> Iterator[Advance]:
        told.append((description, total, []))
        yield lambda finished, text: told[-1][2].append(finished)

    with shown_by(tracker):
        config_checks.run_config_checks(project.config())
    assert told == [("checking val.jsonl, train.jsonl", 3, [1, 3]), ("comparing images", 2, [1, 2])]


def test_data_root__is_where_images_are_looked_for(project: Project) -> None:
    images = project.folder / "images"
    images.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (project.folder / name).rename(images / name)
    results = project.failed()
    assert [(r.id, r.what.split(" images ")[0]) for r in results] == [
        ("config.images.root", "none of the 1"),
        ("config.images.root", "none of the 2"),
    ]
    assert results[0].fix == "set data.root, or --image-dir, to the folder that the image paths start from"
    assert not project.failed(data={"root": str(images)})
