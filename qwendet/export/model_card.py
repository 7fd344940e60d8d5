"""The model card of an exported model: what it is, what it scored, and how to ask it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qwendet.config.schema import Config, Frame
from qwendet.encoding.prompts import request_text
from qwendet.families.chat import BOX_TEXT
from qwendet.families.family import AnswerForm, Family
from qwendet.loading.checkpoint import HEAD_WEIGHTS, Manifest

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [object-detection, {family}, qwendet]
---
# A {family} object detector"""

HOW = """\
## How to ask it

One system turn and one user turn, the image before the text, with the model's own chat template:

{messages}

{settings}PIL resizes images to between {min_pixels} and {max_pixels} pixels, sides to multiples of {factor}.
The answer is {form},
{frame}, and y likewise.
Decode greedily, as `generation_config.json` says.
"""
FORMS: dict[AnswerForm, str] = {
    "json": 'JSON, `[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]`',
    "box_tokens": f"for each box `{BOX_TEXT.format(label='label', x1='x1', y1='y1', x2='x2', y2='y2')}`",
}
FRAMES: dict[Frame, str] = {
    "pixels": "in pixels of the image **as resized**: multiply x by displayed width over resized width",
    "thousandths": "in thousandths of the image: multiply x by displayed width over 1000",
}


def render_card(
    trained: Manifest, config: Config, family: Family, metrics: Mapping[str, float], factor: int
) -> str:
    """Write the card.

    Args:
        trained: manifest of the checkpoint that was exported.
        config: config of the exported model.
        family: of the model.
        metrics: what the run measured on its validation samples; may be empty.
        factor: side of an image token in pixels.
    """
    parts = [FRONT_MATTER.format(family=family.name), _facts(trained, config, family), _measured(metrics)]
    request = request_text(config.data.request, trained.labels)
    messages: list[dict[str, Any]] = [{"role": "user", "content": ["<image>", request]}]
    if config.data.system_prompt:
        messages.insert(0, {"role": "system", "content": config.data.system_prompt})
    how = HOW.format(
        messages=_fenced(messages),
        settings=_settings(family),
        form=FORMS[family.answer_form],
        frame=FRAMES[family.frame],
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        factor=factor,
    )
    return "\n\n".join([*parts, how.rstrip(), "## Labels\n\n" + _fenced(trained.labels)]) + "\n"


def _settings(family: Family) -> str:
    """What the chat template is given besides."""
    given = json.dumps(dict(family.template_settings))
    return f"The template is given `{given}`.\n\n" if family.template_settings else ""


def _facts(trained: Manifest, config: Config, family: Family) -> str:
    model = trained.config.model
    facts = {
        "trained for": f"{trained.step} steps",
        "weights": f"{config.model.dtype}; in training {trained.dtype}",
        "attention in training": trained.attn_implementation,
        "detection head": f"{HEAD_WEIGHTS}, used by qwendet" if trained.head else "none",
        "coordinates of answers": trained.coordinates,
        "loss version": trained.loss_version,
        "made with": ", ".join(f"{name} {version}" for name, version in trained.versions.items()),
    }
    if model.revision is not None:
        facts["base model"] = f"{model.path} at {model.revision}"
    if family.ignored_weights:
        facts["left out"] = f"{', '.join(family.ignored_weights)}, which transformers does not load"
    if model.lora is not None:
        facts["merged"] = (
            f"a LoRA adapter of rank {model.lora.rank} on a base with fingerprint {model.lora.fingerprint}"
        )
    return _table(("what", "value"), facts)


def _measured(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "## Measured\n\nNo metrics lay beside the checkpoint."
    values = {name: f"{value:.4f}" for name, value in metrics.items()}
    return "## Measured\n\nOn the validation samples, at the end of training.\n\n" + _table(
        ("metric", "value"), values
    )


def _table(columns: tuple[str, str], rows: Mapping[str, object]) -> str:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    return "\n".join(
        lines + [f"| {_escaped(name)} | {_escaped(str(value))} |" for name, value in rows.items()]
    )


def _escaped(text: str) -> str:
    """Text that cannot leave its cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _fenced(value: object) -> str:
    """A value as JSON in a fence that no backticks in it can close."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    fence = "`" * max(3, text.count("`") + 1)
    return f"{fence}json\n{text}\n{fence}"
