"""Images to detections: by the head in one forward, by generated text, or both.

    sample ─► encode ─► forward ─► head ─► boxes in the unit square ──────────────┐
                    └─► generate ─► text ─► boxes in the frame of the answer ─────┴► displayed pixels

The prompt is, token for token, what training saw before the answer.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image

from qwendet.answers.grammar import AnswerGrammar
from qwendet.boxes import clip_xyxy, cxcywh_to_xyxy
from qwendet.data.images import image_size
from qwendet.data.labels import label_chunks
from qwendet.data.samples import Sample
from qwendet.encoding.collate import Batch, require_left_padding, to_device
from qwendet.encoding.encode import EncodedSample
from qwendet.encoding.image_tokens import num_image_tokens
from qwendet.inference.asked import Asked, config_to_ask, in_words, sources_of
from qwendet.inference.batches import Keep, Plan, Results, Skipped, predict_in_memory, skipping
from qwendet.inference.constrained_decoding import AnswerConstraint, AnswerVocabulary
from qwendet.inference.detections import Detection, Prediction, Source, joined
from qwendet.inference.drafts import AnswerDrafter, AnswerDrafts
from qwendet.inference.generation import generate_answers
from qwendet.inference.inputs import sample_of_image
from qwendet.inference.text_answers import (
    NO_TEXT,
    answer_size,
    has_area,
    prediction_of,
    read_answer,
    rounded,
)
from qwendet.inference.tiles import Tiles
from qwendet.loader import Bundle, load
from qwendet.model.head import HeadOutput
from qwendet.progress import Advance, no_advance

logger = logging.getLogger("qwendet")

TOKENS_OF_A_BOX = 39
"""Of an answer, in the published tokens; only the order of samples depends on it."""


class Predictor:
    """Predicts with a model.

    Args:
        bundle: the model, loaded for inference or fresh from training.

    Example:
        >>> predictor = Predictor.from_checkpoint("run/final")  # doctest: +SKIP
        >>> predictor.predict_image("photo.jpg").detections  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.encoder = bundle.encoder()
        self.collator = bundle.collator()
        self._alphabet: frozenset[int] = frozenset()
        self._vocabulary: AnswerVocabulary

    @classmethod
    def from_checkpoint(cls, folder: str | Path, **asked: Unpack[Asked]) -> Predictor:
        """Load a checkpoint with its own prompts, pixel limits and labels, or any model of a family.

        Args:
            folder: a checkpoint; a model that this project did not train, in a folder or on the hub, which is
                asked in text as its family's publication does.
            asked: other labels, ``overrides=["key=value"]``; see :class:`~qwendet.inference.asked.Asked`.

        Raises:
            QwendetError: as :func:`~qwendet.inference.asked.config_to_ask`.
        """
        config, is_foreign = config_to_ask(folder, **asked)
        bundle = load(config, for_inference=True)
        if is_foreign:
            logger.info("%s: %s", folder, in_words(bundle.origin()))
        return cls(bundle)

    def origin(self) -> dict[str, Any]:
        """Who trained the model, and how it is asked."""
        return self.bundle.origin()

    def predict_image(self, path: str | Path, mode: str | None = None) -> Prediction:
        """Predict one image file."""
        return next(self.predict([sample_of_image(Path(path))], mode))

    def predict_all(
        self,
        samples: Sequence[Sample],
        mode: str | None = None,
        advance: Advance = no_advance,
        *,
        alone: bool = False,
    ) -> list[Prediction]:
        """Predict samples by all processes of the launcher together; each has all predictions in order.

        Batches are of similar length, so that little is padded; the longest come first, so that memory
        that is lacking shows at once. ``alone``, this process predicts all of them for itself.
        """
        plan = Plan(samples, self.batch_size, length=self._num_tokens)
        return predict_in_memory(partial(self.predict_batches, plan, mode=mode), plan, advance, alone=alone)

    def plan(self, samples: Sequence[Sample], window: int) -> Plan:
        """The batches that samples are predicted in, of similar length within ``window`` samples."""
        return Plan(samples, self.batch_size, window, self._num_tokens)

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.bundle.config.infer.batch_size

    def predict_batches(
        self,
        plan: Plan,
        batches: Iterable[int],
        keep: Keep,
        *,
        mode: str | None = None,
        skip_bad: bool = False,
    ) -> None:
        """Predict batches of a plan, and tell ``keep`` the results of each.

        With ``skip_bad`` a sample that cannot be used is :class:`Skipped`, and does not end the run.
        """
        tiles, sources = Tiles(self.bundle.config.infer, self.encoder.limits), self.sources(mode)
        self.bundle.detector.eval()
        for number in batches:
            keep(number, self._predict_views(plan, number, tiles, sources, skip_bad=skip_bad))

    def _predict_views(
        self, plan: Plan, number: int, tiles: Tiles, sources: Sequence[Source], *, skip_bad: bool
    ) -> Results:
        """Predict a batch of samples, the requests about all their views in batches of their own."""
        results: Results = {}
        views: dict[int, list[Sample]] = {}

        def tell(index: int) -> Callable[[Skipped], None]:
            return partial(results.__setitem__, index)

        def requests(index: int, view: Sample) -> Iterator[EncodedSample]:
            with skipping(skip_bad, tell(index)):
                yield from self.requests(view, sources)

        for index in plan.batch(number):
            with skipping(skip_bad, tell(index)):
                views[index] = tiles.views(plan.samples[index])
        shown = [(index, view) for index, own in views.items() for view in own]
        parts = self._parts([view for _, view in shown], [requests(*place) for place in shown], sources)
        found: dict[int, list[Prediction]] = defaultdict(list)
        for (index, view), own in zip(shown, parts, strict=True):
            if index not in results:
                found[index].append(self._joined(view, own))
        return results | {index: tiles.merged(views[index], own) for index, own in found.items()}

    def _num_tokens(self, sample: Sample) -> int:
        """About as many as the prompt will have, beside what all prompts have: images and shown boxes."""
        shown = sum(len(turn.objects) for turn in sample.teachers) * TOKENS_OF_A_BOX
        sizes = (
            turn.declared_size or image_size(turn.image, turn.root, sample.where)
            for turn in (*sample.teachers, sample.student)
        )
        return shown + sum(num_image_tokens(size, self.encoder.limits) for size in sizes)

    def predict(self, samples: Iterable[Sample], mode: str | None = None) -> Iterator[Prediction]:
        """Predict samples, in batches of ``infer.batch_size``, in order; large images by ``infer.tiles``.

        Args:
            samples: the student turn is asked for, teachers are shown.
            mode: ``head``, ``text`` or ``both``; ``None`` takes ``infer.mode``.

        Raises:
            ConfigError: if the head is asked for and there is none.
            DataError: for an image that cannot be used.
        """
        remaining = iter(samples)
        while chunk := list(islice(remaining, self.batch_size)):
            plan = Plan(chunk, self.batch_size)
            ask = partial(self.predict_batches, plan, mode=mode)
            yield from predict_in_memory(ask, plan, no_advance, alone=True)

    def sources(self, mode: str | None = None) -> tuple[Source, ...]:
        """What answers in a mode; ``None`` takes ``infer.mode``."""
        has_head = self.bundle.detector.head is not None
        return sources_of(mode or self.bundle.config.infer.mode, has_head=has_head)

    def requests(
        self, sample: Sample, sources: Sequence[Source], images: Sequence[Image.Image] | None = None
    ) -> Iterator[EncodedSample]:
        """What is asked about a sample: one request, or one for each ``data.labels_per_request`` labels.

        The head sees nothing of the request, which stands behind the image: one forward is for all labels,
        but where demonstrations show some of them.
        """
        labels = self.bundle.labels
        chunks = label_chunks(sample, labels, self.bundle.config.data.labels_per_request)
        scored = (sample.student.labels or labels) if "head" in sources and not sample.teachers else None
        for chunk in chunks if scored is None or "text" in sources else chunks[:1]:
            yield self.encoder.encode(chunk, with_answer=False, images=images, scored=scored)
            scored = None

    def predict_requests(
        self,
        samples: Sequence[Sample],
        requests: Sequence[Iterable[EncodedSample]],
        sources: Sequence[Source],
    ) -> list[Prediction]:
        """Predict samples by the :meth:`requests` of each, in batches of ``infer.batch_size``."""
        return [*map(self._joined, samples, self._parts(samples, requests, sources))]

    def _parts(
        self,
        samples: Sequence[Sample],
        requests: Sequence[Iterable[EncodedSample]],
        sources: Sequence[Source],
    ) -> list[list[Prediction]]:
        """A prediction of each request about each sample."""
        parts: list[list[Prediction]] = [[] for _ in samples]
        waiting = ((number, item) for number, items in enumerate(requests) for item in items)
        while batch := list(islice(waiting, self.batch_size)):
            numbers, items = zip(*batch, strict=True)
            found = self.predict_encoded([samples[number] for number in numbers], items, sources)
            for number, prediction in zip(numbers, found, strict=True):
                parts[number].append(prediction)
        return parts

    def _joined(self, sample: Sample, parts: Sequence[Prediction]) -> Prediction:
        return joined(parts, self.bundle.config.infer, head_of_first=not sample.teachers)

    @torch.inference_mode()
    def predict_encoded(
        self, samples: Sequence[Sample], encoded: Sequence[EncodedSample], sources: Sequence[Source]
    ) -> list[Prediction]:
        """Predict a batch of samples that are encoded already, without their answers."""
        collated = self.collator(encoded)
        require_left_padding(collated)
        batch = to_device(collated, self.bundle.detector.device)
        infer = self.bundle.config.infer
        is_drafted = "text" in sources and infer.draft == "auto"
        by_head: Sequence[Sequence[Detection] | None] = [None for _ in samples]
        by_text = [NO_TEXT for _ in samples]

        def drafting(head: HeadOutput | None) -> list[AnswerDrafter]:
            nonlocal by_head
            if head is not None:
                by_head = [*self._by_head(head, encoded, batch)]
            return [*map(self._drafts.of, encoded, by_head)]

        if "text" in sources:
            answers = generate_answers(
                self.bundle.detector,
                self.bundle.processor.tokenizer,
                batch,
                infer.max_new_tokens,
                self._constraint(encoded) if infer.constrained else None,
                drafting if is_drafted else None,
            )
            by_text = [read_answer(self.bundle, *row) for row in zip(answers, encoded, strict=True)]
        if "head" in sources and not is_drafted:
            by_head = [*self._by_head(self.bundle.detector(batch, with_tokens=False).head, encoded, batch)]
        elif "head" not in sources:
            by_head = [None for _ in samples]
        rows = zip(samples, encoded, by_head, by_text, strict=True)
        return [prediction_of(sample, item, head or (), text, infer) for sample, item, head, text in rows]

    def _by_head(
        self, output: HeadOutput, encoded: Sequence[EncodedSample], batch: Batch
    ) -> Iterator[list[Detection]]:
        logits, boxes, valid = (part.cpu() for part in output.final())
        for row, item in enumerate(encoded):
            asked = batch["asked"][row].nonzero().flatten().tolist()
            scores = logits[row][:, asked].float().sigmoid() * valid[row][:, None]
            best = scores.flatten().topk(min(self.bundle.config.infer.max_detections, scores.numel()))
            width, height = item.image_size
            unclipped = cxcywh_to_xyxy(boxes[row].double()) * torch.tensor([width, height, width, height])
            xyxy = clip_xyxy(unclipped, width, height).tolist()
            yield [
                Detection(rounded(xyxy[query]), batch["label_texts"][asked[label]], score, "head")
                for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                for query, label in [divmod(index, len(asked))]
                if has_area(xyxy[query])
            ]

    @cached_property
    def _drafts(self) -> AnswerDrafts:
        return AnswerDrafts(self.bundle)

    def _constraint(self, encoded: Sequence[EncodedSample]) -> AnswerConstraint:
        infer = self.bundle.config.infer
        form = self.bundle.processor.family.answer_form
        grammars = [AnswerGrammar(item.labels, answer_size(self.bundle, item), form) for item in encoded]
        alphabet = self._alphabet.union(*(grammar.alphabet for grammar in grammars))
        if alphabet > self._alphabet:  # a second's work with the published vocabulary
            self._alphabet = alphabet
            self._vocabulary = AnswerVocabulary(self.bundle.processor.tokenizer, alphabet)
        return AnswerConstraint(self._vocabulary, grammars, infer.max_detections, infer.max_new_tokens)
