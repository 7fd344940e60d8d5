"""Drafted text answers beside plain ones and ``transformers.generate``, on a trained checkpoint.

Part of ``python -m benchmarks.infer --demo runs/demo``.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_model import MODEL_INPUTS

NEW_TOKENS = 400
LARGE = 8
WRONG_BOXES = 20


class Answering:
    """A checkpoint and the ways in which it answers.

    Args:
        checkpoint: a trained one with a head.
        dtype: that it computes in.
    """

    def __init__(self, checkpoint: Path, dtype: str = "float32") -> None:
        from qwendet.inference.drafts import AnswerDrafts
        from qwendet.inference.predictor import Predictor

        overrides = [f"model.dtype={dtype}", "model.device=cpu"]
        self.predictor = Predictor.from_checkpoint(checkpoint, overrides=overrides)
        self.detector = self.predictor.bundle.detector.eval()
        self.tokenizer = self.predictor.bundle.processor.tokenizer
        self.drafts = AnswerDrafts(self.predictor.bundle)
        self.forwards = self.coins = 0
        self.detector.vlm.model.language_model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    def plain(self, samples: Sequence[Any]) -> list[str]:
        """A token at a time."""
        return self._answers(samples, None)

    def drafted(self, samples: Sequence[Any]) -> list[str]:
        """By the head's boxes."""
        return self._answers(samples, self.predictor._by_head)

    def drafted_without_head(self, samples: Sequence[Any]) -> list[str]:
        """By the form and what the answer repeats."""
        return self._answers(samples, lambda _, items, batch: [None for _ in items])

    def drafted_by_wrong_boxes(self, samples: Sequence[Any]) -> list[str]:
        """By boxes drawn at random, of whose every one the head is sure."""
        return self._answers(samples, lambda _, items, batch: [*map(self._drawn, items)])

    def _drawn(self, item: Any) -> list[Any]:
        from qwendet.inference.detections import Detection

        width, height = item.image_size
        source = random.Random(f"{width} {height}")

        def drawn() -> Any:
            box = (
                source.uniform(0, width / 2),
                source.uniform(0, height / 2),
                source.uniform(width / 2, width),
                source.uniform(height / 2, height),
            )
            return Detection(box, source.choice(self.predictor.bundle.labels), 1.0, "head")

        return [drawn() for _ in range(WRONG_BOXES)]

    def _answers(self, samples: Sequence[Any], by_head: Callable[..., Any] | None) -> list[str]:
        from qwendet.inference.generation import generate_answers

        items, batch = self._batch(samples)

        def drafting(head: Any) -> Any:
            assert by_head is not None
            return [*map(self.drafts.of, items, by_head(head, items, batch))]

        drafters = None if by_head is None else drafting
        answers = generate_answers(self.detector, self.tokenizer, batch, NEW_TOKENS, drafting=drafters)
        self.tokens = sum(len(answer.log_probs) + (not answer.truncated) for answer in answers)
        return [answer.text for answer in answers]

    def generated(self, samples: Sequence[Any]) -> list[str]:
        """By transformers' own loop."""
        import torch

        _, batch = self._batch(samples)
        inputs = {key: batch[key] for key in MODEL_INPUTS}
        with torch.inference_mode():
            ids = self.detector.vlm.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = ids[:, batch["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    def _batch(self, samples: Sequence[Any]) -> Any:
        items = [self.predictor.encoder.encode(sample, with_answer=False) for sample in samples]
        return items, self.predictor.collator(items)


def draft_figures(checkpoint: Path, samples: Sequence[Any], rounds: int) -> dict[str, float]:
    """Ratios of times, medians of rounds in which the ways take turns, and how many answers differ.

    Args:
        checkpoint: a trained one with a head.
        samples: to answer.
        rounds: times that each way runs.
    """
    answering = Answering(checkpoint)
    ways = {
        "generate": answering.generated,
        "plain": answering.plain,
        "draft": answering.drafted,
        "draft_nohead": answering.drafted_without_head,
        "draft_wrong": answering.drafted_by_wrong_boxes,
    }
    figures: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    for size in (1, LARGE):
        seconds: list[dict[str, float]] = []
        for _ in range(rounds):
            seconds.append({})
            for way, act in ways.items():
                answering.forwards = tokens = 0
                started, texts[way] = time.perf_counter(), []
                for first in range(0, len(samples), size):
                    texts[way] += act(samples[first : first + size])
                    tokens += getattr(answering, "tokens", 0)
                seconds[-1][way] = time.perf_counter() - started
                if size == 1 and way.startswith("draft"):
                    figures[f"{way}_tokens_per_forward"] = tokens / answering.forwards
        for way in ("plain", "draft", "draft_nohead", "draft_wrong"):
            ratio = statistics.median(row["generate"] / row[way] for row in seconds)
            figures[f"{way}_over_generate_b{size}"] = ratio
            differ = sum(a != b for a, b in zip(texts[way], texts["generate"], strict=True))
            figures["answers_differ"] = figures.get("answers_differ", 0) + differ
        print(f"batch {size}: {seconds[-1]}", flush=True)
    return figures


def half_precision(checkpoint: Path, samples: Sequence[Any]) -> int:
    """How many drafted answers differ from plain ones in bfloat16, eight at a time."""
    answering = Answering(checkpoint, "bfloat16")
    pairs = (
        (answering.plain(chunk), answering.drafted(chunk))
        for chunk in (samples[first : first + LARGE] for first in range(0, len(samples), LARGE))
    )
    return sum(a != b for plain, drafted in pairs for a, b in zip(plain, drafted, strict=True))
