"""Settings that exclude each other, or ask for what no run could give; ``what; how to fix it`` each."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwendet.config.schema import Config

METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""COCO's, in pycocotools' order; an evaluation logs each as ``SOURCE/METRIC``, such as ``head/AP50``."""
AUTOCAST_OF = {"float32": "none", "float64": "none", "bfloat16": "bf16", "float16": "fp16"}
"""What ``train.autocast: auto`` is for each ``model.dtype``."""


def contradictions(config: Config) -> list[str]:
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
