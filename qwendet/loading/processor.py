"""The processor: the published class of the family without its video part, images always resized by PIL.

Published processors ask for torchvision, but only for videos. PIL and torchvision resize to different pixels,
so PIL is used for training and inference, and the manifest says so.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, ProcessorMixin

from qwendet.errors import CheckpointError
from qwendet.families.chat import END_OF_TURN, IMAGE_TOKEN
from qwendet.families.family import Family

RESIZER = "pil"


class ImageTextProcessor(ProcessorMixin):
    """A published processor for images and text: the same ids, pixels and grids, no torchvision.

    Attributes:
        family: of the model that it belongs to.
        tokenizer: pads on the left.
        image_processor: PIL's.
    """

    family: Family
    tokenizer: Any
    image_processor: Any

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Parts of the processor."""
        return ["image_processor", "tokenizer"]


def make_processor(family: Family, image_processor: Any, tokenizer: Any) -> ImageTextProcessor:
    """Put a processor together; the chat template is the tokenizer's."""
    made: ImageTextProcessor = _class_of(family)(
        image_processor, tokenizer, None, chat_template=tokenizer.chat_template
    )
    return made


@cache
def _class_of(family: Family) -> Any:
    published = getattr(transformers, family.processor_class)
    return type(ImageTextProcessor.__name__, (ImageTextProcessor, published), {"family": family})


def load_processor(
    path: str, family: Family, min_pixels: int | None, max_pixels: int | None
) -> ImageTextProcessor:
    """Load tokenizer, chat template and image processor.

    Args:
        path: directory.
        family: of the model that they belong to.
        min_pixels: images are enlarged to at least this many pixels; ``None`` keeps the stored limit.
        max_pixels: images are shrunk to at most this many pixels; ``None`` keeps the stored limit.

    Returns:
        A processor that pads on the left.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
    image_processor = getattr(transformers, family.resizer_class).from_pretrained(path)
    limits = dict(image_processor.size)
    image_processor.size = type(image_processor.size)(
        shortest_edge=limits["shortest_edge"] if min_pixels is None else min_pixels,
        longest_edge=limits["longest_edge"] if max_pixels is None else max_pixels,
    )
    return make_processor(family, image_processor, tokenizer)


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
    image_token_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if image_token_id != vlm_config.image_token_id or len(tokenizer) > vlm_config.text_config.vocab_size:
        raise CheckpointError(
            f"the tokenizer is not the model's: its {IMAGE_TOKEN} is {image_token_id},"
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
    image_processor, family = processor.image_processor, processor.family
    least, most = (image_processor.size[edge] for edge in ("shortest_edge", "longest_edge"))
    facts: dict[str, Any] = {
        "patch_size": image_processor.patch_size,
        "temporal_patch_size": image_processor.temporal_patch_size,
        "merge_size": image_processor.merge_size,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "image_processor_type": family.image_processor_class,
        "processor_class": family.processor_class,
    }
    if family.limits_as_size:
        facts["size"] = {"shortest_edge": least, "longest_edge": most}
    else:
        facts |= {"min_pixels": least, "max_pixels": most}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _forget_origin(path: Path) -> None:
    """Remove how the tokenizer was loaded, which transformers writes among what it is."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
