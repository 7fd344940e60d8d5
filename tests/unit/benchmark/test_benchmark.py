"""Layouts of published benchmarks, few shots, and the run over all sets: resumed, refused, tabulated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.worlds import PRETRAIN
from qwendet.benchmark.layouts import sets_of
from qwendet.benchmark.run import few_shots
from qwendet.cli.main import run
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.demo.shapes import write_dataset
from qwendet.errors import DataError

Command = Callable[..., tuple[int, str, str]]
FAST = ("--mode", "head", "--set", "model.device=cpu", "--set", "model.dtype=float32")


def write_part(file: Path, seed: int, count: int, work: Path) -> None:
    """Drawn scenes as COCO annotations, the images beside them."""
    write_dataset(PRETRAIN, work / f"{seed}" / "all.jsonl", count, seed=seed)
    convert_dataset(work / f"{seed}", work / f"{seed}-coco", Conversion(target="coco"))
    file.parent.mkdir(parents=True, exist_ok=True)
    (found,) = (work / f"{seed}-coco").rglob("*.json")
    shutil.copy(found, file)
    for image in (work / f"{seed}-coco").rglob("*.png"):
        shutil.copy(image, file.parent)


@pytest.fixture(scope="module")
def rf100vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets in the layout of RF100-VL."""
    folder, work = tmp_path_factory.mktemp("rf100vl"), tmp_path_factory.mktemp("work")
    for number, name in enumerate(("bolts", "pills")):
        for part, split in enumerate(("train", "test")):
            file = folder / name / split / "_annotations.coco.json"
            write_part(file, 10 * number + part, 6, work)
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run([str(word) for word in words])
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return call


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}", encoding="utf-8")


def test_layout__odinw_is_glips(tmp_path: Path) -> None:
    with pytest.raises(DataError) as none_there:
        sets_of("odinw13", tmp_path)
    assert "13 of its 13 sets lack annotations" in str(none_there.value)
    aquarium = "Aquarium/Aquarium Combined.v2-raw-1024.coco/valid/annotations_without_background.json"
    for place in (aquarium, "pistols/export/val_annotations_without_background.json"):
        touch(tmp_path / place)
    with pytest.raises(DataError) as some_there:
        sets_of("odinw35", tmp_path)
    message = str(some_there.value)
    assert "33 of its 35 sets" in message
    assert "Aquarium" not in message.replace(str(tmp_path), "").split("docs")[0]


def test_layout__of_exports_shares_the_folder_of_images(tmp_path: Path) -> None:
    from qwendet.benchmark.layouts import _ODINW13

    for place in _ODINW13.values():
        file = "val_" if place.endswith("export") else "valid/"
        touch(tmp_path / place / f"{file}annotations_without_background.json")
    found = {item.name: item for item in sets_of("odinw13", tmp_path)}
    assert len(found) == 13
    pistols = found["pistols"]
    assert pistols.measured.images == pistols.train.images == tmp_path / "pistols" / "export"
    assert pistols.train.annotations.name == "train_annotations_without_background.json"
    assert found["pothole"].measured.images == tmp_path / "pothole" / "valid"


def test_layout__odinw_of_a_fine_tuned_model_is_measured_on_test(tmp_path: Path) -> None:
    from qwendet.benchmark.layouts import _ODINW13

    for name, place in _ODINW13.items():
        split = "valid" if name == "PascalVOC" else "test"
        file = f"{split}_" if place.endswith("export") else f"{split}/"
        touch(tmp_path / place / f"{file}annotations_without_background.json")
    found = {item.name: item for item in sets_of("odinw13", tmp_path, fine_tuned=True)}
    assert found["pothole"].measured.images == tmp_path / "pothole" / "test"
    assert found["PascalVOC"].measured.images == tmp_path / "PascalVOC" / "valid"
    with pytest.raises(DataError, match="12 of its 13 sets lack annotations"):
        sets_of("odinw13", tmp_path)


def test_layout__lvis_and_refcoco(tmp_path: Path) -> None:
    touch(tmp_path / "annotations" / "lvis_v1_minival.json")
    (only,) = sets_of("lvis", tmp_path)
    assert (only.name, only.measured.images) == ("lvis_v1_minival", tmp_path)
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        touch(tmp_path / name / f"refs({by}).json")
    (tmp_path / "train2014").mkdir()
    found = sets_of("refcoco", tmp_path)
    assert [item.name for item in found] == [
        "refcoco+_testA", "refcoco+_testB", "refcoco+_val", "refcoco_testA", "refcoco_testB", "refcoco_val",
        "refcocog_test", "refcocog_val",
    ]  # fmt: skip
    assert {item.project for item in found} == {"refcoco", "refcoco+", "refcocog"}
    assert (found[0].measured.split, found[0].train.split) == ("testA", "train")
    assert found[0].measured.images == tmp_path / "train2014"


def test_layout__coco_and_rf100vl(rf100vl: Path, tmp_path: Path) -> None:
    assert [item.name for item in sets_of("rf100vl", rf100vl)] == ["bolts", "pills"]
    touch(tmp_path / "annotations" / "instances_val2017.json")
    (only,) = sets_of("coco", tmp_path)
    assert only.measured.images == tmp_path / "val2017"
    assert only.train.annotations == tmp_path / "annotations" / "instances_train2017.json"


def test_few_shots__each_label_has_its_objects_and_no_image_is_there_in_vain() -> None:
    box = (0.0, 0.0, 9.0, 9.0)
    samples = [
        Sample(Turn(f"{index}.png", tuple(DetectedObject(box, label) for label in labels)))
        for index, labels in enumerate(["ab", "a", "b", "aa", "c", "", "ac", "b"] * 4)
    ]
    chosen = few_shots(samples, 3)
    found = [item.desc for sample in chosen for item in sample.student.objects]
    assert all(found.count(label) >= 3 for label in "abc")
    assert all(sample.student.objects for sample in chosen)
    assert chosen == few_shots(samples, 3)
    assert len(chosen) < 12
    names = [sample.student.image for sample in samples]
    assert [names.index(sample.student.image) for sample in chosen] == sorted(
        names.index(sample.student.image) for sample in chosen
    )


def test_benchmark__measures_each_set_once_and_tabulates(
    rf100vl: Path, command: Command, tmp_path: Path
) -> None:
    words = ("eval", "tiny", rf100vl, "--benchmark", "rf100vl", "--output", tmp_path / "out", *FAST)
    code, out, err = command(*words, "--format", "json")
    assert code == 0, err
    record = json.loads(out)
    assert [row["set"] for row in record["sets"]] == ["bolts", "pills"]
    aps = [row["AP"] for row in record["sets"]]
    names = ("AP", "AP50", "F1@mIoU")
    means = {name: sum(row[name] for row in record["sets"]) / 2 for name in names}
    assert record["means"] == [{"source": "head", **{name: pytest.approx(means[name]) for name in names}}]
    alone = command(
        "eval", "tiny", rf100vl / "bolts" / "test" / "_annotations.coco.json", *FAST,
        "--image-dir", rf100vl / "bolts" / "test", "--format", "json",
    )  # fmt: skip
    assert json.loads(alone[1])["runs"][0]["metrics"]["AP"] == aps[0]

    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert f"{aps[0]:.3f}" in page
    kept = tmp_path / "out" / "sets" / "bolts.json"
    stored = json.loads(kept.read_text(encoding="utf-8"))
    stored["runs"][0]["metrics"]["AP"] = 0.25  # what is there is taken
    kept.write_text(json.dumps(stored), encoding="utf-8")
    (tmp_path / "out" / "sets" / "pills.json").unlink()
    code, out, _ = command(*words, "--format", "json")
    assert [row["AP"] for row in json.loads(out)["sets"]] == [0.25, aps[1]]

    code, _, err = command(*words, "--set", "infer.score_threshold=0.5")
    assert code == 2
    assert "bolts.json was measured otherwise: overrides was" in err


def test_benchmark__refcoco_is_told_by_accuracy(command: Command, tmp_path: Path) -> None:
    write_part(tmp_path / "set" / "instances.json", 40, 3, tmp_path / "work")
    drawn = json.loads((tmp_path / "set" / "instances.json").read_text(encoding="utf-8"))
    names = {item["id"]: item["name"] for item in drawn["categories"]}
    shutil.copytree(tmp_path / "set", tmp_path / "train2014", ignore=shutil.ignore_patterns("*.json"))
    splits = {"refcoco": ("unc", "val", "testA", "testB"), "refcoco+": ("unc", "val", "testA", "testB")}
    for name, (by, *parts) in (splits | {"refcocog": ("umd", "val", "test")}).items():
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "set" / "instances.json", tmp_path / name)
        references = [
            {
                "ann_id": item["id"],
                "split": part,
                "sentences": [{"sent": f"the {names[item['category_id']]}"}],
            }
            for part in parts
            for item in drawn["annotations"][:3]
        ]
        (tmp_path / name / f"refs({by}).json").write_text(json.dumps(references), encoding="utf-8")
    output = tmp_path / "out"
    words = ("eval", "tiny", tmp_path, "--benchmark", "refcoco", "--output", output, *FAST)
    code, out, err = command(*words, "--format", "json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["columns"], len(record["sets"])) == (["accuracy"], 8)
    assert all(row["images"] == 3 and 0 <= row["accuracy"] <= 1 for row in record["sets"])
    mean = sum(row["accuracy"] for row in record["sets"]) / 8
    assert record["means"] == [{"source": "head", "accuracy": pytest.approx(mean)}]
    assert "accuracy" in (output / "index.html").read_text(encoding="utf-8")
    code, _, err = command(*words, "--train", "--shots", "3")
    assert code == 2
    assert "each expression is a label of its own" in err


def test_benchmark__lvis_counts_300_detections_by_frequency(command: Command, tmp_path: Path) -> None:
    write_part(tmp_path / "val2017" / "own.json", 50, 4, tmp_path / "work")
    drawn = json.loads((tmp_path / "val2017" / "own.json").read_text(encoding="utf-8"))
    (tmp_path / "val2017" / "own.json").unlink()
    for image in drawn["images"]:  # as LVIS has it: no file_name
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for number, category in enumerate(drawn["categories"]):
        category["frequency"] = "rcf"[number % 3]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "lvis_v1_val.json").write_text(json.dumps(drawn), encoding="utf-8")
    words = ("eval", "tiny", tmp_path, "--benchmark", "lvis", "--output", tmp_path / "out", *FAST)
    code, out, err = command(*words, "--format", "json")
    assert code == 0, err
    (row,) = json.loads(out)["sets"]
    assert list(row) == ["set", "source", "images", "AP", "AP_r", "AP_c", "AP_f", "F1@mIoU"]
    known = [row[f"AP_{frequency}"] for frequency in "rcf" if row[f"AP_{frequency}"] is not None]
    assert min(known) <= row["AP"] <= max(known)
    stored = json.loads((tmp_path / "out" / "sets" / "lvis_v1_val.json").read_text(encoding="utf-8"))
    assert "AR_300" in stored["runs"][0]["metrics"]
    assert not any("300 detections" in note for note in stored["notes"])


def test_benchmark__trains_on_the_shots_and_goes_on(rf100vl: Path, command: Command, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = (
        "eval", "tiny", rf100vl, "--benchmark", "rf100vl", "--output", output, *FAST,
        "--train", "--shots", 1, "--set", "train.max_steps=1", "--set", "train.preflight=off",
    )  # fmt: skip
    code, _, err = command(*words)
    assert code == 0, err
    project = output / "trained" / "bolts"
    lines = (project / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < len(lines) <= 6
    assert (project / "run" / "final" / "qwendet.json").is_file()
    shutil.rmtree(output / "trained" / "pills")  # measured already: not trained again
    code, out, err = command(*words)
    assert code == 0, err
    assert not (output / "trained" / "pills").exists()
    assert "mean" in out


def test_benchmark__tells_what_of_a_set_is_broken(rf100vl: Path, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "rf"
    shutil.copytree(rf100vl / "pills", folder / "pills")
    file = folder / "pills" / "test" / "_annotations.coco.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    next(item for item in record["annotations"])["bbox"] = ["x", 1, 2, 3]
    file.write_text(json.dumps(record), encoding="utf-8")
    output = tmp_path / "out"
    code, out, err = command("eval", "tiny", folder, "--benchmark", "rf100vl", "--output", output, *FAST)
    assert code == 0, err
    assert "pills: 1 left out, listed in" in (out + err).replace("\n", " ")
    table = json.loads((output / "table.json").read_text(encoding="utf-8"))
    assert table["left_out"] == {"pills": 1}
    assert table["sets"][0]["images"] == 5


def test_benchmark__is_refused_under_a_launcher(
    rf100vl: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command("eval", "tiny", rf100vl, "--benchmark", "rf100vl", "--output", tmp_path / "out")
    assert code == 2
    assert "a benchmark runs in one process" in err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--benchmark", "odinw"), "unknown benchmark 'odinw'"),
        (("--benchmark", "coco"), "the results need a folder"),
        (("--train",), "are about a benchmark"),
        (("--benchmark", "coco", "--output", "out", "--shots", "3"), "nothing is trained"),
        (("--benchmark", "coco", "--output", "out", "--report", "r"), "--report cannot be used"),
        (("--benchmark", "coco", "--output", "out", "--from", "yolo"), "--from cannot be used"),
        (
            ("--benchmark", "coco", "--output", "out", "--train", "--set", "train.output_dir=x"),
            "each set is trained in a folder of its own",
        ),
        (("--benchmark", "coco", "--output", "out"), "not the layout of coco"),
    ],
)
def test_mistake__is_named_before_a_model_is_read(
    options: tuple[str, ...], what: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command("eval", "tiny", tmp_path, *options)
    assert code == 2
    assert what in err
    assert list(tmp_path.iterdir()) == []
