"""The command line: what goes to stdout and stderr, and what each command ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from PIL import Image

from tests.commands import Ending, Qwendet


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A config with two samples; returns the config's path."""
    for name in ("train", "val"):
        Image.new("RGB", (40, 30), "white" if name == "val" else "grey").save(tmp_path / f"{name}.png")
        record = {"images": [f"{name}.png"], "objects": [{"bbox_2d": [1, 2, 20, 25], "desc": "dot"}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    config = tmp_path / "config.yaml"
    config.write_text("data:\n  train: train.jsonl\n  val: val.jsonl\n")
    return config


def in_new_process(code: str, repo_root: Path, *words: str, cwd: Path | None = None) -> Ending:
    """Run Python code on its own, as a user's terminal of 100 columns would."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(repo_root),
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, cwd=cwd, check=False
    )
    return Ending(done.returncode, done.stdout, done.stderr)


# Start-up


LIST_HEAVY = "import sys; print(*({'torch', 'transformers', 'scipy'} & set(sys.modules)), file=sys.stderr)"


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["validate-config", "CONFIG"], ["train", "--config", "nowhere"]]
)
def test_start__imports_neither_torch_nor_transformers(
    words: list[str], project: Path, repo_root: Path
) -> None:
    words = [str(project) if word == "CONFIG" else word for word in words]
    code = f"import atexit\natexit.register(lambda: exec({LIST_HEAVY!r}))\nimport qwendet\n"
    if words:
        code += "from qwendet.cli.main import run\nrun()"
    ending = in_new_process(code, repo_root, *words)
    assert ending.code == (2 if "nowhere" in words else 0), ending
    assert ending.err.splitlines()[-1] == ""


def test_package__has_its_api_in_dir_and_refuses_other_names() -> None:
    import qwendet as package

    assert {"load", "create_trainer", "Predictor", "load_config", "__version__"} <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing  # type: ignore[attr-defined]


def test_package__gives_load_config_and_version() -> None:
    import qwendet as package
    from qwendet.config.load import load_config

    assert package.load_config is load_config
    assert package.__version__[0].isdigit()


def test_version__is_printed(qwendet: Qwendet) -> None:
    import qwendet as package

    assert qwendet("--version") == (0, f"qwendet {package.__version__}\n", "")


# Mistakes on the command line and in the config


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("learning_rat: 0.1", (":2: train.learning_rat", "did you mean train.learning_rate?")),
        ("learning_rate: high", (":2: train.learning_rate", "got 'high'", "the default is 1.0e-05")),
    ],
    ids=["unknown key", "text for a number"],
)
@pytest.mark.parametrize("command", ["validate-config", "train"])
def test_mistake_in_the_config__is_2_with_its_line_and_fix(
    qwendet: Qwendet, project: Path, command: str, line: str, words: tuple[str, ...]
) -> None:
    project.write_text(f"train:\n  {line}\n")
    ending = qwendet(command, project)
    assert (ending.code, ending.out) == (2, "")
    assert [word for word in words if word not in ending.err] == []
    assert f"{project}:2" in ending.err


def test_missing_config__names_init(qwendet: Qwendet) -> None:
    ending = qwendet("train", "nowhere.yaml")
    assert ending.code == 2
    assert "qwendet init DIR" in ending.err


def test_missing_sample_file__is_2(qwendet: Qwendet, project: Path) -> None:
    ending = qwendet("validate-config", project, "--set", "data.val=absent.jsonl")
    assert ending.code == 2
    assert "there is no such sample file" in ending.err
    assert "data.val" in ending.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_steps", "expected key=value, got 'train.max_steps'"),
        ("train.max_stps=3", "did you mean train.max_steps?"),
        ("train.max_steps=many", "got 'many'"),
        ("=3", "expected key=value"),
    ],
)
def test_bad_set__is_2(qwendet: Qwendet, project: Path, setting: str, message: str) -> None:
    ending = qwendet("validate-config", project, "--set", setting)
    assert ending.code == 2
    assert message in ending.err


@pytest.mark.parametrize("command", ["train", "validate-config"])
def test_config__is_given_once(qwendet: Qwendet, project: Path, command: str) -> None:
    both = qwendet(command, project, "--config", project)
    neither = qwendet(command)
    assert (both.code, neither.code) == (2, 2)
    assert "two configs were given" in both.err
    assert "no config was given" in neither.err
    assert "give it once" in both.err
    assert "give it once" in neither.err


def test_config__by_option(qwendet: Qwendet, project: Path) -> None:
    assert qwendet("validate-config", "--config", project).code == 0


def test_unknown_option_and_command__are_2(qwendet: Qwendet) -> None:
    assert qwendet("train", "--resum").code == 2
    assert "Did you mean 'train'?" in qwendet("trian").err


def test_control_characters__do_not_reach_the_terminal(qwendet: Qwendet) -> None:
    ending = qwendet("train", "a\x1b[31m\u202e.yaml")
    assert "\x1b" not in ending.err
    assert "\u202e" not in ending.err
    assert r"a\x1b[31m\u202e.yaml" in ending.err


def test_rich_markup__is_shown_as_it_is(qwendet: Qwendet) -> None:
    assert "[red]x[/red].yaml" in qwendet("train", "[red]x[/red].yaml").err


# validate-config


def test_validate__passes(qwendet: Qwendet, project: Path) -> None:
    ending = qwendet("validate-config", project)
    assert ending.code == 0
    assert " 0 failed, 0 skipped" in ending.out
    assert "\x1b" not in ending.out + ending.err


def test_validate__failed_check_is_1_with_where_and_fix(qwendet: Qwendet, project: Path) -> None:
    ending = qwendet("validate-config", project, "--set", "detection.enabled=false")
    assert ending.code == 1
    assert "config.detection.off_with_boxes" in ending.out
    assert "  where  detection.enabled\n  fix    set it to true" in ending.out


@pytest.mark.parametrize(
    ("settings", "code", "failed"),
    [
        ([], 0, set()),
        (["detection.enabled=false"], 1, {"config.detection.off_with_boxes"}),
        (["detection.enabld=false"], 2, {"config"}),
        (["data.val=absent.jsonl"], 2, {"config.data.files"}),
    ],
)
def test_validate_json__is_one_object_on_stdout(
    qwendet: Qwendet, project: Path, settings: list[str], code: int, failed: set[str]
) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    ending = qwendet("validate-config", project, "--format", "json", *options)
    report = json.loads(ending.out)
    assert ending.code == code
    assert report.keys() == {"ok", "checks"}
    assert report["ok"] is (code == 0)
    assert all(
        check.keys() == {"id", "status", "what", "where", "fix", "seconds"} for check in report["checks"]
    )
    assert {check["id"] for check in report["checks"] if check["status"] == "fail"} == failed


def test_validate_json__without_config_is_json(qwendet: Qwendet) -> None:
    ending = qwendet("validate-config", "--format", "json")
    assert ending.code == 2
    assert json.loads(ending.out)["checks"][0]["what"] == "no config was given"


def test_format__does_not_outlive_its_command(qwendet: Qwendet, project: Path) -> None:
    qwendet("validate-config", project, "--format", "json")
    assert qwendet("train", "nowhere").out == ""


# Exceptions


def raise_from_load_config(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise error

    monkeypatch.setattr("qwendet.config.load.load_config", fail)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ZeroDivisionError("division by zero"), 1, "this is a bug: ZeroDivisionError: division by zero"),
        (OSError(28, "No space left on device"), 3, "No space left on device"),
    ],
    ids=["bug", "system"],
)
def test_exception__is_told_without_traceback(
    qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, told: str
) -> None:
    raise_from_load_config(monkeypatch, error)
    ending = qwendet("train", "x")
    assert ending.code == code
    assert told in ending.err
    assert "Traceback" not in ending.err


@pytest.mark.parametrize(
    "words", [["--debug", "train", "x"], ["train", "x", "--debug"], ["train", "--debug", "x"]]
)
def test_debug__shows_the_traceback_wherever_it_stands(
    qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    raise_from_load_config(monkeypatch, ZeroDivisionError())
    ending = qwendet(*words)
    assert ending.code == 1
    assert "Traceback (most recent call last)" in ending.err


def test_user_error__has_a_traceback_with_debug_only(qwendet: Qwendet) -> None:
    assert "Traceback" not in qwendet("train", "nowhere").err
    assert "Traceback" in qwendet("train", "nowhere", "--debug").err


def test_bug__in_json(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_load_config(monkeypatch, ZeroDivisionError())
    ending = qwendet("validate-config", "x", "--format", "json")
    assert ending.code == 1
    assert json.loads(ending.out)["ok"] is False


def test_interrupt__is_130(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_load_config(monkeypatch, KeyboardInterrupt())
    assert qwendet("train", "x") == (130, "", "Interrupted.\n")


def test_terminate__is_143(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwendet.config.load.load_config", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert qwendet("train", "x").code == 143


# Commands that work with a model, without one


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))  # type: ignore[arg-type]


@pytest.mark.parametrize(("stopped_by", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_train__stopped_names_the_resume_command(
    qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, project: Path, stopped_by: str, code: int
) -> None:
    summary = SimpleNamespace(
        output_dir=Path("run"), final=None, metrics=None, stopped_by=stopped_by, best=None
    )
    fake_module(monkeypatch, "qwendet.train", train=lambda *_, **__: summary)
    ending = qwendet("train", project, "--set", "train.seed=1")
    assert ending.code == code
    assert f"Stopped by {stopped_by}; a checkpoint was saved in run." in ending.err
    assert f"Next: qwendet train {project} --resume --set train.seed=1" in ending.err


def test_train__prints_metrics_and_the_next_step(
    qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    calls: list[dict[str, Any]] = []

    def train(config: Any, **options: Any) -> Any:
        calls.append({"steps": config.train.max_steps, "resume": options["resume"]})
        final, metrics = Path("run/final"), {"head/AP50": 0.5}
        return SimpleNamespace(
            output_dir=Path("run"), final=final, metrics=metrics, stopped_by="", before=None, best=None
        )

    fake_module(monkeypatch, "qwendet.train", train=train)
    ending = qwendet("train", project, "--resume", "--set", "train.max_steps=7")
    assert ending.code == 0
    assert calls == [{"steps": 7, "resume": True}]
    assert "head/AP50" in ending.out
    assert "0.5000" in ending.out
    report = f"Next: qwendet eval run/final {project.parent / 'val.jsonl'} --report run/report"
    assert ending.err.splitlines()[-1] == report


def test_infer__prints_lines_on_stdout_only(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def infer(checkpoint: Path, inputs: list[Path], **options: Any) -> Any:
        calls.append({"checkpoint": checkpoint, "inputs": inputs, **options})
        return SimpleNamespace(
            images=2, detections=1, rejected=0, output=None, lines=['{"a": 1}', '{"b": 2}'], skipped=[]
        )

    fake_module(monkeypatch, "qwendet.infer", infer=infer)
    ending = qwendet("infer", "run/final", "a.png", "b", "--labels", "cat, red dot", "--mode", "both")
    assert ending.code == 0
    assert ending.out == '{"a": 1}\n{"b": 2}\n'
    assert ending.err == (
        "2 images, 1 detections, 0 rejected boxes\n"
        "Next: qwendet infer run/final a.png b --labels 'cat, red dot' --mode both --visualize pictures\n"
    )
    (call,) = calls
    assert call["checkpoint"] == Path("run/final")
    assert list(call["inputs"]) == [Path("a.png"), Path("b")]
    assert (call["labels"], call["mode"], call["teachers"]) == (("cat", "red dot"), "both", 0)


def test_infer__refuses_an_empty_label(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "qwendet.infer", infer=None)
    ending = qwendet("infer", "run/final", "a.png", "--labels", "cat,,dog")
    assert ending.code == 2
    assert "expected different labels" in ending.err


# init and data convert


def write_voc(folder: Path) -> None:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    Image.new("RGB", (40, 30), "white").save(folder / "JPEGImages" / "a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
    objects = f"<object><name>dot</name>{box}</object>"
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")


def test_data_convert__writes_jsonl_and_a_table(qwendet: Qwendet, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    ending = qwendet("data", "convert", tmp_path / "voc", tmp_path / "out", "--from", "voc", "--to", "jsonl")
    assert ending.code == 0
    assert ending.out.splitlines()[-2].split() == ["all", "1", "dot", "1"]
    assert f"Wrote {tmp_path / 'out' / 'all.jsonl'}." in ending.err
    record = json.loads((tmp_path / "out" / "all.jsonl").read_text())
    assert record["objects"] == [{"bbox_2d": [1, 2, 20, 25], "desc": "dot"}]


def test_data_convert__reference_names_data_root(qwendet: Qwendet, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    ending = qwendet("data", "convert", tmp_path / "voc", tmp_path / "out", "--images", "reference")
    assert f"set data.root to {tmp_path / 'voc'}" in ending.err


def test_init__then_validate(qwendet: Qwendet, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    ending = qwendet("init", tmp_path / "p", "--model", "tiny", "--data", tmp_path / "voc")
    assert ending.code == 0
    assert ending.err.splitlines()[-1] == f"Next: qwendet validate-config {tmp_path / 'p' / 'config.yaml'}"
    assert qwendet("validate-config", tmp_path / "p" / "config.yaml").code == 0
    again = qwendet("init", tmp_path / "p", "--model", "tiny", "--data", tmp_path / "voc")
    assert again.code == 2
    assert "there is a config already" in again.err
