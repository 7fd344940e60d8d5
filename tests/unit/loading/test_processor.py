"""The processor: published files give the documented ids and grids, and are saved as they were published."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwendet.config.schema import Config
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.processor import ImageTextProcessor, load_processor, save_processor

MakeConfig = Callable[..., Config]
SaveBundle = Callable[[Bundle, Path], Path]

TEXTS = [
    "Locate every 红色圆, orange star. Output bbox_2d and label of each in JSON.",
    '[{"bbox_2d": [12, 345, 67, 890], "label": "Größe 🙂"}]<|im_end|>\n',
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>",
]
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is here?"}]},
]
has_torchvision = importlib.util.find_spec("torchvision") is not None


@pytest.fixture(scope="module")
def published_folder(shared: Path) -> Path:
    return shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"


@pytest.fixture(scope="module")
def published(published_folder: Path) -> ImageTextProcessor:
    return load_processor(str(published_folder), QWEN2_5_VL, None, None)


@pytest.fixture(scope="module")
def saved_folder(published: ImageTextProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    save_processor(published, folder)
    return folder


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# The published files


def test_published__special_tokens_have_their_documented_ids(published: ImageTextProcessor) -> None:
    tokenizer = published.tokenizer
    names = ["<|im_end|>", "<|endoftext|>", "<|image_pad|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [151645, 151643, 151655]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151645, 151643)
    assert (len(tokenizer), tokenizer.padding_side) == (151665, "left")


def test_published__digits_are_one_token_each(published: ImageTextProcessor) -> None:
    assert len(published.tokenizer("1234567890")["input_ids"]) == 10


def test_published__a_640_by_480_image_is_391_tokens(published: ImageTextProcessor) -> None:
    text = published.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    inputs = published(text=[text], images=[noise(640, 480)], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 34, 46]]  # 476 × 644 pixels in patches of 14
    assert int((inputs["input_ids"] == 151655).sum()) == 391
    assert inputs["pixel_values"].shape == (34 * 46, 3 * 2 * 14 * 14)


@pytest.mark.parametrize("size", [(640, 480), (28, 28), (57, 301), (1, 1), (1000, 37)])
def test_published__ids_pixels_and_grid_are_those_of_the_published_parts(
    size: tuple[int, int], published: ImageTextProcessor, published_folder: Path
) -> None:
    """The transformers class itself asks for torchvision; its parts do not, and its call is inherited."""
    assert type(published).__call__ is Qwen2_5_VLProcessor.__call__
    image = noise(*size)
    text = published.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    found = published(text=[text], images=[image], return_tensors="pt")
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(published_folder)
    wanted = image_processor(images=[image], return_tensors="pt")
    assert torch.equal(found["image_grid_thw"], wanted["image_grid_thw"])
    assert torch.equal(found["pixel_values"], wanted["pixel_values"])
    tokens = int(wanted["image_grid_thw"].prod()) // 4
    expanded = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    tokenizer = AutoTokenizer.from_pretrained(published_folder)
    assert found["input_ids"][0].tolist() == tokenizer(expanded)["input_ids"]


# What is saved


def test_save_processor__writes_the_published_layout_and_no_file_of_its_own_class(
    saved_folder: Path, published_folder: Path
) -> None:
    assert sorted(path.name for path in saved_folder.iterdir()) == [
        "chat_template.jinja",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    found, wanted = (
        json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        for folder in (saved_folder, published_folder)
    )
    assert found["image_processor_type"] == "Qwen2VLImageProcessor"
    assert found["processor_class"] == "Qwen2_5_VLProcessor"
    size = {"shortest_edge": wanted["min_pixels"], "longest_edge": wanted["max_pixels"]}
    assert found == wanted | {"size": size}
    assert not any(
        "ImageTextProcessor" in path.read_text(encoding="utf-8") for path in saved_folder.iterdir()
    )


def test_save_processor__the_tokenizer_comes_back_left_padded_with_the_same_ids_and_template(
    saved_folder: Path, published: ImageTextProcessor
) -> None:
    found, wanted = AutoTokenizer.from_pretrained(saved_folder), published.tokenizer
    assert found.padding_side == "left"
    settings = json.loads((saved_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["padding_side"] == "left"
    assert type(found) is type(wanted)
    assert found.get_vocab() == wanted.get_vocab()
    assert found(TEXTS)["input_ids"] == wanted(TEXTS)["input_ids"]
    assert found.chat_template == wanted.chat_template
    assert (found.eos_token, found.pad_token) == ("<|im_end|>", "<|endoftext|>")
    padded = found(["a", "a longer text"], padding=True)
    assert padded["attention_mask"][0] == [0, 0, 1]
    rendered = found.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered == wanted.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)


def test_save_processor__loads_again_the_same(saved_folder: Path, published: ImageTextProcessor) -> None:
    found = load_processor(str(saved_folder), QWEN2_5_VL, None, None)
    image = noise(200, 120)
    assert found.chat_template == published.chat_template
    for name in ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "size"):
        assert getattr(found.image_processor, name) == getattr(published.image_processor, name), name
    pixels = [
        p.image_processor(images=[image], return_tensors="pt")["pixel_values"] for p in (found, published)
    ]
    assert torch.equal(*pixels)


# What transformers makes of it


class _Reached(Exception):  # noqa: N818 - says that a class was chosen, and is no error
    pass


def test_auto_processor__resolves_to_the_published_class_as_the_published_folder_does(
    saved_folder: Path, published_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(cls: type, *args: Any, **kwargs: Any) -> None:
        raise _Reached(cls.__name__)

    monkeypatch.setattr(Qwen2_5_VLProcessor, "from_pretrained", classmethod(reached))
    for folder in (published_folder, saved_folder):
        with pytest.raises(_Reached, match=r"^Qwen2_5_VLProcessor$"):
            AutoProcessor.from_pretrained(folder)


@pytest.mark.skipif(has_torchvision, reason="torchvision is there")
def test_auto_processor__without_torchvision_fails_as_the_published_folder_does(
    saved_folder: Path, published_folder: Path
) -> None:
    messages = []
    for folder in (published_folder, saved_folder):
        with pytest.raises(ImportError) as caught:
            AutoProcessor.from_pretrained(folder)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "Torchvision" in messages[0]


@pytest.mark.skipif(not has_torchvision, reason="needs torchvision")
def test_auto_processor__with_torchvision_is_the_published_class(
    saved_folder: Path, published: ImageTextProcessor
) -> None:
    found = AutoProcessor.from_pretrained(saved_folder)
    assert type(found) is Qwen2_5_VLProcessor
    text = found.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    inputs, wanted = (
        processor(text=[text], images=[noise(640, 480)], return_tensors="pt")
        for processor in (found, published)
    )
    assert torch.equal(inputs["input_ids"], wanted["input_ids"])
    assert torch.equal(inputs["image_grid_thw"], wanted["image_grid_thw"])


def test_auto_processor__a_plain_save_would_give_a_bare_tokenizer(
    published: ImageTextProcessor, tmp_path: Path
) -> None:
    """Why the layout is written by hand: this is what the processor's own `save_pretrained` leads to."""
    published.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(published.tokenizer)


def test_auto_image_processor__is_the_published_one(saved_folder: Path, published_folder: Path) -> None:
    found, wanted = (
        AutoImageProcessor.from_pretrained(folder) for folder in (saved_folder, published_folder)
    )
    assert type(found) is type(wanted)
    assert type(found).__name__.startswith("Qwen2VLImageProcessor")
    assert found.size == wanted.size


# Pixel limits


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((None, None), (3136, 12_845_056)),
        ((50_176, None), (50_176, 12_845_056)),
        ((None, 200_704), (3136, 200_704)),
        ((50_176, 200_704), (50_176, 200_704)),
    ],
)
def test_load_processor__limits_replace_the_stored_ones_one_by_one(
    limits: tuple[int | None, int | None], expected: tuple[int, int], published_folder: Path, tmp_path: Path
) -> None:
    processor = load_processor(str(published_folder), QWEN2_5_VL, *limits)
    size = processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == expected
    save_processor(processor, tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert (stored["min_pixels"], stored["max_pixels"]) == expected
    for reloaded in (
        load_processor(str(tmp_path), QWEN2_5_VL, None, None).image_processor,
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert (reloaded.size["shortest_edge"], reloaded.size["longest_edge"]) == expected


def test_load_processor__limits_decide_the_grid(published_folder: Path) -> None:
    processor = load_processor(str(published_folder), QWEN2_5_VL, 112 * 112, 224 * 224)
    grids = [
        processor.image_processor(images=[noise(*size)], return_tensors="pt")["image_grid_thw"][0].tolist()
        for size in ((28, 28), (640, 480))
    ]
    assert grids == [[1, 8, 8], [1, 12, 18]]  # 112 × 112 and 168 × 252 pixels


def test_load__limits_of_the_config_are_recorded_and_saved(
    make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    config = make_config(data={"min_pixels": 6272, "max_pixels": 25_088})
    folder = save_bundle(load(config, for_inference=False), tmp_path / "final")
    stored = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert (stored["min_pixels"], stored["max_pixels"]) == (6272, 25_088)
    found = load(config_of_checkpoint(folder), for_inference=True)
    assert (found.config.data.min_pixels, found.config.data.max_pixels) == (6272, 25_088)
    assert found.processor.image_processor.size["longest_edge"] == 25_088
