"""Qwen3-VL: JSON, thousandths of the image, patches of 16, features of three vision layers in the decoder.

They come through mergers of their own (deepstack), which belong to the part ``merger``.
"""

from __future__ import annotations

from dataclasses import replace

from qwendet.families.family import PixelLimits
from qwendet.families.qwen2_vl import QWEN2_VL

QWEN3_VL = replace(
    QWEN2_VL,
    model_type="qwen3_vl",
    name="Qwen3-VL",
    model_class="Qwen3VLForConditionalGeneration",
    processor_class="Qwen3VLProcessor",
    image_processor_class="Qwen2VLImageProcessorFast",
    answer_form="json",
    limits=PixelLimits(65_536, 16_777_216, unit=32),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    request='Locate every instance that belongs to the following categories: "{labels}".'
    " Report bbox coordinates in JSON format.",
    system_prompt="",
    merger=("model.visual.merger.", "model.visual.deepstack_merger_list."),
    lora={
        **QWEN2_VL.lora,
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        "merger": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
    },
    licences={},
)
