"""The processor: the transformers class of the family without its video part, images always resized by PIL.

Published processors ask for torchvision, but only for videos. PIL and torchvision resize to different pixels,
so PIL is used for training and inference, and the manifest says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError
from transformers import AutoTokenizer, ProcessorMixin

from qwendet.encoding.prompts import conversation
from qwendet.errors import CheckpointError, Problem
from qwendet.families.chat import ASSISTANT, END_OF_TURN, IMAGE_TOKEN, THOUGHT, prompt_text
from qwendet.families.family import Family

RESIZER = "pil"
TOKENIZER_FIX = "copy the tokenizer's files from the model's origin"
TEMPLATE_FIX = "use the chat template that the model was published with, in training and at inference"
THOUGHT_FIX = "take a model that answers at once, such as one named Instruct, or the template of one"


class ImageTextProcessor(ProcessorMixin):
    """A published processor for images and text: the same ids, pixels and grids, no torchvision.

    Attributes:
        tokenizer: pads on the left.
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
    """Load tokenizer, chat template and image processor."""
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
    image_processor = getattr(transformers, family.resizer_class).from_pretrained(path)
    limits = dict(image_processor.size)
    image_processor.size = type(image_processor.size)(
        shortest_edge=limits["shortest_edge"] if min_pixels is None else min_pixels,
        longest_edge=limits["longest_edge"] if max_pixels is None else max_pixels,
    )
    return make_processor(family, image_processor, tokenizer)


def require_fitting(
    processor: ImageTextProcessor, vlm_config: Any, source: str, *, has_manifest: bool = False
) -> None:
    """Refuse tokenizer, chat template or image processor of another model."""
    problems = list(_unfitting(processor, vlm_config, source))
    if not problems and not has_manifest:
        problems = list(template_problems(processor.tokenizer, processor.family, source))
    if problems:
        raise CheckpointError.of(problems)


def _unfitting(processor: ImageTextProcessor, vlm_config: Any, source: str) -> Iterator[Problem]:
    tokenizer, size, wanted = processor.tokenizer, len(processor.tokenizer), vlm_config.image_token_id
    found, rows = tokenizer.get_vocab().get(IMAGE_TOKEN), vlm_config.text_config.vocab_size
    if found is None:
        what = (
            f"the tokenizer is not the model's: it has no {IMAGE_TOKEN}, as where tokenizer.json is missing"
        )
        yield Problem(what, source, TOKENIZER_FIX)
    elif found != wanted or size > rows:
        what = f"its {IMAGE_TOKEN} is {found} of {size} tokens, the model's {wanted} of {rows}"
        yield Problem(f"the tokenizer is not the model's: {what}", source, TOKENIZER_FIX)
    elif tokenizer.eos_token != END_OF_TURN or not processor.chat_template:
        what = f"expected a chat template and the end of turn {END_OF_TURN}, got {tokenizer.eos_token}"
        yield Problem(
            what, source, "copy tokenizer_config.json and the chat template from the model's origin"
        )
    images, vision = processor.image_processor, vlm_config.vision_config
    for own, name in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if (cut := getattr(images, own)) != (embedded := getattr(vision, name)):
            what = f"the image processor is not the model's: its {own} is {cut}, the model's {embedded}"
            yield Problem(what, source, "copy preprocessor_config.json from the model's origin")


def template_problems(tokenizer: Any, family: Family, name: str) -> Iterator[Problem]:
    """Where a tokenizer's or processor's chat template departs from the family's published format."""
    template = str(tokenizer.chat_template)
    settings = {name: value for name, value in family.template_settings.items() if name in template}
    for system in {"Be brief.", family.system_prompt}:
        messages = conversation(system, ["Where?"] * 2, ["[]"])
        due = prompt_text(system, ["Where?"] * 2, ["[]"], [1, 1], family.answer_prefix)
        for wanted, with_prompt in ((due, True), (due.removesuffix(ASSISTANT + family.answer_prefix), False)):
            try:
                found = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=with_prompt, **settings
                )
            except TemplateError as error:
                yield Problem(f"the chat template cannot be used: {error}", name, TEMPLATE_FIX)
                return
            if found != wanted:
                yield _difference(found, wanted, name, "with" if with_prompt else "without")
                return


def _difference(found: str, wanted: str, name: str, which: str) -> Problem:
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted))
    got, due = found[max(0, at - 12) : at + 12], wanted[max(0, at - 12) : at + 12]
    what = f"the chat template {which} a generation prompt writes {got!r} for {due!r}"
    if at > found.rfind(ASSISTANT) >= 0 and THOUGHT in found[found.rfind(ASSISTANT) :]:
        return Problem(f"{what}: it thinks before each answer", f"{name}, character {at}", THOUGHT_FIX)
    return Problem(what, f"{name}, character {at}", TEMPLATE_FIX)


def save_processor(processor: ImageTextProcessor, folder: Path) -> None:
    """Write the published layout, which ``AutoProcessor`` loads without qwendet.

    Saved as it is, the processor would name its own class, and ``AutoProcessor`` would then return a
    bare tokenizer without a word. The pixel limits stand there by every name that a server reads.
    """
    processor.tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")
    image_processor, family = processor.image_processor, processor.family
    size = {edge: image_processor.size[edge] for edge in ("shortest_edge", "longest_edge")}
    facts: dict[str, Any] = {
        "patch_size": image_processor.patch_size,
        "temporal_patch_size": image_processor.temporal_patch_size,
        "merge_size": image_processor.merge_size,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "image_processor_type": family.image_processor_class,
        "processor_class": family.processor_class,
        "size": size,
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _forget_origin(path: Path) -> None:
    """Remove how the tokenizer was loaded, which transformers writes among what it is."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
