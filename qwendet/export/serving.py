"""``serving.json``: what a server of an exported model is started with, and what a client sends."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwendet.config.schema import Frame
from qwendet.encoding.prompts import request_text
from qwendet.families.family import AnswerForm, decoder_layer_types
from qwendet.loader import Bundle
from qwendet.loading.processor import RESIZER

SERVING = "serving.json"
VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of the language model's heads that vLLM 0.32 computes on a CPU."""
UNKNOWN_LICENCE = "unknown, see the base"
NOT_SKIPPED: dict[AnswerForm, dict[str, bool]] = {"json": {}, "box_tokens": {"skip_special_tokens": False}}
"""Servers leave special tokens out of a text, so that nothing of a box would remain."""


@dataclass(frozen=True)
class Serving:
    """How a model is served in text mode, and asked.

    Attributes:
        system: text of the system turn; empty for none.
        request: text after the image, labels filled in.
        labels_per_request: a request names so many of them at a time; ``None`` names all.
        answer_form: of the boxes in answers: ``json`` or ``box_tokens``.
        frame: of their coordinates: ``pixels`` of the resized image, or ``thousandths`` of the image.
        factor: both sides of a resized image are multiples of it.
        resizer: what resized the images in training; bicubic.
        chat_template_kwargs: what the chat template is given besides.
        vllm: the line that starts vLLM in the exported directory.
        sglang: the same of SGLang.
        limits: what a server cannot do with it.
    """

    family: str
    licence: str
    dtype: str
    system: str
    request: str
    labels: tuple[str, ...]
    labels_per_request: int | None
    answer_form: AnswerForm
    frame: Frame
    min_pixels: int
    max_pixels: int
    factor: int
    resizer: str
    chat_template_kwargs: Mapping[str, bool]
    sampling: Mapping[str, int | bool]
    vllm: str
    sglang: str
    limits: tuple[str, ...]


def serving_of(bundle: Bundle, name: str, licence: str) -> Serving:
    """What ``serving.json`` holds of a model that is about to be written."""
    data, family, images = bundle.config.data, bundle.processor.family, bundle.processor.image_processor
    text = bundle.detector.vlm.config.get_text_config()
    answer = bundle.config.infer.max_new_tokens
    size = {edge: images.size[edge] for edge in ("shortest_edge", "longest_edge")}
    shown = {"image": 1 + (data.num_teachers if data.teacher_ratio else 0)}
    settings = dict(family.template_settings)
    context = min(data.max_tokens + answer, text.max_position_embeddings)
    vllm: dict[str, Any] = {
        "--served-model-name": name,
        "--dtype": bundle.config.model.dtype,
        "--max-model-len": context,
        "--limit-mm-per-prompt": shown,
        "--mm-processor-kwargs": {"size": size},
        "--override-generation-config": {"temperature": 0},
    }
    if settings:
        vllm["--default-chat-template-kwargs"] = settings
    sglang = {
        "--served-model-name": name,
        "--dtype": bundle.config.model.dtype,
        "--context-length": context,
        "--limit-mm-data-per-request": shown,
        "--mm-process-config": {"image": {"size": size}},
    }
    most = f"SGLANG_IMAGE_MAX_PIXELS={size['longest_edge']}"
    return Serving(
        family=family.model_type,
        licence=licence or UNKNOWN_LICENCE,
        dtype=bundle.config.model.dtype,
        system=data.system_prompt or "",
        request=request_text(data.request, bundle.request_labels),
        labels=bundle.labels,
        labels_per_request=data.labels_per_request,
        answer_form=family.answer_form,
        frame=family.frame,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        factor=images.patch_size * images.merge_size,
        resizer=RESIZER,
        chat_template_kwargs=settings,
        sampling={"temperature": 0, "max_tokens": answer} | NOT_SKIPPED[family.answer_form],
        vllm=_line("vllm serve .", vllm),
        sglang=_line(f"{most} python -m sglang.launch_server --model-path .", sglang),
        limits=tuple(_limits(text, bundle.config.model.dtype, family.ignored_weights)),
    )


def _line(start: str, options: Mapping[str, Any]) -> str:
    words = (word for name, value in options.items() for word in (name, _word(value)))
    return f"{start} {shlex.join(words)}"


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _limits(text: Any, dtype: str, ignored: tuple[str, ...]) -> list[str]:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    limits = [f"no {name}: a server cannot draft with them" for name in ignored]
    if head not in VLLM_CPU_HEADS:
        sizes = ", ".join(map(str, VLLM_CPU_HEADS))
        limits.append(f"not for vLLM on a CPU: heads of {head}, its kernels take {sizes}")
    if "linear_attention" in decoder_layer_types(text) and dtype != "bfloat16":
        limits.append("not for vLLM on a CPU: it computes recurrent layers in bfloat16 alone")
    return limits
