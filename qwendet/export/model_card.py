"""The model card of an exported model: what it is, what it scored, and how to ask it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from qwendet.config.schema import Frame
from qwendet.export.serving import SERVING, UNKNOWN_LICENCE
from qwendet.families.chat import BOX_TEXT
from qwendet.families.choose import FAMILIES
from qwendet.families.family import AnswerForm
from qwendet.families.licence import APACHE
from qwendet.loading.manifest import HEAD_WEIGHTS, Manifest

HOW = """\
## How to ask it

These turns, the image before the text, with the model's own chat template:

{messages}

{settings}PIL resizes images to between {min_pixels} and {max_pixels} pixels, sides to multiples of {factor}.
The answer is {form},
{frame}, and y likewise.
Decode greedily, as `generation_config.json` says, with temperature 0 in each request to a server.

## How to serve it

In this directory, in text mode; `{file}` has the same for programs. vLLM:

{vllm}

SGLang:

{sglang}
"""
FORMS: dict[AnswerForm, str] = {
    "json": 'JSON, `[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]`',
    "box_tokens": f"for each box `{BOX_TEXT.format(label='label', x1='x1', y1='y1', x2='x2', y2='y2')}`",
}
FRAMES: dict[Frame, str] = {
    "pixels": "in pixels of the image **as resized**: multiply x by displayed width over resized width",
    "thousandths": "in thousandths of the image: multiply x by displayed width over 1000",
}


def render_card(trained: Manifest, serving: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Write the card."""
    family = FAMILIES[serving["family"]]
    front = f"---\n{_front_matter(trained, serving, metrics)}\n---\n# A {family.name} object detector"
    parts = [front, _facts(trained, serving, family.ignored_weights), _measured(metrics)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": ["<image>", serving["request"]]}]
    if serving["system"]:
        messages.insert(0, {"role": "system", "content": serving["system"]})
    template = serving["chat_template_kwargs"]
    how = HOW.format(
        messages=_fenced(messages),
        settings=f"The template is given `{json.dumps(template)}`.\n\n" if template else "",
        form=FORMS[serving["answer_form"]],
        frame=FRAMES[serving["frame"]],
        **{name: serving[name] for name in ("min_pixels", "max_pixels", "factor")},
        file=SERVING,
        vllm=_fenced(serving["vllm"], "bash"),
        sglang=_fenced(serving["sglang"], "bash"),
    )
    return "\n\n".join([*parts, how.rstrip(), "## Labels\n\n" + _fenced(serving["labels"])]) + "\n"


def _front_matter(trained: Manifest, serving: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Licence, base model and metrics, as the hub's pages read them."""
    base, name = trained.config.model, FAMILIES[serving["family"]].name
    is_apache, is_known = serving["licence"].lower() == APACHE.lower(), serving["licence"] != UNKNOWN_LICENCE
    results = [
        EvalResult("object-detection", "validation", "the run's validation samples", key, value)
        for key, value in metrics.items()
        if math.isfinite(value)
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["object-detection", name, "qwendet"],
        license="apache-2.0" if is_apache else "other" if is_known else None,
        license_name=serving["licence"] if is_known and not is_apache else None,
        base_model=base.path if base.revision is not None else None,
        model_name=f"{name} object detector" if results else None,
        eval_results=results or None,
    )
    return str(data)


def _facts(trained: Manifest, serving: Mapping[str, Any], ignored: Sequence[str]) -> str:
    model = trained.config.model
    facts = {
        "trained for": f"{trained.step} steps",
        "weights": f"{serving['dtype']}; in training {trained.dtype}",
        "attention in training": trained.attn_implementation,
        "detection head": f"{HEAD_WEIGHTS}, used by qwendet" if trained.head else "none",
        "coordinates of answers": trained.coordinates,
        "loss version": trained.loss_version,
        "licence of the base": serving["licence"],
        "made with": ", ".join(f"{name} {version}" for name, version in trained.versions.items()),
    }
    if model.revision is not None:
        facts["base model"] = f"{model.path} at {model.revision}"
    if ignored:
        facts["left out"] = f"{', '.join(ignored)}, which transformers does not load"
    if serving["limits"]:
        facts["limits"] = "; ".join(serving["limits"])
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


def _fenced(value: object, language: str = "json") -> str:
    """A line, or a value as JSON, in a fence that no backticks in it can close."""
    text = json.dumps(value, indent=1, ensure_ascii=False) if language == "json" else value
    fence = "`" * max(3, str(text).count("`") + 1)
    return f"{fence}{language}\n{text}\n{fence}"
