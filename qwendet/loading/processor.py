"""The processor: the published class without its video part, images always resized by PIL.

The published ``Qwen2_5_VLProcessor`` asks for torchvision only for videos. PIL and torchvision
resize to different pixels, so PIL is used for training and inference, and the manifest says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from qwendet.encoding.encode import END_OF_TURN
from qwendet.errors import CheckpointError

PUBLISHED_CLASS = "Qwen2_5_VLProcessor"
RESIZER = "pil"


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """``Qwen2_5_VLProcessor`` for images and text: the same ids, pixels and grids, no torchvision."""

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            image_processor, tokenizer, None, chat_template=chat_template, **kwargs
        )

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Parts of the processor."""
        return ["image_processor", "tokenizer"]


def load_processor(path: str, min_pixels: int | None, max_pixels: int | None) -> ImageTextProcessor:
    """Load tokenizer, chat template and image processor.

    Args:
        path: directory.
        min_pixels: images are enlarged to at least this many pixels; ``None`` keeps the stored limit.
        max_pixels: images are shrunk to at most this many pixels; ``None`` keeps the stored limit.

    Returns:
        A processor that pads on the left.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    limits = dict(image_processor.size)
    image_processor.size = type(image_processor.size)(
        shortest_edge=limits["shortest_edge"] if min_pixels is None else min_pixels,
        longest_edge=limits["longest_edge"] if max_pixels is None else max_pixels,
    )
    return ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def require_fitting(processor: ImageTextProcessor, vlm_config: Any, source: str) -> None:
    """Refuse a tokenizer of another model, which transformers makes up where files are missing.

    Args:
        processor: as loaded.
        vlm_config: of the published model.
        source: where both are from, for the message.

    Raises:
        CheckpointError: if tokens, vocabulary, end of turn or chat template are not the model's.
    """
    tokenizer = processor.tokenizer
    image_token_id = tokenizer.get_vocab().get("<|image_pad|>")
    if image_token_id != vlm_config.image_token_id or len(tokenizer) > vlm_config.text_config.vocab_size:
        raise CheckpointError(
            f"the tokenizer is not the model's: its <|image_pad|> is {image_token_id},"
            f" the model's {vlm_config.image_token_id}",
            source,
            "copy the tokenizer's files from the model's origin",
        )
    if tokenizer.eos_token != END_OF_TURN or not processor.chat_template:
        raise CheckpointError(
            f"expected a chat template and the end of turn {END_OF_TURN}, got {tokenizer.eos_token}",
            source,
            "copy tokenizer_config.json and the chat template from the model's origin",
        )


def save_processor(processor: ImageTextProcessor, folder: Path) -> None:
    """Write the published layout, which ``AutoProcessor`` loads without qwendet.

    Saved as it is, the processor would name its own class, and ``AutoProcessor`` would then return a
    bare tokenizer without a word.
    """
    processor.tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")
    image_processor = processor.image_processor
    facts = {
        "min_pixels": image_processor.size["shortest_edge"],
        "max_pixels": image_processor.size["longest_edge"],
        "patch_size": image_processor.patch_size,
        "temporal_patch_size": image_processor.temporal_patch_size,
        "merge_size": image_processor.merge_size,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": PUBLISHED_CLASS,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _forget_origin(path: Path) -> None:
    """Remove how the tokenizer was loaded, which transformers writes among what it is."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
