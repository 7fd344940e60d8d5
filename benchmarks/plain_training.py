"""Fine-tuning on JSON answers with the plain Hugging Face Trainer, as a careful user would write it.

Nothing of qwendet is used: images are decoded, resized and tokenised in the collator, padding is on the left,
everything but the answer is masked in the labels, and the loss is the model's own. It is what the speed
benchmarks compare with, and its loss must be qwendet's, with ``lm`` alone, to the fifth decimal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IGNORED = -100


class Collator:
    """Samples of the JSONL format to the model's inputs and labels.

    Args:
        model: a Hugging Face directory.
        root: folder that image paths start from.
        request: what the user's turn says after the image.
        system: text of the system turn; empty for no such turn.
        max_pixels: of the resized image.
        thousandths: boxes in thousandths of the image, not in pixels of the resized one.
    """

    def __init__(
        self, model: Path, root: Path, request: str, system: str, max_pixels: int, *, thousandths: bool
    ) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.images = Qwen2VLImageProcessorPil.from_pretrained(model)
        self.images.size["longest_edge"] = max_pixels
        self.root, self.request, self.system = root, request, system
        self.thousandths = thousandths

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate."""
        pictures = [Image.open(self.root / sample["images"][0]).convert("RGB") for sample in samples]
        pixels = self.images(images=pictures, return_tensors="pt")
        prompts, texts = [], []
        for sample, picture, grid in zip(samples, pictures, pixels["image_grid_thw"], strict=True):
            prompt = self.prompt(int(grid.prod()) // self.images.merge_size**2)
            prompts.append(prompt)
            texts.append(prompt + self.answer(sample["objects"], picture.size, grid) + "<|im_end|>")
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        labels = tokens["input_ids"].clone()
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            answer = len(self.tokenizer(text)["input_ids"]) - len(self.tokenizer(prompt)["input_ids"])
            labels[row, :-answer] = IGNORED
        kinds = (tokens["input_ids"] == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
        return {**tokens, **pixels, "labels": labels, "mm_token_type_ids": kinds}

    def prompt(self, image_tokens: int) -> str:
        """System turn, image and request."""
        content = [{"type": "image"}, {"type": "text", "text": self.request}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": content}]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)

    def answer(self, objects: Sequence[dict[str, Any]], size: tuple[int, int], grid: torch.Tensor) -> str:
        """Boxes by top, then left."""
        patch = self.images.patch_size
        width, height = int(grid[2]) * patch, int(grid[1]) * patch
        if self.thousandths:
            width = height = 1000
        scale = (width / size[0], height / size[1]) * 2
        rows = []
        for item in objects:
            box = [number * factor for number, factor in zip(item["bbox_2d"], scale, strict=True)]
            x1, y1, x2, y2 = (round(number) for number in box)
            x1, y1 = min(x1, width - 1), min(y1, height - 1)
            rows.append({"bbox_2d": [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)], "label": item["desc"]})
        rows.sort(key=lambda row: (row["bbox_2d"][1], row["bbox_2d"][0]))
        return json.dumps(rows)


def plain_trainer(
    model: Path,
    samples: Sequence[dict[str, Any]],
    collator: Collator,
    arguments: TrainingArguments,
    callback: TrainerCallback,
    **loading: Any,
) -> Trainer:
    """The Trainer for samples in the order given.

    Args:
        model: a Hugging Face directory.
        samples: records of a JSONL file.
        collator: makes the batches.
        arguments: the Trainer's.
        callback: is told of each step.
        loading: more arguments of ``from_pretrained``.
    """
    vlm = AutoModelForImageTextToText.from_pretrained(model, **loading)
    vlm.config.use_cache = False
    return Trainer(
        model=vlm,
        args=arguments,
        train_dataset=list(samples),
        data_collator=collator,
        callbacks=[callback],
    )
