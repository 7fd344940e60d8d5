"""The published tokenizer, template and vocabulary, Chinese labels: nothing is fitted to the tiny model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.inference.inputs import sample_of_image
from qwendet.inference.predictor import Predictor
from qwendet.loading.manifest import read_manifest
from qwendet.training.build import create_trainer
from qwendet.training.trainer import DetectionTrainer

VOCABULARY = 152_064
STEPS = 5
CHINESE = {
    "orange star": "橙色星星",
    "purple star": "紫色星星",
    "cyan cross": "青色十字",
    "purple crescent": "紫色月牙",
}
SMALL_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_window_layers": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "torch_dtype": "float32",
}
SMALL_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
}
LAYER_NUMBER = re.compile(r"\.\d+\.")


@pytest.fixture(scope="session")
def published(shared: Path) -> Path:
    return shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"


@pytest.fixture(scope="session")
def small_model(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published directory with small random weights, under the published names."""
    folder = tmp_path_factory.mktemp("small") / "Qwen2.5-VL-small"
    folder.mkdir()
    for path in published.iterdir():
        if "index" not in path.name:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((published / "config.json").read_text(encoding="utf-8")) | SMALL_TEXT
    config["vision_config"] |= SMALL_VISION
    assert config["vocab_size"] == VOCABULARY
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder))
    weights = {
        name.removeprefix("model.").replace("language_model.", "model.", 1): tensor
        for name, tensor in model.state_dict().items()
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes, most of their labels in Chinese."""
    path = write_dataset(DEMO, tmp_path_factory.mktemp("scenes") / "train.jsonl", 10, seed=3)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        for item in record["objects"]:
            item["desc"] = CHINESE.get(item["desc"], item["desc"])
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def config(small_model: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    values: dict[str, Any] = {
        "model": {"path": str(small_model), "device": "cpu", "dtype": "float32"},
        "data": {"train": str(scenes), "teacher_ratio": 0.5},
        "detection": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_queries": 30},
        "train": {
            "output_dir": str(tmp_path_factory.mktemp("run")),
            "max_steps": STEPS,
            "batch_size": 2,
            "learning_rate": 2.0e-3,
            "head_learning_rate": 1.0e-3,
            "lr_scheduler": "constant",
            "warmup_ratio": 0.0,
            "logging_steps": 1,
        },
        "infer": {"max_new_tokens": 16, "score_threshold": 0.0},
    }
    return build_config(values, "test")


@pytest.fixture(scope="session")
def trained(config: Config) -> DetectionTrainer:
    trainer = create_trainer(config)
    trainer.train()
    return trainer


@pytest.fixture(scope="session")
def checkpoint(trained: DetectionTrainer) -> Path:
    return Path(trained.bundle.config.train.output_dir) / f"checkpoint-{STEPS}"


def test_train__the_whole_vocabulary_is_there(trained: DetectionTrainer) -> None:
    bundle = trained.bundle
    vlm = bundle.detector.vlm
    assert vlm.lm_head.weight.shape == vlm.get_input_embeddings().weight.shape == (VOCABULARY, 64)
    assert vlm.lm_head.weight is not vlm.get_input_embeddings().weight
    assert len(bundle.processor.tokenizer) == 151_665
    assert set(CHINESE.values()) < set(bundle.labels)
    ids = [token for tokens in bundle.encoder().label_tokens(bundle.labels).values() for token in tokens]
    assert max(ids) > 99_000, "the Chinese labels use the upper part of the vocabulary"


def test_train__five_steps_lower_every_term(trained: DetectionTrainer) -> None:
    rows = [row for row in trained.state.log_history if "loss/total" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert all(torch.isfinite(torch.tensor(value)) for value in row.values()), row
    assert rows[0]["loss/lm"] == pytest.approx(torch.log(torch.tensor(float(VOCABULARY))).item(), abs=0.3)
    for term in ("total", "lm", "student"):
        assert rows[-1][f"loss/{term}"] < 0.95 * rows[0][f"loss/{term}"], term
    assert any(row["loss/teacher"] > 0 for row in rows)


def test_train__the_checkpoint_has_the_published_layout(checkpoint: Path, published: Path) -> None:
    index = json.loads((published / "model.safetensors.index.json").read_text(encoding="utf-8"))
    wanted = {LAYER_NUMBER.sub(".N.", name) for name in index["weight_map"]}
    weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert {LAYER_NUMBER.sub(".N.", name) for name in weights} == wanted
    facts = [
        json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        for folder in (checkpoint, published)
    ]
    assert facts[0].items() >= facts[1].items()
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= read_manifest(
        checkpoint
    ).files.keys()


@pytest.mark.parametrize("mode", ["head", "text", "both"])
def test_infer__the_checkpoint_predicts_as_the_model_in_memory(
    mode: str, trained: DetectionTrainer, checkpoint: Path, scenes: Path
) -> None:
    samples = [sample_of_image(path) for path in sorted((scenes.parent / "images").iterdir())[:3]]
    loaded = Predictor.from_checkpoint(checkpoint)
    predictions = list(loaded.predict(samples, mode))
    assert [item.to_json() for item in predictions] == [
        item.to_json() for item in Predictor(trained.bundle).predict(samples, mode)
    ]
    for prediction in predictions:
        found = [item for item in prediction.detections if item.source == "head"]
        assert len(found) == (0 if mode == "text" else 100)
        assert {item.desc for item in found} <= set(loaded.bundle.labels)


def test_infer__constrained_answers_are_valid_in_the_published_vocabulary(
    checkpoint: Path, scenes: Path
) -> None:
    """Five steps teach nothing: without the constraint not one box can be read."""
    samples = [sample_of_image(path) for path in sorted((scenes.parent / "images").iterdir())[:2]]
    overrides = ["infer.constrained=true", "infer.max_detections=3", "infer.max_new_tokens=150"]
    constrained = Predictor.from_checkpoint(checkpoint, overrides=overrides)
    predictions = list(constrained.predict(samples, "text"))
    assert len(predictions) == 2
    for prediction in predictions:
        assert prediction.rejected == 0
        assert 1 <= len(prediction.detections) <= 3
        assert {item.desc for item in prediction.detections} <= set(constrained.bundle.labels)
        for item in prediction.detections:
            assert 0 <= item.bbox_2d[0] < item.bbox_2d[2] <= prediction.width
            assert 0 <= item.bbox_2d[1] < item.bbox_2d[3] <= prediction.height
    free = Predictor.from_checkpoint(checkpoint, overrides=["infer.max_new_tokens=150"])
    assert [len(prediction.detections) for prediction in free.predict(samples, "text")] == [0, 0]
