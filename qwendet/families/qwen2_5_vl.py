"""Qwen2.5-VL: JSON, pixels of the resized image, a vision tower that attends within windows."""

from __future__ import annotations

from dataclasses import replace

from qwendet.families.qwen2_vl import QWEN2_VL

QWEN2_5_VL = replace(
    QWEN2_VL,
    model_type="qwen2_5_vl",
    name="Qwen2.5-VL",
    model_class="Qwen2_5_VLForConditionalGeneration",
    processor_class="Qwen2_5_VLProcessor",
    frame="pixels",
    answer_form="json",
    request="Locate every item from the category list in the image and output the coordinates in JSON format."
    " The category set includes {labels}.",
    lora={
        **QWEN2_VL.lora,
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
    },
    licences={"3B": "Qwen Research, non-commercial", "72B": "Qwen, conditions for commercial use"},
)
