"""Tokens of texts and samples without transformers, against those who own the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qwendet.answers.format import format_answer
from qwendet.config.load import build_config
from qwendet.config.schema import ModelConfig
from qwendet.data.samples import DetectedObject, SampleFile
from qwendet.encoding.image_tokens import image_limits, settings_folder
from qwendet.encoding.text_tokens import estimate_tokens, token_counter
from qwendet.families.choose import family_in
from qwendet.init.facts import count_sample_tokens, look_at
from qwendet.loader import load_interface

FAMILIES = [
    "Qwen2-VL-2B-Instruct", "Qwen2.5-VL-7B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3.5-4B",
]  # fmt: skip
LABELS = ["red circle", "Platelets", "RBC", "黄色的螺丝", "螺丝/松动", "M6-bolt (rusty)", "vélo", "a"]


def answer(label: str, size: int) -> str:
    boxes = [{"bbox_2d": [1, 20, 300, 4000], "label": label}] * size
    return json.dumps(boxes, ensure_ascii=False) + "<|im_end|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_estimate__is_a_few_more_than_the_published_tokenizer_gives(shared: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "qwen_processor" / name)
    for label in LABELS:
        texts = [answer(label, num_boxes) for num_boxes in (0, 1, 30)]
        texts += [f"<|im_start|>user\nLocate every {label}. Output JSON.<|im_end|>\n"]
        objects = [DetectedObject((1, 20, 300, 4000), label)] * 30
        texts += [f"<think>\n\n</think>\n\n{format_answer(objects, 'box_tokens')}"]
        for text in texts:
            true = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            assert true <= estimate_tokens(text) <= 1.35 * true + 8, text


def test_counter__is_the_tokenizer_where_there_is_one(tmp_path: Path) -> None:
    count, is_exact = token_counter(settings_folder(ModelConfig(path="tiny")))
    assert is_exact
    assert count("<|im_start|>") == 1
    assert token_counter(None) == token_counter(tmp_path) == (estimate_tokens, False)


@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
def test_sample_tokens__are_those_of_the_encoder(
    small_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Negatives, crowds, demonstrations, slivers at the edge: to a token what training sees."""
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    Image.new("RGB", (300, 90)).save(tmp_path / "b.png")
    dot = {"bbox_2d": [1, 2, 639.9, 479.9], "desc": "red dot"}
    one = {"images": ["a.png"], "objects": [dot, {"bbox_2d": [300, 7, 320, 70], "desc": "cat"}]}
    crowd = {"images": ["b.png"], "objects": [{"bbox_2d": [9, 9, 99, 80], "desc": "cat", "crowd": True}]}
    records = [one, crowd, {"images": ["b.png"], "objects": []}, {"teachers": [one, crowd], "student": one}]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    path = name if name == "tiny" else str(small_model(name))
    config = build_config({"model": {"path": path}, "data": {"train": str(file)}}, "test")
    facts, limits = look_at({"train": file}), image_limits(config)
    folder = settings_folder(config.model)
    assert limits is not None
    assert folder is not None
    encoder = load_interface(config).encoder()
    sizes = {"a.png": (640, 480), "b.png": (300, 90)}
    expected = [
        encoder.token_counts(sample, [sizes[turn.image] for turn in (*sample.teachers, sample.student)])[0]
        for sample in SampleFile(file)
    ]
    assert (
        count_sample_tokens(facts, list(facts.labels), limits, family_in(folder), token_counter(folder)[0])
        == expected
    )
    assert (facts.num_samples, facts.most_boxes) == (4, 2)
    assert facts.labels == {"cat": 2, "red dot": 2}
