"""The configs of examples/: each loads, says when to choose it, fits its machine, and trains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Qwen2_5_VLConfig

from benchmarks.random_model import FULL_SIZE_TEXT, FULL_SIZE_VISION
from qwendet.checks.config.suite import require_config_checks
from qwendet.checks.preflight import require_preflight
from qwendet.config.load import load_config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.training.build import create_trainer
from qwendet.training.memory import GIB, estimate_memory, largest_workload
from tests.conftest import REPO_ROOT

EXAMPLES = sorted((REPO_ROOT / "examples").glob("*.yaml"))
OF_QWEN3_VL = {
    "bbu_demonstrations": "2B", "coco_8gpu": "2B", "text_only": "2B", "head_only": "4B", "lora_24gb": "8B",
}  # fmt: skip
by_name = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def page(repo_root: Path) -> str:
    return (repo_root / "docs" / "examples.md").read_text(encoding="utf-8")


def test_examples__are_all_that_were_promised() -> None:
    assert {path.stem for path in EXAMPLES} == {*OF_QWEN3_VL, "base_flat_v2", "tiny", "pretrain_tiny"}


@by_name
def test_example__loads_and_its_first_line_says_when_to_choose_it(path: Path, repo_root: Path) -> None:
    load_config(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# Choose it \S.*[.:]", first)
    reason = first.removeprefix("# Choose it ").rstrip(".:")
    assert f"| [`{path.stem}`](../examples/{path.name}) | {reason} |" in page(repo_root)


def test_base_flat_v2__is_the_full_size_configuration() -> None:
    config = load_config("base_flat_v2")
    assert config.model.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert config.model.attn_implementation == "flash_attention_2"
    assert config.model.dtype == "bfloat16"
    assert config.detection.enabled


def peak(name: str, vlm_config: Any) -> float:
    """GiB of the largest step, as `config.memory` estimates it."""
    config = load_config(name)
    assert config.data.max_pixels is not None
    work = largest_workload(config, vlm_config, config.data.max_pixels)
    return estimate_memory(config, vlm_config, torch.bfloat16, work, "cuda").peak / GIB


def require_documented(name: str, estimate: float, repo_root: Path) -> None:
    assert re.search(rf"`{name}`.*\| {estimate:.1f} GiB", page(repo_root)), f"{estimate:.1f} GiB"


def test_base_flat_v2__fits_as_documented(repo_root: Path) -> None:
    vlm_config = Qwen2_5_VLConfig(
        text_config={"rms_norm_eps": 1e-6, **FULL_SIZE_TEXT},
        vision_config={"out_hidden_size": FULL_SIZE_TEXT["hidden_size"], **FULL_SIZE_VISION},
        tie_word_embeddings=True,
    )
    estimate = peak("base_flat_v2", vlm_config)
    assert estimate <= 76
    require_documented("base_flat_v2", estimate, repo_root)


@pytest.mark.parametrize(("name", "size"), OF_QWEN3_VL.items())
def test_example__of_qwen3_vl_fits_as_documented(name: str, size: str, shared: Path, repo_root: Path) -> None:
    config = load_config(name)
    assert config.model.path == f"Qwen/Qwen3-VL-{size}-Instruct"
    assert config.data.max_pixels is not None
    assert config.data.max_pixels % 32**2 == 0
    published = "8B" if size == "8B" else "4B"
    vlm_config = AutoConfig.from_pretrained(shared / "qwen_processor" / f"Qwen3-VL-{published}-Instruct")
    if size == "2B":  # by its own config.json, as far as it differs
        text = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
        vlm_config.text_config.update(text | {"num_attention_heads": 16})
        vlm_config.vision_config.out_hidden_size = 2048
    estimate = peak(name, vlm_config)
    gradients = 7.9 if name == "coco_8gpu" else 0.0  # DDP keeps them once more
    assert config.train.max_memory is not None
    assert estimate + gradients <= config.train.max_memory
    require_documented(name, estimate, repo_root)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/` as the examples want it: generated scenes under the Chinese labels of the BBU example."""
    folder = tmp_path_factory.mktemp("examples") / "data"
    labels = load_config("bbu_demonstrations").data.labels
    assert labels is not None
    for seed, split in enumerate(("train", "val", "teachers")):
        file = write_dataset(DEMO, folder / f"{split}.jsonl", 8, seed=seed)
        text = file.read_text(encoding="utf-8")
        for index, label in enumerate(DEMO.labels):
            text = text.replace(f'"{label}"', f'"{labels[index % len(labels)]}"')
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
@by_name
def test_example__trains_the_tiny_model(path: Path, scenes: Path, tmp_path: Path) -> None:
    """Its settings go together: every check of config and data passes, and those before a first step."""
    changes: dict[str, Any] = {
        "model.path": "tiny",
        "model.device": "cpu",
        "model.dtype": "float32",
        "model.attn_implementation": "sdpa",
        "data.num_workers": 0,
        "train.batch_size": 2,
        "train.output_dir": tmp_path / "run",
    }
    folder = scenes if path.stem not in ("tiny",) else path.parent / "tiny"
    changes |= {f"data.{split}": folder / f"{split}.jsonl" for split in ("train", "val")}
    if load_config(path).data.teachers:
        changes["data.teachers"] = folder / "teachers.jsonl"
    config = load_config(path, [f"{key}={value}" for key, value in changes.items()])
    require_config_checks(config)
    require_preflight(create_trainer(config).bundle)


# The tiny example's data


def test_tiny_example__is_small(repo_root: Path) -> None:
    files = [path for path in (repo_root / "examples" / "tiny").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1_000_000


def test_tiny_example__can_be_used_from_beside_it(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder `tiny`, which holds its images, is not taken for the model `tiny`."""
    shutil.copytree(repo_root / "examples" / "tiny", tmp_path / "tiny")
    shutil.copy(repo_root / "examples" / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config("tiny.yaml")
    assert config.model.path == "tiny"
    require_config_checks(config)
