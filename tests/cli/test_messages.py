"""What mistakes end with, caused one by one and read; results as one JSON object; what comes next."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwendet.training.best import Best
from tests.commands import Ending, Qwendet

MISTAKES = """
trian
train --resum
infer
eval a b --mode x
eval a b --teachers -1
eval a b c
data convrt
train
train tiny.yaml --config tiny.yaml
train nowhere
train tiny/images
train project
validate-config text.yaml
validate-config broken.yaml
validate-config twice.yaml
validate-config utf.yaml
validate-config types.yaml
validate-config flat.yaml
validate-config tiny.yaml --set train.max_stps=3
validate-config tiny.yaml --set train.batch_size=0
validate-config tiny.yaml --set train.batch_size.x=1
validate-config tiny.yaml --set 'data.labels=[a'
validate-config tiny.yaml --set model.lora=3
validate-config tiny.yaml --set data.train=absent.jsonl --set data.val=tiny --set data.root=nowhere
validate-config tiny.yaml --decode --no-images
validate tiny.yaml --only loss.padd
validate-loss tiny.yaml --only consistency.images.processor
train tiny.yaml --set train.output_dir=tiny.yaml
train tiny.yaml --resume
train empty.yaml
train tiny.yaml --set model.path=nowhere/
infer run absent.png
infer run tiny --output tiny
infer run tiny --output tiny.yaml/found.jsonl
infer run tiny --visualize tiny.yaml
infer run tiny --labels a,,b
infer run tiny.yaml
infer run empty.jsonl
infer run tiny/images
infer tiny.yaml tiny/images
infer project tiny/images
infer tiny/images tiny/images
infer damaged tiny/images --labels dot
infer adapter tiny/images --labels dot
infer moe tiny/images --labels dot
infer llama tiny/images --labels dot
infer no/such-model tiny/images --labels dot
infer tiny-untrained tiny/images
infer tiny-untrained tiny/images --labels ''
infer tiny-untrained tiny/images --labels dot --mode head
infer tiny-untrained tiny/images --labels dot --config nowhere
infer tiny-untrained tiny/images --labels dot --config tiny.yaml --set data.frame=percent
infer tiny-untrained tiny/images --labels dot --set model.path=tiny
infer tiny tiny/images --config tiny.yaml
infer tiny tiny.yaml --set infer.score_treshold=0.5
infer run coco.json
infer tiny-untrained tiny/images --labels dot --mode text --tiles 9000
infer tiny-untrained tiny/images --labels dot --mode text --tiles 20
infer tiny-untrained tiny/images --labels dot --tiles 3y --overlap 0.5
infer tiny-untrained tiny/images --labels dot --tiles 2x1 --overlap 1
infer tiny-untrained tiny/images --labels dot --overlap 0.5
eval run tiny --json tiny
eval run tiny --coco tiny.yaml/x.json
eval run tiny --report tiny.yaml
eval run tiny/absent.jsonl
eval run tiny --compare text.yaml
eval tiny tiny --compare no/such-model
eval tiny tiny --compare moe
eval tiny tiny --config tiny.yaml
eval tiny tiny --set data.frame=thousandths
eval tiny-untrained tiny --mode both
train tiny.yaml --set train.evaluate_base=true --set train.evaluate=false
export run tiny
export run out --max-shard-size big
export run out
init tiny.yaml
init new --tiny --data tiny
init new --data nowhere
init new --data tiny/images
init new --data empty.jsonl
init new --data tiny --model no/such/model
data convert tiny out
data convert nowhere out
data convert tiny tiny --to coco
data convert tiny out --to coco --from voc
data convert tiny out --to coco --image-dir nowhere
data split tiny out --val 2
data split tiny out --val 0.5 --test 0.5
data tile tiny out --tiles auto
data tile tiny out --tiles 9000
data tile tiny out --tiles 50 --overlap 1
data tile tiny tiny --tiles 50
data teachers tiny/train.jsonl tiny/val.jsonl
data teachers nowhere pool.jsonl
data check nowhere
data check tiny tiny
data check tiny --root nowhere
data stats empty.jsonl
data stats tiny --output tiny.yaml
"""
FILES = {
    "text.yaml": "just text\n",
    "broken.yaml": "model: [\n",
    "twice.yaml": "model:\n  path: tiny\n  path: tiny\n",
    "types.yaml": "train:\n  batch_size: 0\n  learning_rate: high\n  lr_scheduler: cosin\n  evaluate: maybe\n"
    "  max_steps: 1.5\nmodel: 3\ndata:\n  labels: dot\n",
    "flat.yaml": "detection_enabled: true\nlearning_rate: 0.1\npadding_side: right\n",
    "empty.yaml": "data:\n  train: empty.jsonl\n",
    "empty.jsonl": "",
    "coco.json": '{"images": [], "annotations": []}',
    "project/config.yaml": "",
    "damaged/config.json": '{"model_type": "qwen2_5_vl"}',
    "damaged/resume.json": "{}",
    "adapter/adapter_config.json": "{}",
    "moe/config.json": '{"model_type": "qwen3_5_moe"}',
    "llama/config.json": '{"model_type": "llama"}',
}


@pytest.fixture
def folder(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set with its config, and files of every kind of mistake."""
    shutil.copytree(repo_root / "examples" / "tiny", tmp_path / "tiny")
    shutil.copy(repo_root / "examples" / "tiny.yaml", tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "project" / "run" / "final").mkdir(parents=True)
    (tmp_path / "utf.yaml").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_mistakes__are_told_with_place_and_fix(
    qwendet: Qwendet, folder: Path, golden: Callable[[str, str], None]
) -> None:
    before = sorted(folder.rglob("*"))
    said = []
    for line in MISTAKES.strip().splitlines():
        ending = qwendet("--quiet", *shlex.split(line))
        assert ending.code == 2, (line, ending)
        assert ending.out == "", line
        assert "Traceback" not in ending.err
        assert ending.err.count("  fix ") == ending.err.count("Error: "), ending.err
        said.append(f"$ qwendet {line}\n{ending.err}".replace(str(folder), "DIR"))
    assert sorted(folder.rglob("*")) == before, "a refused command left something behind"
    golden("messages/mistakes.txt", "\n".join(said))


@pytest.mark.parametrize(
    "line", MISTAKES.strip().splitlines()[:10] + ["init tiny.yaml", "data check nowhere"]
)
def test_mistakes__are_json_where_json_is_asked_for(qwendet: Qwendet, folder: Path, line: str) -> None:
    ending = qwendet(*shlex.split(line), "--format", "json")
    assert ending.code == 2
    assert ending.err == ""
    report = json.loads(ending.out)
    assert report["ok"] is False
    assert all(check["what"] and check["fix"] for check in report["checks"])


RECORDS = {
    "init new --data tiny --model tiny": {"config", "notes", "next"},
    "data convert tiny out --to coco": {
        "files", "images", "boxes", "findings", "left_out", "data_root", "next"
    },
    "data split tiny out --val 0.3": {
        "files", "images", "boxes", "findings", "left_out", "data_root", "next"
    },
    "data teachers tiny/train.jsonl pool.jsonl --count 3": {
        "file", "shown", "available", "scenes", "held_out_files", "held_out", "next"
    },
    "data stats tiny --output plots": {"tables", "broken", "pictures", "next"},
    "data check tiny": set(),
    "validate-config tiny.yaml": set(),
    "validate --list": {"ids"},
}  # fmt: skip


@pytest.mark.parametrize(("line", "keys"), RECORDS.items(), ids=RECORDS)
def test_json__is_alone_on_stdout(qwendet: Qwendet, folder: Path, line: str, keys: set[str]) -> None:
    ending = qwendet(*shlex.split(line), "--format", "json")
    record = json.loads(ending.out)
    assert (ending.code, record["ok"]) == (0, True)
    assert record.keys() == {"ok", "checks"} | keys
    assert "Next:" not in ending.err
    if "next" in keys:
        assert record["next"].startswith("qwendet ")


@pytest.mark.parametrize("line", RECORDS)
def test_quiet__says_nothing_beside_results(qwendet: Qwendet, folder: Path, line: str) -> None:
    assert qwendet("--quiet", *shlex.split(line)).err == ""


NEXT = {
    "init new --data tiny --model tiny": "qwendet validate-config new/config.yaml",
    "validate-config tiny.yaml": "qwendet validate tiny.yaml",
    "validate-config tiny.yaml --set train.seed=9": "qwendet validate tiny.yaml --set train.seed=9",
    "validate-config tiny.yaml --set detection.enabled=false": "fix what failed, then"
    " qwendet validate-config tiny.yaml --set detection.enabled=false",
    "data check tiny": "qwendet init DIR --data tiny",
    "data check tiny/train.jsonl --root tiny/images": "fix what failed, then"
    " qwendet data check tiny/train.jsonl --root tiny/images",
    "data stats tiny": "qwendet data check tiny",
    "data convert tiny out --to coco": "qwendet init DIR --data out",
    "data split tiny out --val 0.3": "qwendet data check out",
}


@pytest.mark.parametrize(("line", "command"), NEXT.items(), ids=NEXT)
def test_next__is_the_last_line(qwendet: Qwendet, folder: Path, line: str, command: str) -> None:
    ending = qwendet(*shlex.split(line))
    assert ending.err.splitlines()[-1] == f"Next: {command}"


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))  # type: ignore[arg-type]


def run_json(qwendet: Qwendet, *words: str) -> tuple[Ending, dict[str, object]]:
    ending = qwendet(*words, "--format", "json")
    return ending, json.loads(ending.out)


def test_train__as_json(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    done = SimpleNamespace(
        output_dir=Path("run"), final=Path("run/final"), metrics={"head/AP": 0.5}, stopped_by="",
        before={"text/AP": 0.1}, best=Best(200, "head/AP", 0.6),
    )  # fmt: skip
    fake(monkeypatch, "qwendet.train", train=lambda *_, **__: print("a library speaks") or done)
    ending, record = run_json(qwendet, "train", "tiny.yaml")
    assert (ending.code, record["ok"], record["metrics"]) == (0, True, {"head/AP": 0.5})
    assert record["before"] == {"text/AP": 0.1}
    assert record["best"] == {"step": 200, "metric": "head/AP", "value": 0.6}
    assert record["next"] == "qwendet eval run/best tiny/val.jsonl --report run/report"
    stopped = SimpleNamespace(output_dir=Path("run"), final=None, metrics=None, stopped_by="SIGINT")
    stopped.before = stopped.best = None
    fake(monkeypatch, "qwendet.train", train=lambda *_, **__: stopped)
    ending, record = run_json(qwendet, "train", "tiny.yaml")
    assert (ending.code, record["ok"], record["stopped_by"]) == (130, False, "SIGINT")
    assert record["next"] == "qwendet train tiny.yaml --resume"


def test_infer__as_json(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    done = SimpleNamespace(images=1, detections=2, rejected=0, output=None, lines=['{"image": "a"}'])
    done.skipped = []
    done.model = {"trained_by": "qwendet"}
    fake(monkeypatch, "qwendet.infer", infer=lambda *_, **__: done)
    _, record = run_json(qwendet, "infer", "run", "tiny", "--visualize", "pictures")
    assert record == {
        "ok": True, "checks": [], "images": 1, "detections": 2, "rejected": 0, "output": None,
        "model": {"trained_by": "qwendet"}, "pictures": "pictures", "predictions": [{"image": "a"}],
        "left_out": [], "next": "qwendet export run OUT",
    }  # fmt: skip


def test_export__as_json(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    calls: list[dict[str, object]] = []
    done = SimpleNamespace(
        output=Path("out"), num_parameters=7, dtype="float32", files=("a",), merge_error=None, launch="vllm"
    )
    fake(monkeypatch, "qwendet.export.directory", export=lambda *_, **options: calls.append(options) or done)
    _, record = run_json(qwendet, "export", "run", "out", "--max-shard-size", "5gb")
    assert (record["parameters"], record["next"]) == (7, "vllm")
    assert calls[0]["max_shard_size"] == "5GB"
