"""Bugs that make a served model another one than was trained; each was made somewhere by somebody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from qwendet import build_trainer, inference, loader, training
from qwendet.data import collate, encode, images
from qwendet.data.collate import Batch, StandardDataCollator
from qwendet.data.encode import EncodedSample, Encoder
from qwendet.inference import Predictor
from qwendet.loader import Bundle
from qwendet.model import detector as detector_module
from qwendet.model import generation
from qwendet.model import head as head_module
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput, LabelEncoder
from tests.planted.bug import Bug

Plant = Callable[[pytest.MonkeyPatch], None]


# How a bug is planted


def replacing(owner: Any, name: str, value: Any) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def changing(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """Change what a function returns."""
    sound = getattr(owner, name)

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        return change(sound(*args, **kwargs))

    return lambda monkeypatch: monkeypatch.setattr(owner, name, spoilt)


def at_inference(change: Callable[[Bundle], Bundle | None]) -> Plant:
    """Change the build that the Predictor loads, after it was verified."""
    sound = inference.load

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = sound(*args, **kwargs)
        return change(bundle) or bundle

    return lambda monkeypatch: monkeypatch.setattr(inference, "load", load)


def in_training(change: Callable[[Bundle], Bundle | None]) -> Plant:
    """Change the build that the trainer loads."""
    sound = build_trainer.load

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = sound(*args, **kwargs)
        return change(bundle) or bundle

    return lambda monkeypatch: monkeypatch.setattr(build_trainer, "load", load)


def in_batch(change: Callable[[Batch], dict[str, Any]]) -> Plant:
    """Change what the collator returns."""
    return changing(StandardDataCollator, "__call__", lambda batch: batch | change(batch))


def in_head_inputs(change: Callable[[Tensor, Tensor, Batch], tuple[Tensor, Tensor]]) -> Plant:
    """Change patches and hidden states before the head picks its own."""
    sound = Qwen25VLWithDetection._detect

    def detect(self: Qwen25VLWithDetection, patches: Tensor, hidden: Tensor, batch: Batch) -> Any:
        return sound(self, *change(patches, hidden, batch), batch)

    return lambda monkeypatch: monkeypatch.setattr(Qwen25VLWithDetection, "_detect", detect)


def in_reading(change: Callable[[Qwen25VLWithDetection, Batch], Batch]) -> Plant:
    """Change the batch that the language model reads in training's forward."""
    sound = Qwen25VLWithDetection._read

    def read(self: Qwen25VLWithDetection, batch: Batch, image_embeds: Tensor) -> Tensor:
        return sound(self, change(self, batch), image_embeds)

    return lambda monkeypatch: monkeypatch.setattr(Qwen25VLWithDetection, "_read", read)


# Prompt and tokenizer


def newline_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Encoder._tokenize
    monkeypatch.setattr(Encoder, "_tokenize", lambda self, text: sound(self, text.removesuffix("\n")))


def without_generation_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Encoder.encode

    def encode_sample(self: Encoder, sample: Any, *, with_answer: bool) -> EncodedSample:
        item = sound(self, sample, with_answer=with_answer)
        if with_answer:
            return item
        ids = item.input_ids[: -len(self._tokenize("<|im_start|>assistant\n"))]
        return replace(item, input_ids=ids, mm_token_type_ids=item.mm_token_type_ids[: len(ids)])

    monkeypatch.setattr(Encoder, "encode", encode_sample)


def own_system_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Predictor.__init__

    def init(self: Predictor, bundle: Bundle) -> None:
        sound(self, bundle)
        self.encoder.settings = self.encoder.settings.model_copy(update={"system_prompt": "You are Qwen."})

    monkeypatch.setattr(Predictor, "__init__", init)


def without_end_of_turn(found: tuple[list[int], list[tuple[int, int]]]) -> Any:
    ids, spans = found
    return ids, [(start, end - 1) for start, end in spans]


def pad_is_end(bundle: Bundle) -> None:
    bundle.processor.tokenizer.pad_token = "<|im_end|>"


def split_tokens(bundle: Bundle) -> None:
    bundle.processor.tokenizer.split_special_tokens = True


def another_template(bundle: Bundle) -> None:
    tokenizer = bundle.processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")


def another_vocabulary(bundle: Bundle) -> None:
    bundle.processor.tokenizer.add_tokens(["circle of"])


def without_types(batches: Any) -> Any:
    for batch in batches:
        yield batch | {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}


PROMPT_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "newline before the answer lost",
        "consistency.prompt.text",
        ("published chat format",),
        newline_lost,
    ),
    Bug(
        "request names labels in another order",
        "consistency.prompt.text",
        ("published chat format",),
        replacing(
            encode, "request_text", lambda text, labels: text.replace("{labels}", ", ".join(labels[::-1]))
        ),
    ),
    Bug(
        "image token missing",
        "consistency.prompt.text",
        ("published chat format",),
        changing(Encoder, "_num_tokens", lambda count: count - 1),
    ),
    Bug(
        "no generation prompt at inference",
        "consistency.prompt.prefix",
        ("not what training saw",),
        without_generation_prompt,
    ),
    Bug(
        "system prompt differs at inference",
        "consistency.prompt.prefix",
        ("not what training saw", "Qwen"),
        own_system_prompt,
    ),
    Bug(
        "template edited at inference",
        "consistency.prompt.template",
        ("chat template", "inference"),
        at_inference(another_template),
    ),
    Bug(
        "template edited in training",
        "consistency.prompt.template",
        ("chat template", "training"),
        in_training(another_template),
    ),
    Bug(
        "special tokens split",
        "consistency.prompt.special_tokens",
        ("<|image_pad|>", "inference"),
        at_inference(split_tokens),
    ),
    Bug(
        "padding is the end of turn",
        "consistency.prompt.special_tokens",
        ("must differ", "training"),
        in_training(pad_is_end),
    ),
    Bug(
        "a token added at inference",
        "consistency.prompt.tokenizer",
        ("entries of the vocabularies differ",),
        at_inference(another_vocabulary),
    ),
    Bug(
        "end of turn not learned",
        "consistency.prompt.labels",
        ("is of an answer but not learned",),
        changing(Encoder, "_tokens", without_end_of_turn),
    ),
    Bug(
        "trainer drops a column",
        "consistency.prompt.loader",
        ("mm_token_type_ids",),
        changing(training.DetectionTrainer, "get_train_dataloader", without_types),
    ),
]


# Image and boxes


def half_the_pixels(bundle: Bundle) -> None:
    processor = bundle.processor.image_processor
    processor.size = type(processor.size)(
        shortest_edge=processor.size["shortest_edge"], longest_edge=processor.size["longest_edge"] // 2
    )


def other_means(bundle: Bundle) -> None:
    bundle.processor.image_processor.image_mean = [0.5, 0.5, 0.5]


def nearest(bundle: Bundle) -> None:
    bundle.processor.image_processor.resample = 0


def swapped_scale(boxes: Any, source: tuple[float, float], target: tuple[float, float]) -> Any:
    return SOUND_RESCALE(boxes, source, target[::-1])


def thousandths(boxes: Any, source: tuple[float, float], target: tuple[float, float]) -> Any:
    return SOUND_RESCALE(boxes, source, target if target == (1, 1) else (1000, 1000))


SOUND_RESCALE = encode.rescale_xyxy
SOUND_CORNERS = inference.cxcywh_to_xyxy


def in_processor(**settings: Any) -> Plant:
    """Other settings of the image processor, in training and at inference alike."""

    def change(processor: Any) -> Any:
        for name, value in settings.items():
            setattr(processor.image_processor, name, value)
        return processor

    return changing(loader, "load_processor", change)


def transposed_blocks(item: EncodedSample) -> EncodedSample:
    """Down before right in the two by two patches of a token."""
    blocks = item.pixel_values.unflatten(0, (-1, 2, 2)).transpose(1, 2)
    return replace(item, pixel_values=blocks.flatten(0, 2))


IMAGE_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "max_pixels differs at inference",
        "consistency.images.processor",
        ("max_pixels", "inference"),
        at_inference(half_the_pixels),
    ),
    Bug(
        "other colour statistics at inference",
        "consistency.images.processor",
        ("image_mean", "inference"),
        at_inference(other_means),
    ),
    Bug(
        "channels in another order",
        "consistency.images.pixels",
        ("of the pixel values differ",),
        changing(encode, "open_image", lambda image: Image.merge("RGB", image.split()[::-1])),
    ),
    Bug(
        "patches of a token transposed",
        "consistency.images.pixels",
        ("of the pixel values differ",),
        changing(Encoder, "encode", transposed_blocks),
    ),
    Bug(
        "resized by another filter",
        "consistency.images.pixels",
        ("of the pixel values differ",),
        in_processor(resample=2),
    ),
    Bug(
        "means and deviations swapped",
        "consistency.images.processor",
        ("image_mean", "training"),
        in_processor(
            image_mean=[0.26862954, 0.26130258, 0.27577711], image_std=[0.48145466, 0.4578275, 0.40821073]
        ),
    ),
    Bug(
        "images are not resized",
        "consistency.images.processor",
        ("do_resize is off",),
        in_processor(do_resize=False),
    ),
    Bug(
        "EXIF orientation ignored",
        "consistency.images.pixels",
        ("leaves turned.jpg",),
        replacing(images.ImageOps, "exif_transpose", lambda image, in_place: None),
    ),
    Bug(
        "resized without smoothing at inference",
        "consistency.images.same",
        ("pixel_values",),
        at_inference(nearest),
    ),
    Bug(
        "x and y swapped in the answer",
        "consistency.images.answers",
        ("the answer is",),
        replacing(encode, "rescale_xyxy", swapped_scale),
    ),
    Bug(
        "answers in thousandths",
        "consistency.images.answers",
        ("the answer is",),
        replacing(encode, "rescale_xyxy", thousandths),
    ),
    Bug(
        "crowds are learned",
        "consistency.images.targets",
        ("not the student's",),
        replacing(encode, "trainable_objects", lambda turn: list(turn.objects)),
    ),
    Bug(
        "xyxy as cxcywh",
        "consistency.images.targets",
        ("not the student's",),
        replacing(encode, "xyxy_to_cxcywh", lambda boxes: boxes),
    ),
    Bug(
        "resize recomputed at inference",
        "consistency.images.text_boxes",
        ("comes back as", "IoU"),
        replacing(Predictor, "_model_image_size", lambda self, item: item.image_size),
    ),
    Bug(
        "x and y swapped at inference",
        "consistency.images.head_boxes",
        ("comes back as", "IoU"),
        replacing(inference, "cxcywh_to_xyxy", lambda boxes: SOUND_CORNERS(boxes[..., [1, 0, 3, 2]])),
    ),
]


# Padding, positions and generation


def right_pad(lengths: Sequence[int]) -> Any:
    return collate._Place((len(lengths), max(lengths)), tuple(range(len(lengths))), (0,) * len(lengths))


def one_dimension(self: Any, input_ids: Tensor, *args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return positions.expand(3, -1, -1), torch.zeros(len(input_ids), 1, dtype=torch.int64)


def one_on_behind_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen2_5_VLModel.get_rope_index

    def positions(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        found, deltas = sound(self, input_ids, *args, **kwargs)
        later = (input_ids == self.config.image_token_id).long().flip(1).cumsum(1).flip(1) == 0
        return found + later.to(found), deltas + 1

    monkeypatch.setattr(Qwen2_5_VLModel, "get_rope_index", positions)


def without_mask(self: Any, batch: Batch) -> Batch:
    return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}


def without_rows_for_text(self: Any, batch: Batch) -> Batch:
    """Three rows of positions, as in every other forward: attention cannot tell packed samples apart."""
    return batch | {"position_ids": batch["position_ids"][1:]} if "position_ids" in batch else batch


def see_everything(*args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Tensor:
    rows, length, _ = inputs_embeds.shape
    return inputs_embeds.new_zeros(rows, 1, length, length)


def with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection._read

    def read(self: Any, batch: Batch, image_embeds: Tensor) -> Tensor:
        return F.dropout(sound(self, batch, image_embeds), training=self.training)

    monkeypatch.setattr(Qwen25VLWithDetection, "_read", read)


def steps_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each generated token is placed two behind the last."""
    sound = Qwen2_5_VLForConditionalGeneration._update_model_kwargs_for_generation

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = sound(self, *args, **kwargs)
        return found | {"position_ids": found["position_ids"] + 1}

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "_update_model_kwargs_for_generation", update)


def scale_images_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = inference.generate_answers

    def answers(vlm: Any, tokenizer: Any, batch: Batch, *args: Any) -> Any:
        return sound(vlm, tokenizer, batch | {"pixel_values": batch["pixel_values"] * 255}, *args)

    monkeypatch.setattr(inference, "generate_answers", answers)


def cut_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = inference.generate_answers

    def answers(vlm: Any, tokenizer: Any, batch: Batch, most: int, *args: Any) -> Any:
        return sound(vlm, tokenizer, batch, min(most, 5), *args)

    monkeypatch.setattr(inference, "generate_answers", answers)


def endless(**settings: Any) -> GenerationConfig:
    """Stop at padding alone."""
    end = {"eos_token_id": settings["pad_token_id"]} if settings else {}
    return GenerationConfig(**settings | end)


def eager_without_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain attention forgets its mask, as a hand-written replacement may."""
    sound = modeling_qwen2_5_vl.eager_attention_forward

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kw: Any
    ) -> Any:
        return sound(module, query, key, value, None, **kw)

    monkeypatch.setattr(modeling_qwen2_5_vl, "eager_attention_forward", forward)


COMPUTE_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "padded on the right",
        "consistency.compute.positions",
        ("padded on the left",),
        replacing(collate, "_padded", right_pad),
    ),
    Bug(
        "mm_token_type_ids dropped",
        "consistency.compute.positions",
        ("mm_token_type_ids",),
        in_batch(lambda batch: {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}),
    ),
    Bug(
        "mm_token_type_ids dropped in generation",
        "consistency.compute.positions",
        ("mm_token_type_ids",),
        replacing(
            generation, "PROMPT_KEYS", ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        ),
    ),
    Bug(
        "text behind an image one position on",
        "consistency.compute.positions",
        ("expected",),
        one_on_behind_images,
    ),
    Bug(
        "positions from one dimension",
        "consistency.compute.positions",
        ("expected",),
        replacing(Qwen2_5_VLModel, "get_rope_index", one_dimension),
    ),
    Bug(
        "generated tokens are placed too far on",
        "consistency.compute.positions",
        ("generated token",),
        steps_of_two,
    ),
    Bug(
        "attention mask missing",
        "consistency.compute.padding",
        ("alone and left-padded", "tolerance"),
        in_reading(without_mask),
    ),
    Bug(
        "packed samples see each other",
        "consistency.compute.packed",
        ("packed and in a row of its own", "tolerance"),
        in_reading(without_rows_for_text),
        ("train.packing=true",),
    ),
    Bug(
        "attention sees the answer",
        "consistency.compute.causal",
        ("before two different answers", "tolerance"),
        replacing(modeling_qwen2_5_vl, "create_causal_mask", see_everything),
    ),
    Bug("dropout in training", "consistency.compute.noise", ("computed twice",), with_dropout),
    Bug(
        "pixels not normalised for generation",
        "consistency.compute.served",
        ("in generation and in training",),
        scale_images_at_inference,
    ),
    Bug(
        "repetition penalty in generation",
        "consistency.compute.generation",
        ("was likeliest",),
        replacing(generation, "GenerationConfig", partial(GenerationConfig, repetition_penalty=3.0)),
    ),
    Bug(
        "answers are cut",
        "consistency.compute.generation",
        ("cut after 5 tokens",),
        cut_answers,
    ),
    Bug(
        "answers are drawn by lot",
        "consistency.compute.generation",
        ("was likeliest",),
        replacing(
            generation,
            "GenerationConfig",
            lambda **s: GenerationConfig(**s | ({"do_sample": True, "temperature": 3.0} if s else {})),
        ),
    ),
    Bug(
        "generation goes on behind the end of turn",
        "consistency.compute.generation",
        ("due behind the end",),
        replacing(generation, "GenerationConfig", endless),
    ),
    Bug(
        "attention without its mask",
        "consistency.compute.attention",
        ("under eager and sdpa",),
        eager_without_mask,
    ),
]


# Head


def answer_leak(patches: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return patches, hidden + 0.01 * hidden[:, -1:]


def batch_leak(patches: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return patches + 0.01 * patches.mean(0), hidden


def first_image(patches: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Take the patches from the start of the batch's images: a teacher's, where there is one."""
    return patches.roll(int(batch["image_grid_thw"][-1].prod()), dims=0), hidden


def window_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        detector_module,
        "get_vision_window_index",
        lambda grid, **_: (torch.arange(int(grid.prod(dim=1).sum()) // 4), None),
    )


def sigmoid_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = HeadOutput.final

    def final(self: HeadOutput) -> Any:
        logits, boxes, valid = sound(self)
        return logits.sigmoid(), boxes, valid

    monkeypatch.setattr(HeadOutput, "final", final)


def reversed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Encoder.label_tokens
    monkeypatch.setattr(Encoder, "label_tokens", lambda self: sound(self)[::-1])


def mean_over_padding(self: LabelEncoder, embeds: Tensor, mask: Tensor) -> Tensor:
    return self.out(self.token(self.norm(embeds)).mean(1))


def swapped_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = head_module.cell_boxes
    monkeypatch.setattr(head_module, "cell_boxes", lambda mask: sound(mask)[..., [1, 0, 3, 2]])


HEAD_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug("answer leaks into the head", "consistency.head.answer", ("answer",), in_head_inputs(answer_leak)),
    Bug("batch leaks into the head", "consistency.head.mates", ("alone",), in_head_inputs(batch_leak)),
    Bug(
        "a teacher's image for the student's",
        "consistency.head.order",
        ("patches",),
        in_head_inputs(first_image),
    ),
    Bug("patches in window order", "consistency.head.order", ("patches", "turned.jpg"), window_order),
    Bug("rows and columns of proposals swapped", "consistency.head.cells", ("centres",), swapped_cells),
    Bug("labels reordered", "consistency.head.labels", ("the head's classes are",), reversed_labels),
    Bug(
        "padding of labels counts",
        "consistency.head.labels",
        ("labels reversed and padded",),
        replacing(LabelEncoder, "forward", mean_over_padding),
    ),
    Bug("sigmoid twice", "consistency.head.scores", ("its logit says",), sigmoid_twice),
]


# Weights and build


def without_head(bundle: Bundle) -> Bundle:
    return replace(bundle, detector=Qwen25VLWithDetection(bundle.detector.vlm, None))


def adapters(bundle: Bundle) -> list[LoraLayer]:
    return [module for module in bundle.detector.modules() if isinstance(module, LoraLayer)]


def unloaded_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load_adapter", lambda vlm, folder: None)
    monkeypatch.setattr(loader, "verify_parameters", lambda detector, manifest, folder: None)


@torch.no_grad()
def merged_twice(bundle: Bundle) -> None:
    for layer in adapters(bundle):
        layer.get_base_layer().weight += layer.get_delta_weight("default")


def scaled_twice(bundle: Bundle) -> None:
    for layer in adapters(bundle):
        layer.scaling["default"] *= 2


def bidirectional(bundle: Bundle) -> None:
    """Only unpadded prompts show it: where there is padding, a mask says what may be seen."""
    for layer in bundle.detector.vlm.model.language_model.layers:
        layer.self_attn.is_causal = False


def coarse_norms(bundle: Bundle) -> None:
    for module in bundle.detector.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-2


def one_layer_lost(bundle: Bundle) -> None:
    nn.init.normal_(bundle.detector.vlm.model.visual.blocks[0].mlp.down_proj.weight)


def through_bfloat16(bundle: Bundle) -> None:
    bundle.detector.to(torch.bfloat16).to(torch.float32)


def half_a_model(bundle: Bundle) -> None:
    bundle.detector.vlm.model.visual.half()


def untied(bundle: Bundle) -> None:
    vlm = bundle.detector.vlm
    vlm.lm_head.weight = nn.Parameter(vlm.lm_head.weight.detach().clone())


def other_rope(bundle: Bundle) -> None:
    text = bundle.detector.vlm.config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_theta": 1e6}


def unverified_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's keys do not fit, ``strict=False`` passes over it, and nothing compares."""
    monkeypatch.setattr(loader, "load_head_weights", lambda detector, folder: None)
    monkeypatch.setattr(loader, "verify_parameters", lambda detector, manifest, folder: None)


def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved lacks a key; the loader refuses it."""
    sound = Qwen2_5_VLForConditionalGeneration.save_pretrained

    def save(self: Any, folder: Any, **kwargs: Any) -> None:
        state = {key: value for key, value in self.state_dict().items() if "blocks.0.norm1" not in key}
        sound(self, folder, **kwargs | {"state_dict": state})

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "save_pretrained", save)


BUILD_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug("a key is not saved", "consistency.build.load", ("missing",), unloadable),
    Bug(
        "attention not causal at inference",
        "consistency.build.classes",
        ("is_causal is True in training, False in inference",),
        at_inference(bidirectional),
    ),
    Bug(
        "another epsilon at inference",
        "consistency.build.classes",
        ("variance_epsilon",),
        at_inference(coarse_norms),
    ),
    Bug(
        "adapter not loaded",
        "consistency.build.parameters",
        ("lora_B",),
        unloaded_adapter,
        ("model.lora.rank=4",),
    ),
    Bug(
        "adapter merged and added again",
        "consistency.compute.served",
        ("in training",),
        at_inference(merged_twice),
        ("model.lora.rank=4",),
    ),
    Bug(
        "adapter scaled twice",
        "consistency.compute.served",
        ("in training",),
        at_inference(scaled_twice),
        ("model.lora.rank=4",),
    ),
    Bug("head missing at inference", "consistency.build.classes", ("no head",), at_inference(without_head)),
    Bug("head loaded with strict=False", "consistency.build.parameters", ("head.",), unverified_head),
    Bug(
        "a weight is random at inference",
        "consistency.build.parameters",
        ("differ",),
        at_inference(one_layer_lost),
    ),
    Bug(
        "cast to bfloat16 and back",
        "consistency.build.parameters",
        ("differ",),
        at_inference(through_bfloat16),
    ),
    Bug(
        "vision tower in half precision", "consistency.build.dtypes", ("float16",), at_inference(half_a_model)
    ),
    Bug("tied lm_head lost", "consistency.build.tied", ("two tensors",), at_inference(untied)),
    Bug("rope settings edited", "consistency.build.settings", ("rope_theta",), at_inference(other_rope)),
    Bug(
        "training starts from a random weight",
        "consistency.build.source",
        ("differ",),
        in_training(one_layer_lost),
    ),
]

BUGS: list[Bug[pytest.MonkeyPatch]] = [*BUILD_BUGS, *PROMPT_BUGS, *IMAGE_BUGS, *COMPUTE_BUGS, *HEAD_BUGS]
