"""``serving.json``: what a server of an exported model is started with, and what a client sends."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

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


def serving_of(bundle: Bundle, name: str, licence: str) -> dict[str, Any]:
    """What ``serving.json`` holds of a model that is about to be written; docs/serving.md explains it."""
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
    return {
        "family": family.model_type,
        "licence": licence or UNKNOWN_LICENCE,
        "dtype": bundle.config.model.dtype,
        "system": data.system_prompt or "",
        "request": request_text(data.request, bundle.request_labels),
        "labels": bundle.labels,
        "labels_per_request": data.labels_per_request,
        "answer_form": family.answer_form,
        "frame": family.frame,
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        "factor": images.patch_size * images.merge_size,
        "resizer": RESIZER,
        "chat_template_kwargs": settings,
        "sampling": {"temperature": 0, "max_tokens": answer} | NOT_SKIPPED[family.answer_form],
        "vllm": _line("vllm serve .", vllm),
        "sglang": _line(f"{most} python -m sglang.launch_server --model-path .", sglang),
        "limits": tuple(_limits(text, bundle.config.model.dtype, family.ignored_weights)),
    }


def _line(start: str, options: Mapping[str, Any]) -> str:
    words = (word for option in options.items() for word in option)
    return (
        f"{start} {shlex.join(json.dumps(word) if isinstance(word, dict) else str(word) for word in words)}"
    )


def _limits(text: Any, dtype: str, ignored: tuple[str, ...]) -> list[str]:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    limits = [f"no {name}: a server cannot draft with them" for name in ignored]
    if head not in VLLM_CPU_HEADS:
        sizes = ", ".join(map(str, VLLM_CPU_HEADS))
        limits.append(f"not for vLLM on a CPU: heads of {head}, its kernels take {sizes}")
    if "linear_attention" in decoder_layer_types(text) and dtype != "bfloat16":
        limits.append("not for vLLM on a CPU: it computes recurrent layers in bfloat16 alone")
    return limits
