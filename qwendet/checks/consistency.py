"""``consistency.*``: the model that is trained is the model that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qwendet.checks import consistency_build as build
from qwendet.checks import consistency_compute as compute
from qwendet.checks import consistency_head as head
from qwendet.checks import consistency_images as images
from qwendet.checks import consistency_prompt as prompt
from qwendet.checks.noise import noise_is_small
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject

CHECKS: Mapping[str, Callable[[Subject], Verdict]] = {
    "consistency.build.classes": build.classes,
    "consistency.build.settings": build.settings,
    "consistency.build.parameters": build.parameters,
    "consistency.build.dtypes": build.dtypes,
    "consistency.build.tied": build.tied,
    "consistency.build.source": build.source,
    "consistency.prompt.prefix": prompt.prefix,
    "consistency.prompt.text": prompt.text,
    "consistency.prompt.template": prompt.template,
    "consistency.prompt.special_tokens": prompt.special_tokens,
    "consistency.prompt.tokenizer": prompt.tokenizer,
    "consistency.prompt.labels": prompt.labels,
    "consistency.prompt.loader": prompt.loader,
    "consistency.images.processor": images.processor,
    "consistency.images.pixels": images.pixels,
    "consistency.images.same": images.same,
    "consistency.images.answers": images.answers,
    "consistency.images.targets": images.targets,
    "consistency.images.text_boxes": images.text_boxes,
    "consistency.images.head_boxes": images.head_boxes,
    "consistency.compute.noise": noise_is_small,
    "consistency.compute.positions": compute.positions,
    "consistency.compute.padding": compute.padding,
    "consistency.compute.causal": compute.causal,
    "consistency.compute.served": compute.served,
    "consistency.compute.generation": compute.generation,
    "consistency.compute.attention": compute.attention,
    "consistency.compute.packed": compute.packed,
    "consistency.head.answer": head.answer,
    "consistency.head.mates": head.mates,
    "consistency.head.order": head.order,
    "consistency.head.cells": head.cells,
    "consistency.head.labels": head.labels,
    "consistency.head.scores": head.scores,
}
