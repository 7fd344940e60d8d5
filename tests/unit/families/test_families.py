"""Every family answers every question, and answers as its published files do."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from qwendet.answers.format import parse_answer
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import build_config
from qwendet.config.schema import DataConfig
from qwendet.data.samples import SampleFile
from qwendet.encoding.encode import trainable_objects
from qwendet.encoding.prompts import conversation
from qwendet.errors import CheckpointError, ConfigError
from qwendet.export.model_card import render_card
from qwendet.export.serving import serving_of
from qwendet.families.chat import IMAGE_TOKEN
from qwendet.families.choose import FAMILIES, family_of
from qwendet.families.family import Family
from qwendet.inference.predictor import Predictor
from qwendet.inference.text_answers import answer_size
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.loading.manifest import COORDINATES, MANIFEST, read_manifest
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.packing import require_isolation
from tests.invariants.suite import broken

PUBLISHED = {
    "Qwen2-VL-2B-Instruct": "qwen2_vl",
    "Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen3-VL-4B-Instruct": "qwen3_vl",
    "Qwen3-VL-8B-Instruct": "qwen3_vl",
    "Qwen3.5-0.8B": "qwen3_5",
    "Qwen3.5-4B": "qwen3_5",
    "Qwen3.8-27B": "qwen3_5",
}


@pytest.fixture(params=PUBLISHED)
def folder(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "qwen_processor" / str(request.param)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def family_in(folder: Path) -> Family:
    return FAMILIES[PUBLISHED[folder.name]]


def test_families__answer_the_same_questions() -> None:
    assert list(FAMILIES) == ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        assert all(getattr(family, field.name) is not None for field in fields(family))
        assert list(family.lora) == ["language", "vision", "merger"]
        assert hasattr(transformers, family.model_class)
        assert hasattr(transformers, family.processor_class)


def test_family__is_that_of_the_published_config(folder: Path) -> None:
    config = read(folder / "config.json")
    family = family_of(config["model_type"], str(folder))
    assert family is family_in(folder)
    assert config["architectures"] == [family.model_class]
    if (index := folder / "model.safetensors.index.json").is_file():
        published = [name for name in read(index)["weight_map"] if name.startswith("mtp.")]
        assert bool(published) == ("mtp.*" in family.ignored_weights)


def test_family__makes_images_as_the_published_processor(folder: Path) -> None:
    family, facts = family_in(folder), read(folder / "preprocessor_config.json")
    assert facts["processor_class"] == family.processor_class
    assert facts["image_processor_type"] == family.image_processor_class
    assert tuple(facts["image_mean"]) == family.image_mean
    assert tuple(facts["image_std"]) == family.image_std
    assert facts["patch_size"] * facts["merge_size"] == family.limits.unit
    size = facts.get("size") or {"shortest_edge": facts["min_pixels"], "longest_edge": facts["max_pixels"]}
    assert size == {"shortest_edge": family.limits.min_pixels, "longest_edge": family.limits.max_pixels}


def test_family__writes_prompts_as_the_published_template(folder: Path) -> None:
    """With one demonstration: no thought stands before its answer, the empty one before the next."""
    family, tokenizer = family_in(folder), AutoTokenizer.from_pretrained(folder)
    messages = conversation(family.system_prompt, ["Where?"] * 2, ["[]"])
    found = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **family.template_settings
    )
    system = f"<|im_start|>system\n{family.system_prompt}<|im_end|>\n" if family.system_prompt else ""
    asked = f"<|im_start|>user\n<|vision_start|>{IMAGE_TOKEN}<|vision_end|>Where?<|im_end|>\n"
    answered = asked + "<|im_start|>assistant\n[]<|im_end|>\n"
    assert found == system + answered + asked + "<|im_start|>assistant\n" + family.answer_prefix
    silent = tokenizer.apply_chat_template(messages[-1:], tokenize=False, **family.template_settings)
    assert silent == system + asked  # what the template itself writes where nobody gives a system turn


def on_meta(folder: Path) -> nn.Module:
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, family_in(folder).model_class)._from_config(config)
    return model


def test_family__parts_and_adapters_are_those_of_the_published_class(folder: Path) -> None:
    family, model = family_in(folder), on_meta(folder)
    mergers = {name.split(".")[2] for name, _ in model.named_parameters() if family.part_of(name) == "merger"}
    has_deepstack = hasattr(model.model.visual, "deepstack_merger_list")
    assert mergers == ({"merger", "deepstack_merger_list"} if has_deepstack else {"merger"})
    towers = {name.split(".")[2] for name, _ in model.named_parameters() if family.part_of(name) == "vision"}
    assert towers <= {"blocks", "patch_embed", "pos_embed"}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for part, pattern in family.lora.items():
        own = {name for name in linear if family.part_of(f"{name}.weight") == part} - {"lm_head"}
        assert {name for name in linear if re.fullmatch(pattern, name)} == own, part


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("qwen3_vl_moe", "model_type qwen3_vl_moe is a mixture of experts, which is not supported"),
        ("llama", "model_type llama is no family that is supported"),
        (None, "config.json names no model_type, which is not supported"),
    ],
)
def test_family_of__others_are_refused_by_name(model_type: str | None, what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of(model_type, "folder/config.json")
    assert str(caught.value) == (
        f"folder/config.json: {what} (take a model of Qwen2-VL (qwen2_vl), Qwen2.5-VL (qwen2_5_vl),"
        " Qwen3-VL (qwen3_vl), Qwen3.5 (qwen3_5))"
    )


def test_answer_size__is_the_models_image_or_a_thousand() -> None:
    assert FAMILIES["qwen2_5_vl"].answer_size((644, 476)) == (644, 476)
    assert {FAMILIES[name].answer_size((640, 480)) for name in ("qwen2_vl", "qwen3_vl", "qwen3_5")} == {
        (1000, 1000)
    }


def test_packing__is_refused_where_layers_are_recurrent(shared: Path, tmp_path: Path) -> None:
    folder = shared / "qwen_processor" / "Qwen3.5-0.8B"
    vlm = on_meta(folder)
    with pytest.raises(ConfigError, match=r"train\.packing: Qwen3\.5 cannot be packed: its recurrent layers"):
        require_isolation(Qwen25VLWithDetection(vlm, None))  # type: ignore[arg-type]


def test_manifest__of_another_family_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Boxes of one family mean something else to another."""
    save_checkpoint(tmp_path, bundle.detector, bundle.processor, bundle.config, step=0)
    path = tmp_path / MANIFEST
    record = read(path) | {"family": "qwen3_vl"}
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="coordinates is xyxy integers, pixels of the model's image"):
        read_manifest(tmp_path)
    path.write_text(json.dumps(record | {"coordinates": COORDINATES["thousandths"]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the manifest is of qwen3_vl"):
        load(config_of_checkpoint(tmp_path), for_inference=True)


# Another frame than the family's own


@pytest.fixture(scope="module")
def in_thousandths(scenes_file: Path) -> Bundle:
    """A Qwen2.5-VL that is trained to answer in thousandths."""
    values = {
        "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
        "data": {"train": str(scenes_file), "frame": "thousandths"},
        "detection": {"enabled": False},
    }
    return load(build_config(values, "test"), for_inference=False)


def test_frame__is_what_training_learns_and_inference_reads(
    in_thousandths: Bundle, scenes_file: Path, tmp_path: Path
) -> None:
    sample = next(sample for sample in SampleFile(scenes_file) if sample.student.objects)
    encoded = in_thousandths.encoder().encode(sample, with_answer=True)
    ((start, end),) = encoded.student_assistant_spans
    text = in_thousandths.processor.tokenizer.decode(encoded.input_ids[start:end])
    answer = sorted(item.bbox_2d for item in parse_answer(text).objects)
    width, height = encoded.image_size
    wanted = [
        [x1 * 1000 / width, y1 * 1000 / height, x2 * 1000 / width, y2 * 1000 / height]
        for x1, y1, x2, y2 in sorted(item.bbox_2d for item in trainable_objects(sample.student))
    ]
    assert np.abs(np.array(answer) - np.array(wanted)).max() <= 0.5 + 1e-9, "whole thousandths"
    bundle = in_thousandths
    save_checkpoint(tmp_path, bundle.detector, bundle.processor, bundle.config, step=0)
    manifest = read_manifest(tmp_path)
    assert (manifest.family, manifest.coordinates) == ("qwen2_5_vl", COORDINATES["thousandths"])
    predictor = Predictor.from_checkpoint(tmp_path)
    assert answer_size(predictor.bundle, encoded) == (1000, 1000)
    assert predictor.bundle.origin()["frame"] == "thousandths"
    with pytest.raises(ConfigError, match=r"data\.frame is 'pixels', but the checkpoint was"):
        Predictor.from_checkpoint(tmp_path, overrides=["data.frame=pixels"])
    card = render_card(manifest, serving_of(predictor.bundle, "cells", ""), {})
    assert "multiply x by displayed width over 1000, and y likewise" in card
    record = read(tmp_path / MANIFEST)
    record["config"]["data"]["frame"] = None
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="coordinates is xyxy integers, thousandths"):
        read_manifest(tmp_path)


def test_frame__is_what_the_checks_expect(in_thousandths: Bundle) -> None:
    with temporary_subject(in_thousandths.config) as subject:
        assert broken(subject, ["test.images.answers", "test.images.text_boxes"]) == []


def test_frame__null_is_the_familys_own() -> None:
    family = FAMILIES["qwen3_vl"]
    assert family.in_frame(None) is family.in_frame("thousandths") is family
    assert family.in_frame("pixels").answer_size((64, 48)) == (64, 48)


def test_request__of_each_publication_names_the_labels() -> None:
    assert all(family.request.count("{labels}") == 1 for family in FAMILIES.values())
    assert all(DataConfig(request=family.request) for family in FAMILIES.values())
