"""The head's design choices compared: each alone changed, same seeds, same budget, new heads.

    python -m benchmarks.head_choices --bccd ../shared/data/bccd/BCCD --output runs/head_choices

Every variant trains a new head on generated shapes and on BCCD, and is scored by AP50 on images it has not
seen. The tiny model below the head is frozen, so what it makes of an image is computed once and all that
differs between two runs is the head. Batch 16, AdamW at 1e-3, cosine. A variant changes one part of a
base, which is the head as it is shipped but for the 6 patches that answer for each box on the dense stage:
this table chose 1. Nothing of the variants is in the package. Finished runs are kept in OUTPUT/results.jsonl
and not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.report import parser
from qwendet.config.load import build_config
from qwendet.config.schema import LossConfig
from qwendet.console.console import print_table, setup
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.encode import EncodedSample
from qwendet.evaluation import coco_ground_truth, coco_metrics, coco_results
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, load
from qwendet.model import head as heads
from qwendet.model.detector import DetectorOutput
from qwendet.model.losses import LossManager, TokenLosses
from qwendet.model.matching import Targets
from qwendet.training.lr_schedule import schedule

SEEDS = (0, 1, 2)
SETS = ("shapes", "bccd")
MAX_PIXELS = 50_176
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 16, 1e-3, 0.05, 1.0
SIZES = {"hidden_size": 128, "num_layers": 2, "num_heads": 4}
NO_TOKENS = TokenLosses(torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(()), torch.zeros(()))


# What the frozen model makes of an image


@dataclass(frozen=True)
class Seen:
    """A student image as the head gets it, and what is on it.

    Attributes:
        patches: ``(H, W, vision)`` of the vision tower.
        context: ``(H, W, text)`` hidden states of the language model.
        merged: ``(H, W, text)`` image tokens of the merger.
        boxes_cxcywh: ``(N, 4)`` in the unit square.
        label_ids: ``(N,)``.
    """

    patches: Tensor
    context: Tensor
    merged: Tensor
    boxes_cxcywh: Tensor
    label_ids: Tensor


@torch.inference_mode()
def see(bundle: Bundle, sample: EncodedSample) -> Seen:
    """Run everything below the head on one sample."""
    batch = bundle.collator()([sample])
    detector, (patch_index, context_index) = bundle.detector, (batch["patch_index"], batch["context_index"])
    patches, images = detector.encode_images(batch["pixel_values"], torch.tensor(batch["grids"]))
    hidden = detector.run_language_model(batch, detector._embed(batch)[0], images)
    is_image = (batch["input_ids"] == detector.config.image_token_id)[..., None]
    merged = torch.zeros_like(hidden).masked_scatter(is_image, torch.cat(images.pooler_output))
    context, image_tokens = (states.flatten(0, 1)[context_index][0] for states in (hidden, merged))
    own = patches[patch_index][0]
    return Seen(own, context, image_tokens, sample.boxes_cxcywh, sample.label_ids)


class Frozen(nn.Module):
    """A head on the outputs of a frozen model, in the place of the whole detector."""

    device = torch.device("cpu")

    def __init__(self, head: heads.DetectionHead, bundle: Bundle, seen: dict[str, Seen]) -> None:
        super().__init__()
        self.head = head
        self.seen = seen
        tokens = bundle.encoder().label_tokens(bundle.labels).values()
        rows = [torch.tensor(ids) for ids in tokens]
        with torch.no_grad():
            self.labels = bundle.detector.vlm.get_input_embeddings()(pad_sequence(rows, batch_first=True))
        self.label_mask = pad_sequence([torch.ones_like(row).bool() for row in rows], batch_first=True)

    def forward(self, batch: dict[str, Any], *, with_tokens: bool = False) -> DetectorOutput:
        """Detect in the images of ``batch["where"]``."""
        seen = [self.seen[where] for where in batch["where"]]
        rows, columns = (max(item.patches.shape[side] for item in seen) for side in (0, 1))

        def padded(name: str) -> Tensor:
            parts = [getattr(item, name) for item in seen]
            return torch.stack(
                [F.pad(part, (0, 0, 0, columns - part.shape[1], 0, rows - part.shape[0])) for part in parts]
            )

        mask = torch.zeros(len(seen), rows, columns, dtype=torch.bool)
        for row, item in enumerate(seen):
            mask[row, : item.patches.shape[0], : item.patches.shape[1]] = True
        asked = torch.ones(len(seen), len(self.labels), dtype=torch.bool)
        found = self.head(padded("patches"), padded("context"), mask, self.labels, self.label_mask, asked)
        return DetectorOutput(None, found)


# Variants: what the head is built of, and what it is given


class LearnedQueries(heads.DetectionHead):
    """Queries are parameters at fixed places, as in Anchor DETR; the dense stage only helps training."""

    def __init__(self, shape: heads.HeadShape, num_queries: int) -> None:
        super().__init__(shape, num_queries)
        self.learned = nn.Parameter(torch.randn(num_queries, shape.hidden_size))
        self.query: Any = nn.Identity()
        places = torch.quasirandom.SobolEngine(2).draw(num_queries)  # the first few cover the image evenly
        self.register_buffer("anchors", torch.cat([places, torch.full_like(places, 0.25)], 1), False)

    def forward(self, *arguments: Tensor) -> heads.HeadOutput:
        """Detect, with :func:`qwendet.model.head.take` taking our queries and anchors."""

        def instead(values: Tensor, index: Tensor) -> Tensor:
            anchors: Any = self.anchors
            chosen = anchors if values.shape[-1] == 4 else self.learned
            return chosen[: index.shape[1]].expand(len(index), -1, -1)

        with patch.object(heads, "take", instead):
            return super().forward(*arguments)


class PlainLabels(heads.LabelEncoder):
    """One linear map of the mean of a label's token embeddings."""

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Embed ``(C, T, text)`` as ``(C, size)``."""
        average = ((embeds - self.centre) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        result: Tensor = self.out(self.token[-1](self.token[0](self.norm(average))))
        return result


class RawLabels(heads.LabelEncoder):
    """Token embeddings as they are, with all that they have in common."""

    def centre_on(self, vocabulary: Tensor) -> None:
        """Leave the centre at 0."""


class ClosedLabels(heads.LabelEncoder):
    """A parameter for each class, whatever its text: a closed label set."""

    def __init__(self, text_size: int, size: int) -> None:
        super().__init__(text_size, size)
        self.classes = nn.Parameter(torch.randn(100, size))

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Return ``(C, size)``."""
        result: Tensor = self.out(self.classes[: len(embeds)])
        return result


@dataclass(frozen=True)
class Variant:
    """One change to the base.

    Attributes:
        sizes: of :class:`qwendet.model.head.HeadShape`.
        one_to_many: patches that answer for each box on the dense stage.
        given: what the head gets instead of all that was seen.
        head: class of the head.
        labels: class of its label encoder.
    """

    sizes: dict[str, int] | None = None
    one_to_many: int = 6
    given: Callable[[Seen], Seen] = lambda seen: seen
    head: type[heads.DetectionHead] = heads.DetectionHead
    labels: type[heads.LabelEncoder] = heads.LabelEncoder

    def build(self, bundle: Bundle, seed: int) -> heads.DetectionHead:
        """A new head."""
        config = bundle.detector.config
        sizes = SIZES | (self.sizes or {})
        shape = heads.HeadShape(config.vision_config.hidden_size, config.text_config.hidden_size, **sizes)
        torch.manual_seed(seed)
        with patch.object(heads, "LabelEncoder", self.labels):
            head = self.head(shape, bundle.config.detection.num_queries)
        embeddings: Any = bundle.detector.vlm.get_input_embeddings()
        head.labels.centre_on(embeddings.weight)
        return head


def without(name: str) -> Callable[[Seen], Seen]:
    """Leave ``patches`` or ``context`` out of the memory."""
    return lambda seen: replace(seen, **{name: torch.zeros_like(getattr(seen, name))})


VARIANTS = {
    "base": Variant(),
    "memory: patches alone": Variant(given=without("context")),
    "memory: hidden states alone": Variant(given=without("patches")),
    "memory: merged tokens alone": Variant(
        given=lambda seen: replace(without("patches")(seen), context=seen.merged)
    ),
    "memory: patches and merged tokens": Variant(given=lambda seen: replace(seen, context=seen.merged)),
    "one-to-many 1 (shipped)": Variant(one_to_many=1),
    "one-to-many 3": Variant(one_to_many=3),
    "one-to-many 12": Variant(one_to_many=12),
    "queries: learned, at fixed anchors": Variant(head=LearnedQueries),
    "decoder layers 1": Variant(sizes={"num_layers": 1}),
    "decoder layers 4": Variant(sizes={"num_layers": 4}),
    "labels: not centred": Variant(labels=RawLabels),
    "labels: mean and one linear map": Variant(labels=PlainLabels),
    "labels: closed set": Variant(labels=ClosedLabels),
}


# Runs


def main() -> None:
    """Run what has not been run, and print the table."""
    options = _options()
    setup(debug=False, quiet=True)
    folder: Path = options.output
    prepare(folder, options.bccd, options.data)
    results = folder / "results.jsonl"
    done = read(results)
    for data in options.data:
        missing = [
            (variant, data, seed, options.steps)
            for seed in SEEDS  # all variants of a seed first: what is cut short still compares like with like
            for variant in VARIANTS
            if (variant, data, seed, options.steps) not in done
        ]
        seen = None
        for key in missing:
            started = time.monotonic()
            seen = seen or Laboratory(folder, data)
            done[key] = seen.run(VARIANTS[key[0]], seed=key[2], steps=options.steps)
            append(results, key, done[key])
            print(*key, f"{done[key]:.3f}", f"{time.monotonic() - started:.0f} s", flush=True)
    figures = summary(done, options.steps)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--bccd", type=Path, required=True, help="folder with Annotations and JPEGImages")
    arguments.add_argument("--output", type=Path, default=Path("runs/head_choices"))
    arguments.add_argument(
        "--data", nargs="+", choices=SETS, default=list(SETS),
        help="sets to train on (both); two processes may share OUTPUT, one for each",
    )  # fmt: skip
    arguments.add_argument("--steps", type=int, default=150, help="of each run (150)")
    return arguments.parse_args()


def prepare(folder: Path, bccd: Path, sets: Sequence[str]) -> None:
    """Write the sets that are asked for and not there yet."""
    if "shapes" in sets and not (folder / "shapes" / "test.jsonl").exists():
        write_dataset(DEMO, folder / "shapes" / "train.jsonl", 800, seed=11)
        write_dataset(DEMO, folder / "shapes" / "test.jsonl", 200, seed=12)
    if "bccd" in sets and not (folder / "bccd").exists():
        convert_dataset(bccd, folder / "bccd", Conversion())


class Laboratory:
    """One data set as the frozen model sees it, to train heads on.

    Args:
        folder: where :func:`prepare` wrote.
        data: name of the set.
    """

    def __init__(self, folder: Path, data: str) -> None:
        settings = {
            "model": {"device": "cpu"},
            "data": {"train": str((folder / data / "train.jsonl").resolve()), "max_pixels": MAX_PIXELS},
            "infer": {"mode": "head"},
        }
        self.bundle = load(build_config(settings, "head_choices"), for_inference=True)
        self.train, self.test = (
            list(SampleFile(folder / data / f"{name}.jsonl")) for name in ("train", "test")
        )
        encoder = self.bundle.encoder()
        self.seen = {
            sample.where: see(self.bundle, encoder.encode(sample, with_answer=True))
            for sample in [*self.train, *self.test]
        }

    def run(self, variant: Variant, seed: int, steps: int) -> float:
        """Train one head; its AP50 on the test images."""
        seen = {where: variant.given(item) for where, item in self.seen.items()}
        model = Frozen(variant.build(self.bundle, seed), self.bundle, seen)
        loss = LossManager(LossConfig(), variant.one_to_many)
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        course = schedule(optimizer, "cosine", 0.03, steps)
        for names in self._batches(seed, steps):
            items = [seen[name] for name in names]
            counts = torch.tensor([0, 0, sum(len(item.label_ids) for item in items)])
            targets = Targets(
                torch.cat([item.boxes_cxcywh for item in items]),
                torch.cat([item.label_ids for item in items]),
                [len(item.label_ids) for item in items],
            )
            optimizer.zero_grad()
            loss(NO_TOKENS, model({"where": names}).head, targets, counts).total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            course.step()
        return self._score(model)

    def _batches(self, seed: int, steps: int) -> Iterator[Sequence[str]]:
        generator, names = random.Random(seed), [sample.where for sample in self.train]
        for _ in range(steps):
            yield generator.sample(names, BATCH_SIZE)

    def _score(self, model: Frozen) -> float:
        in_its_place: Any = model
        predictor = Predictor(replace(self.bundle, detector=in_its_place))
        predictions = list(predictor.predict(self.test))
        truth = coco_ground_truth(self.test, predictions, self.bundle.labels)
        return coco_metrics(truth, coco_results(self.test, predictions, self.bundle.labels, "head"))["AP50"]


Key = tuple[str, str, int, int]


def read(path: Path) -> dict[Key, float]:
    """Finished runs."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(r["variant"], r["data"], r["seed"], r["steps"]): r["ap50"] for r in records}


def append(path: Path, key: Key, ap50: float) -> None:
    """Keep a finished run."""
    record = dict(zip(("variant", "data", "seed", "steps"), key, strict=True)) | {"ap50": ap50}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def summary(done: dict[Key, float], steps: int) -> dict[str, float]:
    """Print mean and standard deviation over the seeds; returns them as flat figures."""
    figures: dict[str, float] = {}
    rows = []
    for variant in VARIANTS:
        row = [variant]
        for data in SETS:
            values = [done[key] for key in done if (key[0], key[1], key[3]) == (variant, data, steps)]
            if not values:
                row.append("-")
                continue
            spread = stdev(values) if len(values) > 1 else 0.0
            figures |= {f"{variant}/{data}/AP50": mean(values), f"{variant}/{data}/stdev": spread}
            row.append(f"{mean(values):.3f} ± {spread:.3f} ({len(values)})")
        rows.append(row)
    print_table("Head AP50, mean ± standard deviation (seeds)", ["variant", "shapes", "BCCD"], rows)
    return figures


if __name__ == "__main__":
    main()
