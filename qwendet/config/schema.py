"""The one config that every command shares: sections, defaults, rules between fields.

Strict pydantic: an unknown key, a wrong type or an impossible combination is an error, and all of
them are reported at once. How a file becomes a ``Config`` is in :mod:`qwendet.config.load`.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)  # fmt: skip
from pydantic.fields import FieldInfo

from qwendet.errors import ConfigError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Frame = Literal["pixels", "thousandths"]
"""Of coordinates in answers: pixels of the resized image, or thousandths of the image's width and height."""
METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""COCO's, in pycocotools' order; an evaluation logs each as ``SOURCE/METRIC``, such as ``head/AP50``."""
LrScheduler = Literal["cosine", "linear", "constant", "constant_with_warmup"]

EMBEDDED_MODELS = {
    "tiny": "qwen2_5_vl",
    "tiny-qwen3-vl": "qwen3_vl",
    "tiny-untrained": "qwen2_5_vl",
    "tiny-qwen2-vl": "qwen2_vl",
    "tiny-qwen3-vl-untrained": "qwen3_vl",
    "tiny-qwen3-5": "qwen3_5",
}
"""Families by ``model.path``; never folders, even where there are some of these names."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DEFAULT_REQUEST = "Locate every {labels}. Output bbox_2d and label of each in JSON."


def _one_or_many(value: Any) -> Any:
    """A single name may be written without a list; and the manifest's JSON has no tuples."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class Section(BaseModel):
    """A group of settings: unknown keys refused, no coercion, read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class LoraConfig(Section):
    """Train small matrices beside the frozen ones of the base model (LoRA, Hu et al. 2022)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner size of the trained matrices."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """What they add is multiplied by ``alpha / rank``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of their inputs that is left out in training."""
    targets: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = ("language",)
    """``language``, ``vision``, ``all`` (both and the merger), or module names such as ``q_proj``."""
    load_in_4bit: bool = False
    """Keep the frozen base in 4 bits (QLoRA, Dettmers et al. 2023); needs a GPU and bitsandbytes."""
    base: str | None = None
    """The base; ``null`` is ``model.path``, or of an adapter checkpoint where it was in training."""
    revision: str | None = None
    """Commit of a base on the hub, recorded in training: there it is loaded again."""
    fingerprint: str | None = None
    """SHA-256 over the base's weights, recorded in training; another base is refused."""

    @field_validator("targets")
    @classmethod
    def _require_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(re.fullmatch(r"\w+(\.\w+)*", name) for name in value):
            raise ValueError("model.lora.targets needs names; write language, vision, all, or module names")
        return value


class ModelConfig(Section):
    """Which model is built, and in what form it computes."""

    path: str = "tiny"
    """``tiny`` or another embedded model, a directory, a qwendet checkpoint, or a Hugging Face hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; ``null`` is its default branch. A run records the commit."""
    attn_implementation: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """``auto`` takes flash_attention_2 where flash-attn and a GPU are there, else sdpa, and prints it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Type of the frozen weights and of the products; what is trained is float32 (``train.weights``).
    ``auto`` is bfloat16 on a GPU that has it, else float32, and is printed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is the GPU if there is one; ``cuda`` without a GPU is an error."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about 30 % slower, far less memory."""
    lora: LoraConfig | None = None
    """Train an adapter instead of the model itself; ``null`` trains every part with a learning rate."""


Preset = Literal["off", "light", "strong", "aerial"]
BOUNDS: dict[str, tuple[float, float, tuple[float, float]]] = {
    "crop": (0.01, 1.0, (0.4, 1.0)),
    "scale": (0.1, 4.0, (0.7, 1.4)),
    "color": (0.0, 3.0, (0.8, 1.2)),
    "blur": (0.0, 20.0, (0.0, 1.5)),
    "jpeg": (1.0, 95.0, (40.0, 95.0)),
    "mosaic": (0.1, 0.9, (0.3, 0.7)),
}
"""Of steps with a range: its least and its largest value, and its default."""


class AugmentStep(Section):
    """A step of ``data.augment``; docs/augmentation.md says what each does."""

    name: Literal[
        "horizontal_flip", "vertical_flip", "quarter_turn", "crop", "scale", "color", "blur", "jpeg", "mosaic"
    ]
    """What is done."""
    probability: Share = 0.5
    """Share of the images that it is done to."""
    range: Annotated[tuple[float, float], BeforeValidator(_one_or_many)] | None = None
    """What is drawn between, such as the share of the image that a crop keeps; ``null`` is the step's own."""
    min_visible: Share = 0.3
    """Share of a box's area that a cut must leave; else the box is dropped."""

    def limits(self) -> tuple[float, float]:
        """The range, or the step's own."""
        return self.range or BOUNDS[self.name][2]

    @model_validator(mode="after")
    def _check(self) -> AugmentStep:
        if self.range is None:
            return self
        if self.name not in BOUNDS:
            raise ValueError(f"{self.name} takes no range; remove it")
        least, most, _ = BOUNDS[self.name]
        low, high = self.range
        if not least <= low <= high <= most:
            raise ValueError(
                f"the range of {self.name} is [{low:g}, {high:g}]; give two numbers from {least:g} to"
                f" {most:g}, the lower one first"
            )
        return self


def _preset_or_steps(value: Any) -> str:
    return "preset" if isinstance(value, str) else "steps"


def _off_is_a_word(value: Any) -> Any:
    """YAML reads an unquoted ``off`` as false; and the manifest's JSON has no tuples."""
    return "off" if value is False else tuple(value) if isinstance(value, list) else value


class DataConfig(Section):
    """Where the samples are and how one is shown to the model."""

    train: str | None = None
    """JSONL file of training samples, relative to the config."""
    val: str | None = None
    """JSONL file of validation samples; ``null`` for none."""
    teachers: str | None = None
    """JSONL file that demonstrations are drawn from; ``null`` draws them from the training samples."""
    root: str | None = None
    """Folder that image paths start from and must stay in; ``null`` is the JSONL's own folder."""
    labels: tuple[str, ...] | None = None
    """Label set in the order of the request; ``null`` takes those of the training samples, sorted."""
    teacher_ratio: Share = 0.0
    """Share of training samples without teachers of their own that are given demonstrations."""
    num_teachers: Annotated[int, Field(ge=0, le=16)] = 1
    """Demonstrations before the student turn, where ``teacher_ratio`` gives any."""
    system_prompt: str | None = None
    """Text of the system turn; ``null`` is what the family's published template writes, if it writes one."""
    request: str = DEFAULT_REQUEST
    """Text after each image; ``{labels}`` becomes the label set."""
    frame: Frame | None = None
    """Coordinates of answers, learnt and read: ``pixels`` of the resized image, or ``thousandths`` of its
    width and height; ``null`` is the family's own."""
    min_pixels: Count | None = None
    """Images are enlarged to at least this many pixels; ``null`` keeps the processor's limit."""
    max_pixels: Count | None = None
    """Images are shrunk to at most this many pixels; ``null`` keeps the processor's limit."""
    max_tokens: Count = 8192
    """A sample with more tokens is an error; nothing is ever cut."""
    augment: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[tuple[AugmentStep, ...], Tag("steps")],
        Discriminator(_preset_or_steps),
        BeforeValidator(_off_is_a_word),
    ] = "off"
    """Random changes of training images and their boxes: ``off``, ``light``, ``strong``, ``aerial``, or a
    list of steps; see docs/augmentation.md."""
    augment_flips_labels: dict[str, str] | None = None
    """Labels that become another one in a flipped image, such as ``{left hand: right hand}``, and back."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """``skip`` leaves broken samples out, counted and listed; none is replaced by another one."""
    allow: tuple[str, ...] = ()
    """Ids of findings that are accepted, such as ``config.boxes.duplicate``; kept in the manifest."""
    image_cache: str | None = None
    """Folder that keeps images decoded and resized, relative to the config; ``null`` for none."""
    image_cache_gigabytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Most that the folder holds, in 10⁹ bytes; when it is full, further images are not kept."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that read and encode samples beside the training process."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if "{labels}" not in self.request:
            raise ValueError("data.request must contain {labels}: the model is told what to look for; add it")
        for key, text in (("request", self.request), ("system_prompt", self.system_prompt)):
            if text is not None and ("<|" in text or "|>" in text):
                raise ValueError(f"data.{key} holds special-token text: remove <| and |>")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.min_pixels ({self.min_pixels}) is above data.max_pixels ({self.max_pixels});"
                " lower the one or raise the other"
            )
        if self.augment != "off" and self.image_cache is not None:
            raise ValueError(
                "data.image_cache keeps images as they are, but data.augment changes them in each epoch; set"
                " data.image_cache to null, or data.augment to off"
            )
        for label, other in self.flipped_labels().items():
            if self.flipped_labels().get(other) != label:
                raise ValueError(
                    f"data.augment_flips_labels makes {label!r} {other!r}, which does not become it again;"
                    " name pairs, or a label and itself"
                )
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("data.labels names a label twice; remove one")
        return self

    def flipped_labels(self) -> dict[str, str]:
        """``augment_flips_labels`` in both directions."""
        named = self.augment_flips_labels or {}
        return {other: label for label, other in named.items()} | named


class DetectionConfig(Section):
    """The detection head. Sizes that are ``null`` are the checkpoint's own, or the default of a new head."""

    enabled: bool = True
    """Build and train the head; with ``false`` no head exists and the model answers in text only."""
    num_queries: Annotated[int, Field(ge=1, le=1000)] = 100
    """Most boxes the head can find in an image."""
    hidden_size: Annotated[int, Field(ge=16, multiple_of=8)] | None = None
    """Width of the head; a new head has 256."""
    num_layers: Annotated[int, Field(ge=1, le=12)] | None = None
    """Decoder layers; a new head has 3."""
    num_heads: Count | None = None
    """Attention heads of a decoder layer; a new head has 8."""
    one_to_many: Annotated[int, Field(ge=1, le=32)] = 1
    """Patches that answer for each box on the dense auxiliary stage."""


class LossConfig(Section):
    """Weights of the loss terms; docs/losses.md has the formula."""

    teacher_loss_weight: Weight = 0.3
    """Weight of the mean loss over the tokens of the demonstrations' answers."""
    student_loss_weight: Weight = 1.0
    """Weight of the mean loss over the tokens of the student's answer."""
    lm_loss_weight: Weight = 1.0
    """Weight of the mean loss over the tokens of all answers."""
    detection_loss_weight: Weight = 1.0
    """Weight of the head's loss."""
    class_weight: Weight = 2.0
    """Weight of the head's classification loss."""
    l1_weight: Weight = 5.0
    """Weight of the head's L1 box loss."""
    giou_weight: Weight = 2.0
    """Weight of the head's GIoU box loss."""


class EarlyStoppingConfig(Section):
    """End training when ``train.best_metric`` no longer rises."""

    patience: Count = 5
    """Evaluations in a row without a gain, after which training ends."""
    min_gain: Weight = 0.0
    """What the metric must rise by, over its value at the last gain, to count as a gain."""


class EmaConfig(Section):
    """Evaluate and keep a moving average of the trained weights (EMA) in place of the weights themselves."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that a step leaves; after n steps it is at most ``(1 + n) / (10 + n)``."""
    parts: Literal["all", "head_and_adapters"] = "all"
    """``all`` trained weights, or those of the detection head and of LoRA adapters alone."""


class TrainConfig(Section):
    """How long and how fast to train, and what is written."""

    output_dir: str = "run"
    """Folder of the run, relative to the config."""
    max_steps: Count | None = None
    """Optimizer steps; ``null`` trains for ``epochs``."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training samples, where ``max_steps`` is ``null``."""
    batch_size: Count = 1
    """Samples of a forward pass on one device."""
    gradient_accumulation_steps: Count = 1
    """Forward passes of an optimizer step; the loss is that of one big batch."""
    learning_rate: LearningRate = 1.0e-5
    """Learning rate of every part that has none of its own; 0 freezes."""
    vision_learning_rate: LearningRate | None = None
    """Learning rate of the vision tower."""
    merger_learning_rate: LearningRate | None = None
    """Learning rate of the merger between vision tower and language model."""
    language_learning_rate: LearningRate | None = None
    """Learning rate of the language model, ``lm_head`` and embeddings."""
    head_learning_rate: LearningRate | None = 1.0e-4
    """Learning rate of the detection head."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this total norm; 0 never scales."""
    lr_scheduler: LrScheduler = "cosine"
    """Course of the learning rates after the warm-up."""
    warmup_ratio: Share = 0.03
    """Share of the steps in which the learning rates rise, the first step not at 0."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "adamw_bnb_8bit", "stable_adamw"] = (
        "adamw_torch"
    )
    """Optimizer, by the Trainer's name; ``stable_adamw`` is the one for weights in bfloat16."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights but for head and adapters, which are float32; ``bfloat16`` takes
    ``stable_adamw``, which keeps what it rounds away."""
    autocast: Literal["auto", "none", "bf16", "fp16"] = "auto"
    """Type of the products, in training and inference; ``auto``, printed, is that of ``model.dtype``."""
    packing: bool = False
    """Put the samples of a batch into one row without padding; refused where attention would mix them."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the head's weights, the data order and the choice of teachers."""
    logging_steps: Count = 10
    """Steps between two logged rows."""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], BeforeValidator(_one_or_many)] = (
        "tensorboard",
    )
    """Where rows and pictures are shown: ``tensorboard``, ``wandb``, both, or ``[]``; see docs/logging.md."""
    eval_steps: Count | None = None
    """Steps between two predictions of validation samples during training; ``null`` for none."""
    eval_samples: Count | None = None
    """Validation samples that are predicted during training: the first ones; ``null`` for all."""
    best_metric: str | None = None
    """Metric of the evaluations every ``eval_steps``, by its logged name, whose best model is kept in
    ``best/``; ``null`` is ``head/AP`` where there is a head, else ``text/AP``."""
    early_stopping: EarlyStoppingConfig | None = None
    """End training when that metric no longer rises; ``null`` takes every step."""
    ema: EmaConfig | None = None
    """Moving average of the trained weights: what is evaluated, and kept in ``best/`` and ``final/``."""
    save_steps: Count = 500
    """Steps between two checkpoints."""
    save_total_limit: Count = 2
    """Checkpoints kept; ``final/`` is kept besides."""
    max_memory: Annotated[float, Field(gt=0)] | None = None
    """GiB of a device that the estimated peak must stay below; ``null`` is the GPU's own memory."""
    evaluate: bool = True
    """Predict the validation samples with the model in memory when training ends."""
    evaluate_base: bool = False
    """Predict them before the first step, too, and print both; with a new head, by text before and after."""
    preflight: Annotated[Literal["full", "quick", "off"], BeforeValidator(_off_is_a_word)] = "quick"
    """Checks of the model before the first step: ``full`` is all of ``qwendet validate`` but loss.overfit,
    ``quick`` takes the time of a few steps, ``off`` is printed; see docs/preflight.md."""

    def group_learning_rates(self) -> dict[str, float]:
        """Learning rate of each parameter group: ``vision``, ``merger``, ``language``, ``head``."""
        own = {
            "vision": self.vision_learning_rate,
            "merger": self.merger_learning_rate,
            "language": self.language_learning_rate,
            "head": self.head_learning_rate,
        }
        return {group: self.learning_rate if rate is None else rate for group, rate in own.items()}


class InferConfig(Section):
    """How predictions are made and which are kept."""

    mode: Literal["auto", "head", "text", "both"] = "auto"
    """``auto`` is the head where there is one, else text."""
    batch_size: Count = 8
    """Images of a forward pass."""
    score_threshold: Share = 0.01
    """Detections with a lower score are left out of the output."""
    max_detections: Count = 100
    """Most detections of an image, best first; with ``mode: both`` of head and text each."""
    max_new_tokens: Count = 2048
    """Most tokens of a text answer."""
    draft: Annotated[Literal["auto", "off"], BeforeValidator(_off_is_a_word)] = "auto"
    """``auto`` writes as many tokens of a text answer in one forward as a draft foresees, ``off`` one."""
    constrained: bool = False
    """Keep text answers inside the grammar of a valid one: labels of the set, boxes inside the image."""
    picture_threshold: Share = 0.3
    """Detections with a lower score are not drawn."""
    server_model: str | None = None
    """Name of the model on the server of ``--server``; ``null`` takes the only one."""
    server_requests: Count = 16
    """Requests that a server is sent at a time."""
    server_timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that a server has for one request."""


class Config(Section):
    """All settings of a run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    detection: DetectionConfig = Field(default_factory=DetectionConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    infer: InferConfig = Field(default_factory=InferConfig)

    def measured(self) -> list[str]:
        """Sources of the scores that are measured, by ``infer.mode``; the first is the main one."""
        sources = ["head"] * self.detection.enabled + ["text"]
        return {"auto": sources[:1], "both": sources}.get(self.infer.mode, [self.infer.mode])

    def best_metric(self) -> str:
        """``train.best_metric``, or its default."""
        return (self.train.best_metric or f"{self.measured()[0]}/AP").removeprefix("validation/")

    @model_validator(mode="after")
    def _check(self) -> Config:
        for message in _contradictions(self):
            raise ValueError(message)
        return self


def require_hub_id(model: ModelConfig) -> None:
    """Refuse a revision of a model that has none.

    Raises:
        ConfigError: if ``model.revision`` is set, and ``model.path`` is no hub id.
    """
    is_embedded = model.path in EMBEDDED_MODELS
    if model.revision is not None and (is_embedded or Path(model.path).is_dir()):
        kind = "an embedded model" if is_embedded else "a folder"
        raise ConfigError(
            f"model.revision is {model.revision}, but model.path is {kind}: only a hub id has revisions",
            f"model.path {model.path}",
            "remove model.revision, or set model.path to a hub id",
        )


def inner_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, such as ``model.lora``; ``None`` for a plain value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _contradictions(config: Config) -> list[str]:
    """Say which settings exclude each other."""
    found = []
    loss, rates = config.loss, config.train.group_learning_rates()
    text_weight = loss.teacher_loss_weight + loss.student_loss_weight + loss.lm_loss_weight
    head_weight = loss.detection_loss_weight * (loss.class_weight + loss.l1_weight + loss.giou_weight)
    if not config.detection.enabled:
        head_weight, rates["head"] = 0.0, 0.0
    if text_weight + head_weight == 0:
        found.append("every loss weight is 0: nothing would be trained; raise one under loss")
    if not any(rates.values()):
        found.append("every learning rate is 0: nothing would be trained; raise one under train")
    if config.detection.enabled and head_weight == 0:
        found.append(
            "detection.enabled is true but the head's loss weights are 0: it would stay random;"
            " raise loss.detection_loss_weight or set detection.enabled to false"
        )
    found += _frozen_parts_with_a_rate(config)
    found += _types_that_exclude_each_other(config)
    if config.train.evaluate_base and not (config.train.evaluate and config.data.val):
        found.append(
            "train.evaluate_base is true, but nothing is evaluated when training ends: there is nothing to"
            " compare with; give data.val and set train.evaluate to true, or set it to false"
        )
    if config.train.eval_steps is not None and config.data.val is None:
        found.append(
            f"train.eval_steps is {config.train.eval_steps}, but data.val is not set: there is nothing to"
            " predict; give data.val, or set train.eval_steps to null"
        )
    found += _nothing_to_judge_by(config)
    found += _nothing_to_average(config)
    if config.infer.mode in ("head", "both") and not config.detection.enabled:
        found.append(
            f"infer.mode is {config.infer.mode} but detection.enabled is false: there is no head;"
            " set infer.mode to text"
        )
    return found


def _nothing_to_judge_by(config: Config) -> list[str]:
    """Say what of ``train.best_metric`` and ``train.early_stopping`` no evaluation would tell."""
    train, metric = config.train, config.best_metric()
    asked = [name for name in ("best_metric", "early_stopping") if getattr(train, name) is not None]
    if asked and train.eval_steps is None:
        return [
            f"train.{asked[0]} is set, but train.eval_steps is null: nothing is evaluated during training;"
            f" set train.eval_steps, or train.{asked[0]} to null"
        ]
    logged = [f"{source}/{name}" for source in config.measured() for name in METRICS]
    if train.best_metric is None or metric in logged:
        return []
    close = difflib.get_close_matches(metric, logged, n=1, cutoff=0.5) or logged
    return [
        f"train.best_metric is {metric}, which no evaluation logs; set it to {close[0]}, or another of"
        f" {', '.join(logged)}"
    ]


def _nothing_to_average(config: Config) -> list[str]:
    """Say why ``train.ema`` would have no weights, or none that a small step moves."""
    ema, train = config.train.ema, config.train
    if ema is None:
        return []
    if ema.parts == "all" and train.weights == "bfloat16":
        return [
            "train.ema averages in the type of the weights, and train.weights is bfloat16, which rounds a"
            " step of an average away; set train.ema.parts to head_and_adapters, or train.weights to float32"
        ]
    if ema.parts != "all" and not config.detection.enabled and config.model.lora is None:
        return ["train.ema.parts is head_and_adapters, but there is neither head nor adapter; set it to all"]
    return []


AUTOCAST_OF = {"float32": "none", "float64": "none", "bfloat16": "bf16", "float16": "fp16"}
"""What ``train.autocast: auto`` is for each ``model.dtype``."""


def _types_that_exclude_each_other(config: Config) -> list[str]:
    """Say which types of weights, of products and of the optimizer do not go together."""
    found, train, dtype = [], config.train, config.model.dtype
    if dtype not in ("auto", "float32") and train.autocast not in ("auto", AUTOCAST_OF[dtype]):
        found.append(
            f"train.autocast is {train.autocast} but model.dtype is {dtype}: float32 weights, such as the"
            f" trained ones, would meet others; set train.autocast to auto, or model.dtype to float32"
        )
    if train.weights != "bfloat16":
        return found
    if train.optimizer != "stable_adamw":
        found.append(
            f"train.weights is bfloat16 but train.optimizer is {train.optimizer}, which rounds most steps"
            " away in it; set train.optimizer to stable_adamw, or train.weights to float32"
        )
    if train.weight_decay:
        found.append(
            f"train.weights is bfloat16, in which decay by train.weight_decay ({train.weight_decay:g}) times"
            " a learning rate is rounded away; set it to 0, or train.weights to float32"
        )
    if dtype not in ("auto", "bfloat16"):
        found.append(f"train.weights is bfloat16 but model.dtype is {dtype}; set both to bfloat16")
    return found


def _frozen_parts_with_a_rate(config: Config) -> list[str]:
    """Say which parts were given a learning rate of their own, though LoRA leaves them frozen."""
    lora, train = config.model.lora, config.train
    named = {"language", "vision", "all"}
    if lora is None or not named.issuperset(lora.targets) or "all" in lora.targets:
        return []  # which parts a list of module names reaches is seen when the model is there
    rates = {"language": train.language_learning_rate, "vision": train.vision_learning_rate}
    rates["merger"] = train.merger_learning_rate
    return [
        f"train.{part}_learning_rate is {rate}, but model.lora.targets leaves the {part} part frozen;"
        f" remove it, or set model.lora.targets to all"
        for part, rate in rates.items()
        if rate and part not in lora.targets
    ]
