"""Mistakes between families: what is right in one of them stands in another.

Each was made somewhere in public, with Qwen2.5-VL's habits on Qwen3-VL or Qwen3.5, or the other way round.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from qwendet import loader
from qwendet.encoding import prompts
from qwendet.encoding.encode import Encoder
from qwendet.encoding.resize import rescale_xyxy
from qwendet.families import choose
from qwendet.families.family import Family
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.families.qwen3_5 import QWEN3_5
from qwendet.families.qwen3_vl import QWEN3_VL
from qwendet.inference import text_answers
from qwendet.loader import Bundle, Interface
from qwendet.training import build as build_trainer
from tests.planted.bug import Bug
from tests.planted.in_code import Plant, at_inference, changing, replacing
from tests.planted.start import folder_of

THINK_BLOCK = QWEN3_5.answer_prefix
OTHER = {"qwen2_vl": "qwen2_5_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_5", "qwen3_5": "qwen3_vl"}
TOKENS_WITHOUT_FILE = 33
"""What transformers makes of Qwen3.5's other files where tokenizer.json is missing."""
BLOCKS = (Qwen2VLRotaryEmbedding, Qwen2_5_VLRotaryEmbedding)
INTERLEAVED = (Qwen3VLTextRotaryEmbedding, Qwen3_5TextRotaryEmbedding)


# Frames


def other_frame(family: Family) -> Family:
    return replace(family, frame="pixels" if family.frame == "thousandths" else "thousandths")


def in_encoder(change: Callable[[Family], Family]) -> Plant:
    """The encoder, of training and inference alike, takes the model for one of another family."""
    sound = Encoder.__init__

    def init(self: Encoder, processor: Any, *given: Any) -> None:
        sound(self, processor, *given)
        self.family = change(self.family)

    return replacing(Encoder, "__init__", init)


def of_another_family(processor: Any) -> Any:
    """Whoever asks the processor is told of another frame, the reader of answers too."""
    processor.family = other_frame(processor.family)
    return processor


def up_to_the_last_pixel(boxes: Any, source: tuple[float, float], target: tuple[float, float]) -> Any:
    """999 for 1000; in pixels, one less than the image has."""
    return rescale_xyxy(boxes, source, target if target == (1, 1) else (target[0] - 1, target[1] - 1))


def scaled_twice(boxes: Any, source: tuple[float, float], target: tuple[float, float]) -> Any:
    once = rescale_xyxy(boxes, source, target)
    return once if target == (1, 1) else rescale_xyxy(once, source, target).clip(0, max(target))


def read_up_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = text_answers.answer_size

    def size(interface: Interface, item: Any) -> tuple[int, int]:
        width, height = sound(interface, item)
        return width - 1, height - 1

    monkeypatch.setattr(text_answers, "answer_size", size)


# Prompt


def think_block(*, in_training: bool) -> Plant:
    """The empty think block stands before the answer in training alone, or at inference alone."""
    encode_sound, render_sound = Encoder.encode, Encoder._rendered

    def encoded(self: Any, sample: Any, *, with_answer: bool, **given: Any) -> Any:
        self.thinks = with_answer == in_training
        return encode_sound(self, sample, with_answer=with_answer, **given)

    def rendered(self: Any, messages: Any) -> str:
        return render_sound(self, messages).removesuffix(THINK_BLOCK) + THINK_BLOCK * self.thinks

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Encoder, "encode", encoded)
        monkeypatch.setattr(Encoder, "_rendered", rendered)
        monkeypatch.setattr(Encoder, "thinks", False, raising=False)

    return plant


def as_the_template_likes(family: Family) -> Family:
    return replace(family, template_settings=MappingProxyType({}))


def ended_by_endoftext(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's answer ends with the token that config.json of Qwen3.5 names."""
    sound = Encoder._tokens

    def tokens(self: Encoder, turns: Any, pictures: Any, answers: Any) -> Any:
        ids, spans = sound(self, turns, pictures, answers)
        if len(answers) == len(pictures):
            ids[-1] = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        return ids, spans

    monkeypatch.setattr(Encoder, "_tokens", tokens)


def eos_is_endoftext(bundle: Bundle) -> None:
    bundle.processor.tokenizer.eos_token = "<|endoftext|>"


def without_tokenizer_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download without tokenizer.json: transformers makes up a tokenizer of the special tokens."""
    sound = loader.load_processor

    def load(path: str, *given: Any) -> Any:
        folder = Path(tempfile.mkdtemp()) / "model"
        shutil.copytree(path, folder, ignore=shutil.ignore_patterns("tokenizer.json", "*.safetensors"))
        processor = sound(str(folder), *given)
        shutil.rmtree(folder.parent)
        special = sound(path, *given).tokenizer.added_tokens_decoder.values()
        names = [*map(str, special), *(f"<tts_{index}>" for index in range(TOKENS_WITHOUT_FILE))]
        tokenizer = processor.tokenizer
        tokenizer.add_tokens(names[: TOKENS_WITHOUT_FILE - len(tokenizer) + 2], special_tokens=True)
        return processor

    monkeypatch.setattr(loader, "load_processor", load)


# Images


def of_the_other_unit(processor: Any) -> Any:
    """Patches of 14 where they are of 16, so that sizes are multiples of 28 and not of 32."""
    processor.image_processor.patch_size = 30 - processor.image_processor.patch_size
    return processor


def resized_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is brought to multiples of the other families' unit before the processor resizes it."""
    sound = Qwen2VLImageProcessorPil.__call__

    def call(self: Any, images: list[Image.Image], **settings: Any) -> Any:
        unit = (30 - self.patch_size) * self.merge_size
        limits = self.size["shortest_edge"], self.size["longest_edge"]
        height, width = smart_resize(images[0].height, images[0].width, unit, *limits)
        return sound(self, images=[images[0].resize((width, height))], **settings)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "__call__", call)


def of_other_statistics(processor: Any) -> Any:
    """CLIP's mean and deviation where they are 0.5, and the other way round."""
    images, is_clip = processor.image_processor, processor.family.image_mean != QWEN3_VL.image_mean
    other = QWEN3_VL if is_clip else QWEN2_5_VL
    images.image_mean, images.image_std = list(other.image_mean), list(other.image_std)
    return processor


# Weights and layers


def of_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """mRoPE in blocks where it is interleaved, and the other way round."""
    in_blocks, interleaved = (classes[0].recomposition_frequencies for classes in (BLOCKS, INTERLEAVED))
    for rotary in (*BLOCKS, *INTERLEAVED):
        other = interleaved if rotary in BLOCKS else in_blocks
        monkeypatch.setattr(rotary, "recomposition_frequencies", other)


def weights_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = loader.load_vlm

    def load(source: str, model: Any, weights: Any, *given: Any) -> Any:
        other = OTHER[choose.family_in(Path(source)).model_type]
        return sound(source, model, load_file(folder_of(other) / "model.safetensors"), *given)

    monkeypatch.setattr(loader, "load_vlm", load)


def refusal_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choose.FAMILIES, "qwen3_5", replace(QWEN3_5, packing_refusal=""))


FAMILY_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "the other family's frame in the answers",
        "test.images.answers",
        ("the answer is",),
        in_encoder(other_frame),
    ),
    Bug(
        "the other family's frame in writing and reading",
        "consistency.build.load",
        ("coordinates is xyxy integers",),
        changing(loader, "load_processor", of_another_family),
    ),
    Bug(
        "1000 against 999 in writing",
        "test.images.answers",
        ("the answer is",),
        replacing(prompts, "rescale_xyxy", up_to_the_last_pixel),
    ),
    Bug(
        "1000 against 999 in reading",
        "test.images.text_boxes",
        ("comes back as", "pixels off"),
        read_up_to_the_last,
    ),
    Bug(
        "boxes scaled twice",
        "test.images.answers",
        ("the answer is",),
        replacing(prompts, "rescale_xyxy", scaled_twice),
    ),
    Bug(
        "boxes scaled twice in reading",
        "test.images.text_boxes",
        ("comes back as", "pixels off"),
        replacing(text_answers, "rescale_xyxy", scaled_twice),
    ),
    Bug(
        "think block in training only",
        "test.prompt.prefix",
        ("not what training saw",),
        think_block(in_training=True),
    ),
    Bug(
        "think block in serving only",
        "test.prompt.prefix",
        ("not what training saw",),
        think_block(in_training=False),
    ),
    Bug(
        "template default left to think",
        "consistency.prompt.text",
        ("published chat format",),
        in_encoder(as_the_template_likes),
        families=("qwen3_5",),
    ),
    Bug(
        "answers end with endoftext",
        "consistency.prompt.text",
        ("published chat format", "<|endoftext|>"),
        ended_by_endoftext,
    ),
    Bug(
        "answers are read up to endoftext",
        "consistency.prompt.special_tokens",
        ("the end of turn is <|endoftext|>",),
        at_inference(eos_is_endoftext),
    ),
    Bug(
        "a tokenizer of 33 tokens",
        "consistency.build.load",
        ("the tokenizer is not the model's",),
        without_tokenizer_file,
    ),
    Bug(
        "unit 28 where it is 32",
        "consistency.build.load",
        ("the image processor is not the model's: its patch_size is",),
        changing(loader, "load_processor", of_the_other_unit),
    ),
    Bug(
        "resized to units of 28, then of 32",
        "test.images.pixels",
        ("turned.jpg",),
        resized_twice,
    ),
    Bug(
        "mean and std of CLIP",
        "consistency.images.processor",
        ("image_mean", "image_std", "training"),
        changing(loader, "load_processor", of_other_statistics),
    ),
    Bug(
        "mRoPE in blocks where it is interleaved",
        "test.compute.positions",
        ("the rotary angles are not",),
        of_another_order,
    ),
    Bug(
        "weights of one family under the config of another",
        "consistency.build.load",
        ("missing keys",),
        weights_of_another,
    ),
    Bug(
        "recurrent layers packed",
        "consistency.build.load",
        ("packed samples would see each other",),
        refusal_lifted,
        ("train.packing=true",),
        families=("qwen3_5",),
    ),
    Bug(
        "packed samples see each other through recurrent layers",
        "test.compute.packed",
        ("packed and in a row of its own", "tolerance"),
        replacing(build_trainer, "require_isolation", lambda detector: None),
        ("train.packing=true",),
        families=("qwen3_5",),
    ),
]  # fmt: skip
