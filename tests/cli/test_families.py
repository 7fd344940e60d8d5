"""Every command on a model of each family: narrow, random, of the published config and template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.worlds import PRETRAIN
from qwendet.config.load import load_config
from qwendet.demo.shapes import write_dataset
from tests.commands import Ending
from tests.commands import run_command as run

PUBLISHED = {"Qwen2-VL-2B-Instruct": 28, "Qwen3-VL-4B-Instruct": 32, "Qwen3.5-0.8B": 32}
"""And the side of an image token."""
NARROW = {
    "model.device": "cpu", "model.dtype": "float32", "data.max_pixels": 65_536, "data.max_tokens": 4096,
    "data.num_workers": 0, "data.teacher_ratio": 0.5, "detection.hidden_size": 32, "detection.num_layers": 1,
    "detection.num_heads": 2, "detection.num_queries": 30, "train.max_steps": 2,
    "train.batch_size": 2, "train.gradient_accumulation_steps": 1, "infer.max_new_tokens": 24,
    "train.learning_rate": 1e-3, "train.head_learning_rate": 1e-3, "data.allow": "[config.tokens.answer]",
}  # fmt: skip
LORA = {"model.lora": '{"rank": 2, "targets": "all"}'}
pytestmark = pytest.mark.slow


class Project(NamedTuple):
    """What `init` made for a model of a family, and a run of it."""

    folder: Path
    side: int
    settings: tuple[str, ...]

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def final(self) -> Path:
        return self.folder / "run" / "final"

    @property
    def val(self) -> Path:
        return self.folder / "data" / "val.jsonl"


def as_options(settings: dict[str, Any]) -> tuple[str, ...]:
    return tuple(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))


@pytest.fixture(scope="module", params=PUBLISHED)
def project(
    request: pytest.FixtureRequest,
    small_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Project:
    """`init` and `train`, with one sample that brings a demonstration and one without objects."""
    folder = tmp_path_factory.mktemp("project")
    train = write_dataset(PRETRAIN, folder / "data" / "train.jsonl", 6, seed=1)
    write_dataset(PRETRAIN, folder / "data" / "val.jsonl", 3, seed=2)
    records = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    records[3]["objects"] = []
    records[5] = {"teachers": [records[0]], "student": records[5]}
    train.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    model = small_model(request.param)
    started = run("init", folder, "--model", model, "--data", folder / "data")
    assert started.code == 0, started.err
    made = Project(folder, PUBLISHED[request.param], as_options(NARROW))
    ended = run("train", made.config, *made.settings)
    assert ended.code == 0, ended.err
    assert "preflight (quick): 4 checks passed" in ended.err
    return made


def test_init__has_limits_in_units_of_the_family_and_counts_exactly(project: Project) -> None:
    text = project.config.read_text(encoding="utf-8")
    assert f"of {project.side}×{project.side} pixels" in text
    assert "need at most " in text
    assert "at most about" not in text
    data = load_config(project.config).data
    assert data.max_pixels is not None
    assert data.max_pixels % project.side**2 == 0
    assert (
        run("validate-config", project.config, "--tokens", "--set", "data.allow=[config.tokens.answer]").code
        == 0
    )


def results_of(ended: Ending) -> dict[str, dict[str, Any]]:
    return {check["id"]: check for check in json.loads(ended.out)["checks"]}


@pytest.mark.parametrize(
    "changes",
    [{}, LORA | {"model.gradient_checkpointing": "true"}, {"train.packing": "true"}],
    ids=["whole", "adapter, recomputed", "packed"],
)
def test_validate__every_check_passes_and_skips_say_why(project: Project, changes: dict[str, Any]) -> None:
    if "train.packing" in changes and "Qwen3.5" in load_config(project.config).model.path:
        pytest.skip("cannot be packed")
    more = ("--no-overfit",) if changes else ("--checkpoint", project.final)
    settings = (*project.settings, *as_options(changes))
    ended = run("validate", project.config, *settings, *more, "--format", "json")
    results = results_of(ended)
    assert [check for check in results.values() if check["status"] == "fail"] == []
    assert ended.code == 0
    assert all(check["what"] for check in results.values() if check["status"] == "skip")
    passed = ["consistency.compute.served", "consistency.compute.attention", "config.memory"]
    passed += [] if changes else ["loss.overfit", "consistency.checkpoint.generation"]
    assert [results[id] for id in passed if results[id]["status"] != "pass"] == []


def predictions(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("mode", ["head", "text", "both"])
def test_infer__in_each_mode_and_with_demonstrations(project: Project, tmp_path: Path, mode: str) -> None:
    pool = ("--teachers", "1", "--set", f"data.teachers={project.folder / 'data' / 'train.jsonl'}")
    for name, words in (("alone", ()), ("shown", pool)):
        output = tmp_path / f"{name}.jsonl"
        ended = run("infer", project.final, project.val, "--mode", mode, "--output", output, *words)
        assert ended.code == 0, ended.err
        found = predictions(output)
        assert len(found) == 3
        sources = {item["source"] for line in found for item in line["detections"]}
        assert sources <= ({"head", "text"} if mode == "both" else {mode})
        assert "head" in sources or mode == "text"
        for line in found:
            for item in line["detections"]:
                x1, y1, x2, y2 = item["bbox_2d"]
                assert 0 <= x1 < x2 <= line["width"]
                assert 0 <= y1 < y2 <= line["height"]


def test_constrained__answers_can_be_read_whatever_the_model_would_write(
    project: Project, tmp_path: Path
) -> None:
    output = tmp_path / "found.jsonl"
    words = ("--mode", "text", "--constrained", "--set", "infer.max_new_tokens=60")
    ended = run("infer", project.final, project.val, "--output", output, *words)
    assert ended.code == 0, ended.err
    found = predictions(output)
    assert [line["rejected"] for line in found] == [0, 0, 0]
    assert {item["desc"] for line in found for item in line["detections"]} <= set(PRETRAIN.labels)


def test_eval_and_export__give_metrics_and_a_model_that_answers_alike(
    project: Project, tmp_path: Path
) -> None:
    report = tmp_path / "metrics.json"
    ended = run("eval", project.final, project.val, "--mode", "both", "--json", report)
    assert ended.code == 0, ended.err
    runs = json.loads(report.read_text(encoding="utf-8"))["runs"]
    assert [run["source"] for run in runs] == ["head", "text"]
    assert run("export", project.final, tmp_path / "plain").code == 0
    ends = json.loads((tmp_path / "plain" / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = json.loads((tmp_path / "plain" / "tokenizer.json").read_text())["added_tokens"]
    assert {token["id"] for token in tokenizer if token["content"] == "<|im_end|>"} <= set(ends)
    answers = {}
    for name, model in (("own", project.final), ("plain", tmp_path / "plain")):
        output = tmp_path / f"{name}.jsonl"
        assert run("infer", model, project.val, "--mode", "text", "--output", output).code == 0
        answers[name] = predictions(output)
    assert answers["plain"] == answers["own"]


def test_adapter__is_trained_used_and_merged(project: Project, tmp_path: Path) -> None:
    settings = (*project.settings, *as_options(LORA), "--set", f"train.output_dir={tmp_path / 'run'}")
    recipe = ("--set", "model.gradient_checkpointing=true", "--set", "train.preflight=off")
    assert run("train", project.config, *settings, *recipe).code == 0
    final, found = tmp_path / "run" / "final", []
    assert run("export", final, tmp_path / "merged").code == 0
    for name, model in (("adapter", final), ("merged", tmp_path / "merged")):
        output = tmp_path / f"{name}.jsonl"
        ended = run("infer", model, project.val, "--mode", "head", "--output", output)
        assert ended.code == 0, ended.err
        found.append(predictions(output))
    for one, other in zip(*found, strict=True):
        assert [item["desc"] for item in one["detections"][:5]] == [
            i["desc"] for i in other["detections"][:5]
        ]


def test_types__frozen_parts_in_bfloat16_beside_trained_ones(project: Project, tmp_path: Path) -> None:
    changes = {"model.dtype": "bfloat16", "train.vision_learning_rate": 0.0, "train.preflight": "off"}
    output = ("--set", f"train.output_dir={tmp_path / 'run'}")
    ended = run("train", project.config, *project.settings, *as_options(changes), *output)
    assert ended.code == 0, ended.err
    assert "dtype: bfloat16, autocast: bf16" in ended.err
    found = tmp_path / "found.jsonl"
    assert (
        run("infer", tmp_path / "run" / "final", project.val, "--mode", "both", "--output", found).code == 0
    )
    assert len(predictions(found)) == 3
