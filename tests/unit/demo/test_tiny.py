"""The embedded models: what their families publish, in small; the same from every seed and reload."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qwendet.config.load import build_config
from qwendet.config.schema import EMBEDDED_MODELS, Config, ModelConfig
from qwendet.demo.tiny import ASSETS, SHIPPED, SIZES, embedded_folder, tiny_config
from qwendet.encoding.image_tokens import image_limits, settings_folder
from qwendet.encoding.prompts import conversation
from qwendet.encoding.text_tokens import token_counter
from qwendet.families.choose import FAMILIES
from qwendet.families.family import PixelLimits
from qwendet.loader import load
from qwendet.loading.checkpoint import save_checkpoint

PUBLISHED = {
    "qwen2_vl": "Qwen2-VL-2B-Instruct",
    "qwen2_5_vl": "Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen3-VL-4B-Instruct",
    "qwen3_5": "Qwen3.5-0.8B",
}
LARGEST_BYTES = 6_000_000
PRINT_HASHES = """
from tests.unit.demo.test_tiny import UNTRAINED, hashes
import json
print(json.dumps({name: hashes(name) for name in UNTRAINED}))
"""
UNTRAINED = [name for name in EMBEDDED_MODELS if name not in SHIPPED]


def config_of(name: str, dtype: str = "float32") -> Config:
    sections = {
        "model": {"path": name, "device": "cpu", "dtype": dtype},
        "data": {"labels": ["red ring"]},
        "detection": {"enabled": name in SHIPPED},
    }
    return build_config(sections, "test")


def hashes(name: str) -> dict[str, str]:
    files = sorted(path for path in embedded_folder(name).rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_embedded__is_a_small_model_of_its_family(name: str) -> None:
    bundle, family = load(config_of(name), for_inference=True), FAMILIES[EMBEDDED_MODELS[name]]
    vlm, image_processor = bundle.detector.vlm, bundle.processor.image_processor
    assert type(vlm).__name__ == family.model_class
    assert vlm.config.model_type == family.model_type
    assert bundle.processor.family is family
    assert 1.5e6 < sum(parameter.numel() for parameter in bundle.detector.parameters()) < 3e6
    assert image_processor.patch_size * image_processor.merge_size == family.limits.unit
    assert tuple(image_processor.image_mean) == family.image_mean
    low, high = (image_processor.size[edge] for edge in ("shortest_edge", "longest_edge"))
    assert image_limits(config_of(name)) == PixelLimits(low, high, family.limits.unit)
    count, is_own = token_counter(settings_folder(ModelConfig(path=name)))
    assert is_own == (EMBEDDED_MODELS[name] in {EMBEDDED_MODELS[shipped] for shipped in SHIPPED})
    if is_own:
        assert count("a red ring") == len(bundle.processor.tokenizer("a red ring").input_ids)


@pytest.mark.parametrize("name", UNTRAINED)
def test_tokens_and_template__are_the_published_ones(name: str, shared: Path) -> None:
    """The same tokens in the same order; the template writes the same for a demonstration and an answer."""
    family = FAMILIES[EMBEDDED_MODELS[name]]
    published = AutoTokenizer.from_pretrained(shared / "qwen_processor" / PUBLISHED[family.model_type])
    own = AutoTokenizer.from_pretrained(embedded_folder(name))
    in_order = [token.content for _, token in sorted(published.added_tokens_decoder.items())]
    assert list(SIZES[family.model_type].special_tokens) == in_order
    asked = conversation(family.system_prompt or "Look.", ["Where?"] * 2, ["[]"])
    for messages, is_prompt in ((asked, True), ([*asked, {"role": "assistant", "content": "[1]"}], False)):
        settings = {"tokenize": False, "add_generation_prompt": is_prompt, **family.template_settings}
        assert own.apply_chat_template(messages, **settings) == published.apply_chat_template(
            messages, **settings
        )


@pytest.mark.slow
def test_untrained__are_the_same_in_every_process() -> None:
    command = [sys.executable, "-c", PRINT_HASHES]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found == {name: hashes(name) for name in UNTRAINED}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped__is_small_and_equals_its_reload(name: str, tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in (ASSETS / name).rglob("*")) <= LARGEST_BYTES
    bundle = load(config_of(name, "float16"), for_inference=True)
    save_checkpoint(tmp_path, bundle.detector.half(), bundle.processor, bundle.config, step=0)
    for file in ("model.safetensors", "head/detection_head.safetensors", "tokenizer.json"):
        assert (tmp_path / file).read_bytes() == (ASSETS / name / file).read_bytes(), file


@pytest.mark.parametrize("name", UNTRAINED)
def test_config__a_change_of_one_changes_no_other(name: str) -> None:
    family = FAMILIES[EMBEDDED_MODELS[name]]
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder(name))
    changed, sound = tiny_config(family, tokenizer), tiny_config(family, tokenizer).to_dict()
    changed.text_config.rope_parameters["mrope_section"] = [1, 1, 1]
    assert tiny_config(family, tokenizer).to_dict() == sound
