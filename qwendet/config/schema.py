"""The one config that every command shares: sections, defaults, rules between fields.

Strict pydantic: an unknown key, a wrong type or an impossible combination is an error, and all of
them are reported at once. How a file becomes a ``Config`` is in :mod:`qwendet.config.load`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic.fields import FieldInfo

from qwendet.config.augment_steps import AugmentStep, Preset
from qwendet.config.contradictions import contradictions
from qwendet.config.section import Count, LearningRate, Section, Share, Weight, one_or_many
from qwendet.config.sources import Source, TrainSources
from qwendet.errors import ConfigError

Frame = Literal["pixels", "thousandths"]
"""Of coordinates in answers: pixels of the resized image, or thousandths of the image's width and height."""
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


class LoraConfig(Section):
    """Train small matrices beside the frozen ones of the base model (LoRA, Hu et al. 2022)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner size of the trained matrices."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """What they add is multiplied by ``alpha / rank``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of their inputs that is left out in training."""
    targets: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = ("language",)
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


def _preset_or_steps(value: Any) -> str:
    return "preset" if isinstance(value, str) else "steps"


def _off_is_a_word(value: Any) -> Any:
    """YAML reads an unquoted ``off`` as false; and the manifest's JSON has no tuples."""
    return "off" if value is False else tuple(value) if isinstance(value, list) else value


class DataConfig(Section):
    """Where the samples are and how one is shown to the model."""

    train: TrainSources | None = None
    """Training samples, relative to the config: a JSONL file, a Parquet file or tar of images and objects, a
    folder or pattern of these, a URL; or a list of such paths, or of ``{path, weight}``; see docs/data.md."""
    val: str | None = None
    """Validation samples, a path as above; ``null`` for none."""
    teachers: str | None = None
    """Samples that demonstrations are drawn from, a path as above; ``null`` draws them from ``train``."""
    root: str | None = None
    """Folder that image paths of JSONL start from and must stay in; ``null`` is the JSONL's own folder."""
    labels: tuple[str, ...] | None = None
    """Label set in the order of the request; ``null`` takes those of the training samples, sorted."""
    labels_per_request: Count | None = None
    """Most labels of a request. Of more, training names those in the image and others drawn at random; at
    inference each request names the next so many, and the answers are put together; ``null`` names all."""
    repeat_rare: Annotated[float, Field(gt=0, le=1)] | None = None
    """Take training samples with rare labels more than once in an epoch: those of labels that less than this
    share of the samples shows, the rarer the more often; ``null`` takes each once."""
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
    num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that read and encode samples beside the training process."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if "{labels}" not in self.request:
            raise ValueError("data.request must contain {labels}: it names what to look for; add it")
        for key, text in (("request", self.request), ("system_prompt", self.system_prompt)):
            if text is not None and ("<|" in text or "|>" in text):
                raise ValueError(f"data.{key} holds special-token text: remove <| and |>")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.min_pixels ({self.min_pixels}) is above data.max_pixels ({self.max_pixels});"
                " lower the one or raise the other"
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

    def sources(self, split: str) -> tuple[Source, ...]:
        """Where the samples of ``train``, ``val`` or ``teachers`` are."""
        given = getattr(self, split)
        return (Source(path=given),) if isinstance(given, str) else given or ()

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
    report_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], BeforeValidator(one_or_many)] = (
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


def require_tiles(value: Any) -> Any:
    """``off``, ``auto``, columns x rows, or the side of a window; else a ``ValueError`` says so."""
    value = _off_is_a_word(value)
    is_side = isinstance(value, int) and value > 0 and value is not True
    if value in ("off", "auto") or is_side or re.fullmatch(r"[1-9]\d{0,2}x[1-9]\d{0,2}", str(value)):
        return value
    raise ValueError(
        f"expected tiles, got {value!r}; write off, auto, columns x rows such as 3x2, or a window's pixels"
    )


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
    tiles: Annotated[int | str, BeforeValidator(require_tiles)] = "off"
    """Windows of large images that are looked at beside the whole: ``auto`` are as large as the model sees
    without shrinking, ``3x2`` are columns and rows, a number is their side in pixels; see docs/tiles.md."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    """Least share of a window's side that its neighbour shows as well."""
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
        for message in contradictions(self):
            raise ValueError(message)
        return self


def require_hub_id(model: ModelConfig) -> None:
    """Refuse a revision of a model that has none."""
    is_embedded = model.path in EMBEDDED_MODELS
    if model.revision is not None and (is_embedded or Path(model.path).is_dir()):
        kind = "an embedded model" if is_embedded else "a folder"
        raise ConfigError(
            f"model.revision is {model.revision}, but model.path is {kind}: only a hub id has revisions",
            f"model.path {model.path}",
            "remove model.revision, or set model.path to a hub id",
        )


def item_section(annotation: Any) -> type[Section] | None:
    """The section that the items of a list are, however the list is wrapped; None where they are values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(item_section, get_args(annotation))), None)


def inner_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, such as ``model.lora``; ``None`` for a plain value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None
