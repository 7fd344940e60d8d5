"""`qwendet eval`, from the command line to the files it writes, with the pre-trained tiny model."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.worlds import PRETRAIN
from qwendet.cli.main import run
from qwendet.config.schema import Config, DataConfig, InferConfig, ModelConfig
from qwendet.demo.shapes import write_dataset

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`test.jsonl` of six images, `train.jsonl` to draw demonstrations from."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(PRETRAIN, folder / "test.jsonl", 6, seed=71)
    write_dataset(PRETRAIN, folder / "train.jsonl", 3, seed=72)
    return folder


@pytest.fixture
def command(scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; the tiny model is used with the settings given."""
    config = Config(
        model=ModelConfig(path="tiny", dtype="float32", device="cpu", attn_implementation="sdpa"),
        data=DataConfig(train=str(scenes / "train.jsonl"), labels=PRETRAIN.labels),
        infer=InferConfig(max_new_tokens=60),
    )
    monkeypatch.setattr("qwendet.loader.config_of_checkpoint", lambda folder: config)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run([str(word) for word in words])
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return call


def test_eval__files_and_tables_say_the_same(command: Command, scenes: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "a.json", "--coco", tmp_path / "coco.json", "--report", tmp_path / "report"]
    code, out, err = command("eval", "tiny", scenes, "--mode", "both", "--teachers", 1, *files)
    assert code == 0, err
    record = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    names = ["head, no teachers", "head, 1 teacher", "text, no teachers", "text, 1 teacher"]
    assert [item["name"] for item in record["runs"]] == names
    assert [item["score"].split()[0] for item in record["runs"]] == ["probability"] * 2 + ["exp(mean"] * 2
    assert record["images"] == 6
    assert record["notes"] == [f"{scenes} is a folder: its test samples are measured."]
    head, *_, text = record["runs"]
    assert head["metrics"]["AP50"] > 0.1
    assert f"{head['metrics']['AP50']:.4f}" in out
    assert head["answers"] is None
    assert text["answers"]["answers"] == 6
    assert {item["source"] for image in text["predictions"] for item in image["detections"]} <= {"text"}
    assert (tmp_path / "report" / "index.html").is_file()
    truth, results = tmp_path / "coco.ground_truth.json", tmp_path / "coco.head_no_teachers.json"
    assert {item["source"] for item in json.loads(results.read_text(encoding="utf-8"))} == {"head"}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(head["metrics"]["AP"], abs=1e-6)


def test_eval__compared_with_its_own_file_differs_in_nothing(
    command: Command, scenes: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "a.json"
    settings = ("--set", "infer.batch_size=3")
    code, _, err = command("eval", "tiny", scenes / "test.jsonl", "--json", saved, *settings)
    assert code == 0, err
    assert err.endswith(f"--json {saved} --set infer.batch_size=3 --report report\n"), "as measured"
    code, out, err = command("eval", "tiny", scenes / "test.jsonl", "--compare", saved, "--format", "json")
    assert code == 0, err
    printed = json.loads(out)
    assert (printed["ok"], printed["checks"]) == (True, [])
    assert "predictions" not in printed["runs"][0]
    (comparison,) = printed["comparisons"]
    assert comparison["resamples"] == 1000
    assert [item["difference"] for item in comparison["differences"]] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["nowhere.jsonl"], 2, "expected a data set, got no such file or folder"),
        (["SCENES", "--compare", "nowhere.json"], 2, "cannot read the other run"),
        (["SCENES", "--set", "data.labels=['zebra']"], 2, "no label in common"),
        (["SCENES", "--mode", "neither"], 2, "neither"),
    ],
)
def test_eval__what_cannot_be_used_is_named(
    words: list[str], code: int, what: str, command: Command, scenes: Path, tmp_path: Path
) -> None:
    words = [str(scenes) if word == "SCENES" else word for word in words]
    found, _, err = command("eval", "tiny", *words, "--json", tmp_path / "x.json")
    assert (found, what in err) == (code, True), err
    assert not (tmp_path / "x.json").exists()


def test_eval__of_images_without_objects(command: Command, scenes: Path, tmp_path: Path) -> None:
    lines = (scenes / "test.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    negatives = scenes / "negatives.jsonl"
    records = [json.loads(line) | {"objects": []} for line in lines]
    negatives.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    code, out, err = command("eval", "tiny", negatives, "--report", tmp_path / "report")
    assert code == 0, err
    assert "2 images, 0 boxes" in out
    assert "There are no objects to be found." in (tmp_path / "report" / "index.html").read_text("utf-8")


@pytest.mark.parametrize("target", ["coco", "voc"])
def test_eval__of_another_format_measures_the_same(
    target: str, command: Command, scenes: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(scenes / "images", source / "images")
    (source / "test.jsonl").write_bytes((scenes / "test.jsonl").read_bytes())
    assert command("data", "convert", source, tmp_path / target, "--to", target)[0] == 0
    records = []
    for data in (scenes / "test.jsonl", tmp_path / target):
        code, out, err = command("eval", "tiny", data, "--format", "json")
        assert code == 0, err
        records.append(json.loads(out))
    assert (
        records[1]["notes"][0] == f"{tmp_path / target} was read where it lies: its test split is measured."
    )
    assert records[1]["boxes"] == records[0]["boxes"]
    assert records[1]["runs"][0]["metrics"]["AP50"] == pytest.approx(
        records[0]["runs"][0]["metrics"]["AP50"], abs=0.02
    )
