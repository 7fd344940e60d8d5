"""Model folders that do not fit together: commands say what, where, how to fix it, and write nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from benchmarks.worlds import PRETRAIN
from qwendet.demo.shapes import write_dataset
from tests.commands import Ending, Qwendet

QWEN2, QWEN3, QWEN3_5 = "Qwen2-VL-2B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3.5-4B"
SmallModel = Callable[[str], Path]
OTHERS = (
    "take a model of Qwen2-VL (qwen2_vl), Qwen2.5-VL (qwen2_5_vl), Qwen3-VL (qwen3_vl), Qwen3.5 (qwen3_5)"
)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Unfit(NamedTuple):
    """A change of a model's folder, and what is said of it."""

    name: str
    change: Callable[[Path, SmallModel], object]
    what: str
    fix: str
    is_seen_without_a_model: bool = False


def configured(**settings: Any) -> Callable[[Path, SmallModel], object]:
    def change(folder: Path, _: SmallModel) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def with_files_of(other: str, *names: str) -> Callable[[Path, SmallModel], object]:
    def change(folder: Path, small_model: SmallModel) -> None:
        for name in names:
            shutil.copy(small_model(other) / name, folder)

    return change


def without(name: str) -> Callable[[Path, SmallModel], object]:
    return lambda folder, _: (folder / name).unlink()


def thinking(before: str, after: str) -> Callable[[Path, SmallModel], object]:
    def change(folder: Path, _: SmallModel) -> None:
        path = folder / "chat_template.jinja"
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return change


UNFIT = {
    "another family": Unfit(
        QWEN3, configured(model_type="qwen2_vl"),
        "itself: model_type qwen2_vl, architectures Qwen3VLForConditionalGeneration",
        "copy config.json from the model's origin", True,
    ),
    "an unknown family": Unfit(
        QWEN3, configured(model_type="llava"), "model_type llava is no family that is supported", OTHERS,
        True,
    ),
    "no family": Unfit(
        QWEN3, configured(model_type=None), "config.json names no model_type, which is not supported", OTHERS,
        True,
    ),
    "a mixture of experts": Unfit(
        QWEN3_5, configured(model_type="qwen3_5_moe"),
        "model_type qwen3_5_moe is a mixture of experts, which is not supported", OTHERS, True,
    ),
    "weights of another family": Unfit(
        QWEN3, with_files_of(QWEN2, "model.safetensors"), "missing keys, such as",
        "take a directory that holds every weight of its model",
    ),
    "tokenizer of another family": Unfit(
        QWEN3, with_files_of(QWEN3_5, *TOKENIZER),
        "not the model's: its <|image_pad|> is 1268 of 1289 tokens, the model's 1268 of 1282",
        "copy the tokenizer's files from the model's origin",
    ),
    "tokenizer with the same ids": Unfit(
        QWEN3_5, with_files_of(QWEN2, *TOKENIZER),
        "the chat template with a generation prompt writes",
        "use the chat template that the model was published with",
    ),
    "no tokenizer": Unfit(
        QWEN3_5, without("tokenizer.json"),
        "the tokenizer is not the model's: it has no <|image_pad|>, as where tokenizer.json is missing",
        "copy the tokenizer's files from the model's origin",
    ),
    "thinks by default": Unfit(
        QWEN3, thinking("<|im_start|>assistant\\n' }}", "<|im_start|>assistant\\n<think>\\n' }}"),
        "writes '|>assistant\\n<think>\\n' for '|>assistant\\n': it thinks before each answer",
        "take a model that answers at once, such as one named Instruct",
    ),
    "thinks whatever it is told": Unfit(
        QWEN3_5, thinking("enable_thinking is false", "false"),
        "it thinks before each answer",
        "take a model that answers at once, such as one named Instruct",
    ),
    "image processor of another family": Unfit(
        QWEN3, with_files_of(QWEN2, "preprocessor_config.json"),
        "the image processor is not the model's: its patch_size is 14, the model's 16",
        "copy preprocessor_config.json from the model's origin",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(PRETRAIN, tmp_path_factory.mktemp("scenes") / "train.jsonl", 2, seed=1)


def write_config(folder: Path, model: Path, scenes: Path, **train: Any) -> Path:
    settings = {"output_dir": str(folder / "run"), "max_steps": 1, "batch_size": 1, "learning_rate": 1e-4}
    values = {
        "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
        "data": {
            "train": str(scenes),
            "labels": list(PRETRAIN.labels),
            "max_pixels": 65_536,
            "allow": ["config.images.small_objects"],
        },
        "detection": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_queries": 20},
        "train": settings | train,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def assert_told(ended: Ending, code: int, what: str, where: str, fix: str) -> None:
    said = " ".join((ended.out + ended.err).split())
    assert ended.code == code, said[-500:]
    for words in (what, f"where {where}", f"fix {fix}"):
        assert words in said
    assert "Traceback" not in said
    assert "this is a bug" not in said


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_model__is_told_by_every_command_that_reads_it(
    qwendet: Qwendet, small_model: SmallModel, scenes: Path, tmp_path: Path, name: str
) -> None:
    unfit = UNFIT[name]
    folder = shutil.copytree(small_model(unfit.name), tmp_path / "model")
    unfit.change(folder, small_model)
    config, told = write_config(tmp_path, folder, scenes), (unfit.what, str(folder), unfit.fix)
    assert_told(qwendet("train", config), 2, *told)
    assert not (tmp_path / "run").exists()
    checks = () if unfit.is_seen_without_a_model else ("--only", "loss.build")
    assert_told(qwendet("validate", config, *checks), 1, *told)
    if "weights" not in name:
        assert_told(qwendet("validate-config", config, "--tokens"), 1, *told)
    if unfit.is_seen_without_a_model:
        assert_told(qwendet("validate-config", config), 1, *told)
        ended = qwendet("init", tmp_path / "new", "--model", folder, "--data", scenes)
        assert_told(ended, 2, *told)
        assert not (tmp_path / "new").exists()


def test_packing__of_recurrent_layers_is_refused_before_the_model_is_loaded(
    qwendet: Qwendet, small_model: SmallModel, scenes: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, small_model(QWEN3_5), scenes, packing=True)
    told = ("Qwen3.5 cannot be packed: its recurrent layers carry", "train.packing", "set it to false")
    assert_told(qwendet("validate-config", config), 1, *told)
    assert_told(qwendet("train", config), 2, *told)
    assert not (tmp_path / "run").exists()
    hub = ("--set", "model.path=Qwen/Qwen3.5-0.8B")
    assert_told(qwendet("validate-config", config, *hub), 1, *told)
    assert qwendet("validate-config", config, "--set", "model.path=Qwen/Qwen3-VL-4B-Instruct").code == 0


def test_resume__of_a_run_of_another_family_is_refused_and_leaves_it_as_it_was(
    qwendet: Qwendet, small_model: SmallModel, scenes: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, small_model(QWEN2), scenes, preflight="off", evaluate=False)
    assert qwendet("train", config).code == 0
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = ("--set", f"model.path={small_model(QWEN3)}", "--set", "train.max_steps=2")
    assert_told(
        qwendet("train", config, "--resume", *other), 2,
        "the run was started with a model of Qwen2-VL, but model.path is one of Qwen3-VL",
        str(run / "checkpoint-1"), "restore model.path, or start another run with another train.output_dir",
    )  # fmt: skip
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
