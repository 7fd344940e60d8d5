"""Qwen3.5, which Qwen3.6 and Qwen3.8 are too: three of four decoder layers are recurrent (Gated DeltaNet).

Its text answers are written a token at a time: a recurrent state cannot be cut back to the tokens of a draft
that hold. To keep it and read them again would take two blocks where one is read elsewhere, and a block costs
more than a token here: docs/performance.md.
"""

from __future__ import annotations

from dataclasses import replace

from qwendet.families.qwen3_vl import QWEN3_VL

QWEN3_5 = replace(
    QWEN3_VL,
    model_type="qwen3_5",
    name="Qwen3.5",
    other_names=("Qwen3.6", "Qwen3.8"),
    model_class="Qwen3_5ForConditionalGeneration",
    template_settings={"enable_thinking": False, "preserve_thinking": False},
    answer_prefix="<think>\n\n</think>\n\n",
    merger=("model.visual.merger.",),
    lora={
        **QWEN3_VL.lora,
        "language": r"model\.language_model\.layers\.\d+\."
        r"((self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj|linear_attn\.(in_proj_\w+|out_proj))",
        "merger": r"model\.visual\.merger\.linear_fc[12]",
    },
    packing_refusal="its recurrent layers carry their state from one packed sample into the next",
    ignored_weights=("mtp.*",),
)
