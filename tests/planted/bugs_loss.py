"""Bugs of the loss, of padding and positions, and of what is trained; each was made somewhere by somebody."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwendet import build_trainer, training
from qwendet.data import collate, encode
from qwendet.data.collate import IGNORED, Batch, StandardDataCollator
from qwendet.data.resize import rescale_xyxy
from qwendet.errors import DataError
from qwendet.model import detector as detector_module
from qwendet.model import losses as losses_module
from qwendet.model.detector import DetectorOutput, Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from qwendet.model.losses import LossManager, TokenLosses, step_counts
from qwendet.training import DetectionTrainer
from tests.planted.bug import Bug

Plant = Callable[[pytest.MonkeyPatch], None]


# How a bug is planted


def in_total(change: Callable[[LossManager, dict[str, Tensor]], dict[str, Tensor]]) -> Plant:
    """Change the terms before they are added up; the logged ones stay as they are."""
    sound = LossManager._total

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            LossManager, "_total", lambda self, terms: sound(self, terms | change(self, terms))
        )

    return plant


def in_tokens(change: Callable[[TokenLosses], TokenLosses]) -> Plant:
    """Change the token losses before the loss manager sees them."""
    sound = LossManager.__call__

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            LossManager,
            "__call__",
            lambda self, tokens, head, targets, counts: sound(self, change(tokens), head, targets, counts),
        )

    return plant


def in_batch(change: Callable[[Batch], dict[str, Any]]) -> Plant:
    """Change what the collator returns."""
    sound = StandardDataCollator.__call__

    def spoilt(self: StandardDataCollator, samples: Any) -> Batch:
        batch = sound(self, samples)
        return batch | change(batch)

    return lambda monkeypatch: monkeypatch.setattr(StandardDataCollator, "__call__", spoilt)


def replacing(owner: Any, name: str, value: Any) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def swapped_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = training.parameter_groups

    def groups(detector: Any, rates: dict[str, float], decay: float) -> Any:
        return sound(detector, rates | {"head": rates["language"], "language": rates["head"]}, decay)

    monkeypatch.setattr(training, "parameter_groups", groups)


def without_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = training.parameter_groups
    monkeypatch.setattr(training, "parameter_groups", lambda detector, rates, _: sound(detector, rates, 0.0))


def without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_image(path: str, root: Path, where: str, declared: object) -> None:
        raise DataError(f"the image {path} is absent", where, "mount the folder again")

    monkeypatch.setattr(encode, "open_image", open_image)


# The loss manager


def wrong_teacher_weight(self: LossManager, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"teacher": terms["teacher"] / self.weights.teacher_loss_weight}


def wrong_detection_weight(self: LossManager, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"detection": terms["detection"] / self.weights.detection_loss_weight}


def spoilt_sums(tokens: TokenLosses, change: Callable[[Tensor], Tensor]) -> TokenLosses:
    return replace(tokens, teacher_sum=change(tokens.teacher_sum), student_sum=change(tokens.student_sum))


def zero_where_nan(loss: Tensor) -> Tensor:
    return loss if loss.isfinite() else torch.zeros_like(loss.detach()).requires_grad_()


def teacher_and_student_swapped(plant_on: pytest.MonkeyPatch) -> None:
    sound = LossManager.__call__

    def call(self: LossManager, tokens: TokenLosses, head: Any, targets: Any, counts: Tensor) -> Any:
        other = replace(tokens, teacher_sum=tokens.student_sum, student_sum=tokens.teacher_sum)
        return sound(self, other, head, targets, counts[[1, 0, 2]])

    plant_on.setattr(LossManager, "__call__", call)


def own_count(plant_on: pytest.MonkeyPatch) -> None:
    """Divide by the micro-batch's own tokens, as a loss that returns a mean does."""
    sound = LossManager.__call__

    def call(self: LossManager, tokens: TokenLosses, head: Any, targets: Any, counts: Tensor) -> Any:
        students = tokens.is_student.sum()
        own = torch.stack([len(tokens.nll) - students, students, counts[2]])
        return sound(self, tokens, head, targets, own)

    plant_on.setattr(LossManager, "__call__", call)


def means_without_clamp(plant_on: pytest.MonkeyPatch) -> None:
    plant_on.setattr(Tensor, "clamp", lambda self, *args, **kwargs: self)


def class_mean_over_queries(plant_on: pytest.MonkeyPatch) -> None:
    sound = losses_module.detection_terms

    def terms(head: Any, targets: Any, matches: Any, scale: Tensor) -> dict[str, Tensor]:
        found = sound(head, targets, matches, scale)
        return found | {"class": found["class"] / head.valid.sum()}

    plant_on.setattr(losses_module, "detection_terms", terms)


def term_of_ones_own(plant_on: pytest.MonkeyPatch) -> None:
    """A new term is computed, and logged with the others; adding it to the total was forgotten."""
    sound = losses_module.detection_terms

    def terms(head: Any, targets: Any, matches: Any, scale: Tensor) -> dict[str, Tensor]:
        return sound(head, targets, matches, scale) | {"area": head.boxes_cxcywh[..., 2:].prod(-1).sum()}

    plant_on.setattr(losses_module, "detection_terms", terms)


def boxes_as_corners(plant_on: pytest.MonkeyPatch) -> None:
    """Read cxcywh as xyxy in the IoU."""
    plant_on.setattr(losses_module, "cxcywh_to_xyxy", lambda boxes: boxes)


def without_matching_cost(plant_on: pytest.MonkeyPatch) -> None:
    """Match in order of the predictions."""
    sound = losses_module.match

    def match(output: Any, targets: Any, weights: Any, repeats: Any) -> Any:
        return sound(
            replace(output, logits=output.logits * 0, boxes_cxcywh=output.boxes_cxcywh * 0 + 0.5),
            targets,
            weights,
            repeats,
        )

    plant_on.setattr(losses_module, "match", match)


# The model


def cross_entropy(shift: int = 1, **settings: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """The detector's cross-entropy with another shift between states and labels, or other settings."""

    def compute(
        self: Qwen25VLWithDetection, hidden: Tensor, rows: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        states, labels = hidden.flatten(0, 1)[rows + 1 - shift], batch["labels"].flatten()[rows + 1]
        nll = F.cross_entropy(self.vlm.lm_head(states).float(), labels, reduction="none", **settings)
        return nll.sum(), nll.detach()

    return compute


def in_cross_entropy_half(plant_on: pytest.MonkeyPatch) -> None:
    sound = detector_module.linear_cross_entropy

    def compute(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, nll = sound(rows.bfloat16(), weight.bfloat16(), labels)
        return total, nll

    plant_on.setattr(detector_module, "linear_cross_entropy", compute)


def gradient_of_a_mean(plant_on: pytest.MonkeyPatch) -> None:
    """The fused cross-entropy forgets that its gradients are kept divided by the number of rows."""
    sound = detector_module.linear_cross_entropy

    def compute(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, nll = sound(rows, weight, labels)
        mean = total / max(1, len(rows))
        return mean + (total - mean).detach(), nll

    plant_on.setattr(detector_module, "linear_cross_entropy", compute)


def read(*, with_mask: bool, one_dimensional: bool) -> Callable[..., Tensor]:
    """The detector's pass through the language model without its mask or with positions of text."""

    def run(self: Qwen25VLWithDetection, batch: Batch, image_embeds: Tensor) -> Tensor:
        model, input_ids = self.vlm.model, batch["input_ids"]
        embeds = model.get_input_embeddings()(input_ids)
        is_image = (input_ids == self.config.image_token_id)[..., None]
        position_ids, _ = model.get_rope_index(
            input_ids,
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch["image_grid_thw"],
            attention_mask=batch["attention_mask"],
        )
        if one_dimensional:
            position_ids = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
        outputs = model.language_model(
            inputs_embeds=embeds.masked_scatter(is_image, image_embeds),
            position_ids=position_ids,
            attention_mask=batch["attention_mask"] if with_mask else None,
            use_cache=False,
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    return run


def seeing(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Plant:
    """Change patches and image tokens behind the vision tower."""
    sound = Qwen25VLWithDetection.see

    def see(self: Qwen25VLWithDetection, pixel_values: Tensor, image_grid_thw: Tensor) -> Any:
        return change(*sound(self, pixel_values, image_grid_thw))

    return replacing(Qwen25VLWithDetection, "see", see)


def context_detached(plant_on: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection._detect
    plant_on.setattr(
        Qwen25VLWithDetection,
        "_detect",
        lambda self, patches, hidden, batch: sound(self, patches, hidden.detach(), batch),
    )


def head_never_called(plant_on: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection.forward

    def forward(self: Qwen25VLWithDetection, batch: Batch, *, with_tokens: bool = True) -> DetectorOutput:
        return replace(sound(self, batch, with_tokens=with_tokens), head=None)

    plant_on.setattr(Qwen25VLWithDetection, "forward", forward)


def layer_cut_off(plant_on: pytest.MonkeyPatch) -> None:
    """The head refines boxes without a gradient to its queries."""
    sound = DetectionHead.forward

    def forward(self: DetectionHead, patches: Tensor, context: Tensor, *rest: Tensor) -> Any:
        with_grad = self.query.weight.requires_grad
        self.query.weight.requires_grad_(False)
        self.query.bias.requires_grad_(False)
        try:
            return sound(self, patches, context, *rest)
        finally:
            self.query.weight.requires_grad_(with_grad)
            self.query.bias.requires_grad_(with_grad)

    plant_on.setattr(DetectionHead, "forward", forward)


# The collator and the encoder


def labels_without_pad_token(batch: Batch) -> dict[str, Any]:
    """Mask labels where the token is the pad token, where that is also the end of a turn."""
    end = int(batch["labels"][:, -1].max())  # the last label of every answer
    return {"labels": batch["labels"].masked_fill(batch["labels"] == end, IGNORED)}


def labels_of_the_prompt(batch: Batch) -> dict[str, Any]:
    return {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}


def right_padded(lengths: Sequence[int]) -> Any:
    return collate._Place((len(lengths), max(lengths)), tuple(range(len(lengths))), (0,) * len(lengths))


def head_on_the_first_image(batch: Batch) -> dict[str, Any]:
    return {"patch_index": batch["patch_index"] - batch["patch_index"].amin((1, 2), keepdim=True)}


def patches_as_they_come(batch: Batch) -> dict[str, Any]:
    """Take the processor's block order for raster order."""
    index = batch["patch_index"].clone()
    for own, mask in zip(index, batch["patch_mask"], strict=True):
        own[mask] = own[mask].sort().values
    return {"patch_index": index}


def encoded(change: Callable[[encode.EncodedSample], dict[str, Any]]) -> Plant:
    """Change encoded samples."""
    sound = encode.Encoder.encode

    def spoilt(self: encode.Encoder, sample: Any, *, with_answer: bool) -> encode.EncodedSample:
        found = sound(self, sample, with_answer=with_answer)
        return replace(found, **change(found))

    return replacing(encode.Encoder, "encode", spoilt)


# The trainer


def count_of_the_last(
    self: DetectionTrainer, epoch_iterator: Any, num_batches: int, device: torch.device
) -> tuple[list[Batch], Tensor]:
    batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
    return batches, step_counts(batches[-1:]).to(device)


def counts_of_all_tokens(batches: Any) -> Tensor:
    counts = step_counts(batches)
    counts[1] = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return counts


def groups(change: Callable[[list[dict[str, Any]], Any], list[dict[str, Any]]]) -> Plant:
    sound = training.parameter_groups

    def spoilt(detector: Any, rates: dict[str, float], decay: float) -> list[dict[str, Any]]:
        return change(sound(detector, rates, decay), detector)

    return replacing(training, "parameter_groups", spoilt)


def one_group_twice(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [*found, {**found[0], "params": found[0]["params"][:1]}]


def without_biases(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group for group in found if group["params"][0].ndim >= 2]


def everything_at_one_rate(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group | {"lr": 1e-5} for group in found]


def frozen_held_too(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    frozen = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    return [*found, {**found[0], "params": frozen}]


def copies(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group | {"params": copy.deepcopy(group["params"])} for group in found]


def never_finite(self: DetectionTrainer, terms: dict[str, float], norms: Any) -> None:
    self.step_log.sources = []


def only_the_loss_is_looked_at(self: DetectionTrainer, terms: dict[str, float], norms: Any) -> None:
    sound_require_finite(self, terms, {})


sound_require_finite = DetectionTrainer._require_finite

NO_VISION = ("train.vision_learning_rate=0",)

BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "rates of head and language swapped",
        "loss.optimizer",
        ("trained at 0.0005",),
        swapped_rates,
        ("train.head_learning_rate=0.0005",),
    ),
    Bug(
        "weight decay lost",
        "loss.optimizer",
        ("decayed by 0, not by 0.1",),
        without_decay,
        ("train.weight_decay=0.1",),
    ),
    Bug("image gone since it was checked", "loss.build", ("is absent",), without_images),
    # Terms and weights
    Bug(
        "teacher loss logged, never back-propagated",
        "loss.weights",
        ("∂total/∂teacher is 0", "never back-propagated"),
        in_total(lambda self, terms: {"teacher": terms["teacher"].detach()}),
    ),
    Bug(
        "detection loss logged, never back-propagated",
        "loss.weights",
        ("∂total/∂detection is 0", "never back-propagated"),
        in_total(lambda self, terms: {"detection": terms["detection"].detach()}),
    ),
    Bug(
        "new term logged, never back-propagated",
        "loss.weights",
        ("nothing says what the weight of the term area is",),
        term_of_ones_own,
    ),
    Bug(
        "student tokens detached before their mean",
        "loss.gradients",
        ("student has no path to language",),
        in_tokens(lambda tokens: replace(tokens, student_sum=tokens.student_sum.detach())),
    ),
    Bug(
        "teacher weight ignored",
        "loss.weights",
        ("∂total/∂teacher is 1", "loss.teacher_loss_weight is 0.3"),
        in_total(wrong_teacher_weight),
    ),
    Bug(
        "detection loss unweighted",
        "loss.weights",
        ("∂total/∂detection is 1", "loss.detection_loss_weight is 0.5"),
        in_total(wrong_detection_weight),
        ("loss.detection_loss_weight=0.5",),
    ),
    Bug(
        "lm term added twice",
        "loss.weights",
        ("∂total/∂lm is 2",),
        in_total(lambda self, terms: {"lm": 2 * terms["lm"]}),
    ),
    Bug(
        "student loss with the wrong sign",
        "loss.weights",
        ("∂total/∂student is -1",),
        in_total(lambda self, terms: {"student": -terms["student"]}),
    ),
    Bug(
        "total of other terms than those logged",
        "loss.formula",
        ("total is", "the formula gives"),
        in_total(lambda self, terms: {"lm": terms["student"]}),
    ),
    Bug(
        "teacher and student swapped in the loss",
        "loss.formula",
        ("teacher and student are swapped",),
        teacher_and_student_swapped,
    ),
    Bug(
        "teacher and student swapped in the collator",
        "loss.labels",
        ("teacher and student are mixed up",),
        in_batch(
            lambda batch: {"teacher_rows": batch["student_rows"], "student_rows": batch["teacher_rows"]}
        ),
    ),
    Bug(
        "mean over the micro-batch instead of the step",
        "loss.accumulation",
        ("of 4 × 1 it is",),
        own_count,
    ),
    Bug(
        "counts of the last micro-batch only",
        "loss.accumulation",
        ("of 4 × 1 it is",),
        replacing(DetectionTrainer, "get_batch_samples", count_of_the_last),
    ),
    Bug(
        "loss divided by the accumulation steps once more",
        "loss.accumulation",
        ("total of 1 × 4",),
        replacing(DetectionTrainer, "loss_is_scaled_for_ga", False),
    ),
    Bug(
        "mean over all tokens instead of the answers'",
        "loss.labels",
        ("the means divide by",),
        replacing(training, "step_counts", counts_of_all_tokens),
    ),
    Bug("empty means divide by 0", "loss.empty", ("without boxes", "is nan"), means_without_clamp),
    Bug("class loss averaged over queries", "loss.detection", ("class is",), class_mean_over_queries),
    Bug("boxes read as corners in the IoU", "loss.detection", ("giou is",), boxes_as_corners),
    Bug("matching without a cost", "loss.detection", ("another matching",), without_matching_cost),
    Bug(
        "the head's predictions never reach the loss",
        "loss.detection",
        ("returns no predictions of a head",),
        head_never_called,
    ),
    # NaN
    Bug(
        "NaN made 0 in the loss",
        "loss.nan",
        ("a loss that is NaN went unnoticed",),
        in_tokens(lambda tokens: spoilt_sums(tokens, zero_where_nan)),
    ),
    Bug(
        "NaN never looked for",
        "loss.nan",
        ("a loss that is NaN went unnoticed", "the weight is nan"),
        replacing(DetectionTrainer, "_require_finite", never_finite),
    ),
    Bug(
        "gradients never looked at",
        "loss.nan",
        ("a finite loss whose gradient is infinite went unnoticed",),
        replacing(DetectionTrainer, "_require_finite", only_the_loss_is_looked_at),
    ),
    # Tokens, padding, positions
    Bug(
        "labels not shifted against the states",
        "loss.tokens",
        ("differ from the published model's",),
        replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(0)),
    ),
    Bug(
        "labels shifted twice, by collator and model",
        "loss.labels",
        ("labels are shifted",),
        in_batch(lambda batch: {"labels": batch["labels"].roll(1, 1)}),
    ),
    Bug(
        "states and labels two apart",
        "loss.tokens",
        ("differ from the published model's",),
        replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(2)),
    ),
    Bug(
        "label smoothing left on",
        "loss.tokens",
        ("differ from the published model's",),
        replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(label_smoothing=0.01)),
    ),
    Bug(
        "half precision in the token losses",
        "loss.tokens",
        ("is the rounding of float32",),
        in_cross_entropy_half,
    ),
    Bug(
        "gradient of a mean under the value of a sum",
        "loss.backward",
        ("the gradient of the teacher tokens", "of its norm"),
        gradient_of_a_mean,
    ),
    Bug("prompt trained on", "loss.labels", ("the prompt is trained on",), in_batch(labels_of_the_prompt)),
    Bug(
        "pad token is the end of turn, so its label is masked",
        "loss.labels",
        ("is no label", "answers never end"),
        in_batch(labels_without_pad_token),
    ),
    Bug(
        "teachers' answers dropped",
        "loss.labels",
        ("of an answer is no label",),
        encoded(lambda sample: {"teacher_assistant_spans": ()}),
    ),
    Bug(
        "right padding",
        "loss.padding",
        ("padded on the right", "attention_mask"),
        replacing(collate, "_padded", right_padded),
    ),
    Bug(
        "attention mask of ones",
        "loss.padding",
        ("wrong: attention_mask",),
        in_batch(lambda batch: {"attention_mask": torch.ones_like(batch["attention_mask"])}),
    ),
    Bug(
        "mm_token_type_ids dropped",
        "loss.padding",
        ("wrong: mm_token_type_ids",),
        in_batch(lambda batch: {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}),
    ),
    Bug(
        "attention mask not given to the language model",
        "loss.tokens",
        ("differ from the published model's",),
        replacing(Qwen25VLWithDetection, "_read", read(with_mask=False, one_dimensional=False)),
    ),
    Bug(
        "positions of text for image tokens",
        "loss.tokens",
        ("differ from the published model's",),
        replacing(Qwen25VLWithDetection, "_read", read(with_mask=True, one_dimensional=True)),
    ),
    # Prompts and boxes
    Bug(
        "the prompt of inference lacks the last line break",
        "loss.prompt",
        ("the prompt that inference sends differs",),
        encoded(
            lambda sample: {} if sample.student_assistant_spans else {"input_ids": sample.input_ids[:-1]}
        ),
    ),
    Bug(
        "x and y swapped in answers",
        "loss.boxes",
        ("pixels of the model's image off",),
        replacing(encode, "rescale_xyxy", lambda *frames: rescale_xyxy(*frames)[:, [1, 0, 3, 2]]),
    ),
    # The head's image and targets
    Bug(
        "detection term computed on the teacher's image",
        "loss.image",
        ("patch_index", "of them are the student image's"),
        in_batch(head_on_the_first_image),
    ),
    Bug(
        "patches taken in block order",
        "loss.image",
        ("in another order",),
        in_batch(patches_as_they_come),
    ),
    Bug(
        "targets written as corners",
        "loss.detection",
        ("l1 is", "other targets"),
        replacing(encode, "xyxy_to_cxcywh", lambda boxes: boxes),
    ),
    Bug(
        "target labels all of the first class",
        "loss.detection",
        ("class is", "other targets"),
        encoded(lambda sample: {"label_ids": torch.zeros_like(sample.label_ids)}),
    ),
    # Gradients and groups
    Bug(
        "image tokens detached",
        "loss.gradients",
        ("lm has no path to merger",),
        seeing(lambda patches, embeds: (patches, embeds.detach())),
    ),
    Bug(
        "patches of the head detached",
        "loss.gradients",
        ("vision patches cut off from the graph",),
        seeing(lambda patches, embeds: (patches.detach(), embeds)),
    ),
    Bug(
        "language model's states detached for the head",
        "loss.gradients",
        ("hidden states cut off from the graph",),
        context_detached,
    ),
    Bug(
        "a layer of the head without a gradient",
        "loss.gradients",
        ("get no gradient from any term", "head.query"),
        layer_cut_off,
    ),
    Bug(
        "a frozen part is trained",
        "loss.optimizer",
        ("train.vision_learning_rate is 0", "it was to be frozen"),
        replacing(build_trainer, "freeze_groups", lambda detector, rates: None),
        NO_VISION,
    ),
    Bug(
        "everything is frozen",
        "loss.optimizer",
        ("language", "frozen, but train.language_learning_rate is 0.001"),
        replacing(build_trainer, "freeze_groups", lambda detector, rates: detector.requires_grad_(False)),
    ),
    Bug(
        "a parameter in two groups",
        "loss.optimizer",
        ("more than one parameter group",),
        groups(one_group_twice),
    ),
    Bug(
        "parameters in no group", "loss.optimizer", ("in no group of the optimizer",), groups(without_biases)
    ),
    Bug(
        "one learning rate for all groups",
        "loss.optimizer",
        ("trained at 1e-05", "train.head_learning_rate is 0.001"),
        groups(everything_at_one_rate),
    ),
    Bug(
        "frozen parameters in the optimizer",
        "loss.optimizer",
        ("frozen, but in the optimizer",),
        groups(frozen_held_too),
        NO_VISION,
    ),
    Bug(
        "the optimizer holds copies",
        "loss.optimizer",
        ("no parameters of the model",),
        groups(copies),
    ),
    Bug(
        "nothing is learned: the optimizer holds copies",
        "loss.overfit",
        ("none has changed",),
        groups(copies),
    ),
]
