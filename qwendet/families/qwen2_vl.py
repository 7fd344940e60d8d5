"""Qwen2-VL: box tokens, thousandths of the image, full attention in vision tower and decoder."""

from __future__ import annotations

from qwendet.families.family import Family, PixelLimits

QWEN2_VL = Family(
    model_type="qwen2_vl",
    name="Qwen2-VL",
    model_class="Qwen2VLForConditionalGeneration",
    processor_class="Qwen2VLProcessor",
    image_processor_class="Qwen2VLImageProcessor",
    resizer_class="Qwen2VLImageProcessorPil",
    frame="thousandths",
    answer_form="box_tokens",
    limits=PixelLimits(3_136, 12_845_056, unit=28),
    image_mean=(0.48145466, 0.4578275, 0.40821073),  # CLIP's
    image_std=(0.26862954, 0.26130258, 0.27577711),
    request="Output the bounding box of every {labels}.",
    system_prompt="You are a helpful assistant.",
    answer_prefix="",
    merger=("model.visual.merger.",),
    lora={
        "language": r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        "merger": r"model\.visual\.merger\.mlp\.[02]",
    },
    licences={"72B": "Tongyi Qianwen, conditions for commercial use"},
)
