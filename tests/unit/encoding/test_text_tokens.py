"""Tokens of texts and samples without transformers, against those who own the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from qwendet.config.load import build_config
from qwendet.data.samples import SampleFile
from qwendet.encoding.image_tokens import image_limits
from qwendet.encoding.text_tokens import estimate_tokens, token_counter
from qwendet.init.facts import count_sample_tokens, look_at
from qwendet.loader import load_encoder

LABELS = ["red circle", "Platelets", "RBC", "黄色的螺丝", "螺丝/松动", "M6-bolt (rusty)", "vélo", "a"]


def answer(label: str, size: int) -> str:
    boxes = [{"bbox_2d": [1, 20, 300, 4000], "label": label}] * size
    return json.dumps(boxes, ensure_ascii=False) + "<|im_end|>"


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("num_boxes", [0, 1, 30])
def test_estimate__is_a_few_more_than_the_published_tokenizer_gives(
    shared: Path, label: str, num_boxes: int
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct")
    for text in (
        answer(label, num_boxes),
        f"<|im_start|>user\nLocate every {label}. Output JSON.<|im_end|>\n",
    ):
        true = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert true <= estimate_tokens(text) <= 1.35 * true + 8


def test_counter__is_the_tokenizer_where_there_is_one(tmp_path: Path) -> None:
    count, is_exact = token_counter("tiny")
    assert is_exact
    assert count("<|im_start|>") == 1
    assert token_counter("Qwen/Qwen2.5-VL-3B-Instruct") == (estimate_tokens, False)
    assert token_counter(str(tmp_path)) == (estimate_tokens, False)


def test_sample_tokens__are_those_of_the_encoder(tmp_path: Path) -> None:
    """Negatives, crowds, demonstrations, slivers at the edge: to a token what training sees."""
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    Image.new("RGB", (300, 90)).save(tmp_path / "b.png")
    dot = {"bbox_2d": [1, 2, 639.9, 479.9], "desc": "red dot"}
    one = {"images": ["a.png"], "objects": [dot, {"bbox_2d": [300, 7, 320, 70], "desc": "cat"}]}
    crowd = {"images": ["b.png"], "objects": [{"bbox_2d": [9, 9, 99, 80], "desc": "cat", "crowd": True}]}
    records = [one, crowd, {"images": ["b.png"], "objects": []}, {"teachers": [one, crowd], "student": one}]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = build_config({"model": {"path": "tiny"}, "data": {"train": str(file)}}, "test")
    facts, limits = look_at({"train": file}), image_limits(config)
    assert limits is not None
    encoder = load_encoder(config)
    sizes = {"a.png": (640, 480), "b.png": (300, 90)}
    expected = [
        encoder.token_counts(sample, [sizes[turn.image] for turn in (*sample.teachers, sample.student)])[0]
        for sample in SampleFile(file)
    ]
    assert count_sample_tokens(facts, limits, token_counter("tiny")[0]) == expected
    assert (facts.num_samples, facts.most_boxes) == (4, 2)
    assert facts.labels == {"cat": 2, "red dot": 2}
