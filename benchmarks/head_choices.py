"""The head's design choices compared: each alone changed, same seeds, same budget, new heads.

    python -m benchmarks.head_choices --bccd ../shared/data/bccd/BCCD --output runs/head_choices

Every variant trains a new head (and the model below it) from the tiny model's weights without its head, on
generated shapes and on BCCD, and is scored by AP50 on images it has not seen. A variant replaces one part
of the head while it runs; nothing of it is in the package. Finished runs are kept in OUTPUT/results.jsonl
and not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.report import parser
from qwendet.config import Config
from qwendet.config_file import build_config
from qwendet.console import print_table, progress, setup
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.samples import SampleFile
from qwendet.data.shapes import DEMO, write_dataset
from qwendet.evaluation import coco_ground_truth, coco_metrics, coco_results
from qwendet.inference import Predictor
from qwendet.loader import load
from qwendet.model import head as heads
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.processor import save_processor
from qwendet.training import create_trainer

SEEDS = (0, 1, 2)
Change = Callable[[], contextlib.AbstractContextManager[Any]]


# Variants: what the head is built of while one of them runs


def memory_without(part: str) -> Change:
    """Leave ``patches`` or ``context`` out of the memory."""

    class Memory(heads.Memory):
        def forward(self, patches: Tensor, context: Tensor, mask: Tensor) -> Tensor:
            if part == "patches":
                return super().forward(torch.zeros_like(patches), context, mask)
            return super().forward(patches, torch.zeros_like(context), mask)

    return lambda: patch.object(heads, "Memory", Memory)


@contextlib.contextmanager
def merged_tokens() -> Iterator[None]:
    """Give the head the merger's image tokens instead of the language model's hidden states."""
    see, read, detect = (getattr(Qwen25VLWithDetection, name) for name in ("_see", "_read", "_detect"))
    kept: dict[str, Tensor] = {}

    def seeing(self: Any, *arguments: Any) -> Any:
        patches, kept["embeds"] = see(self, *arguments)
        return patches, kept["embeds"]

    def detecting(self: Any, patches: Tensor, hidden: Tensor, batch: Any) -> Any:
        is_image = (batch["input_ids"] == self.config.image_token_id)[..., None]
        merged = torch.zeros_like(hidden).masked_scatter(is_image, kept["embeds"].to(hidden.dtype))
        return detect(self, patches, merged, batch)

    with (
        patch.object(Qwen25VLWithDetection, "_see", seeing),
        patch.object(Qwen25VLWithDetection, "_read", read),
        patch.object(Qwen25VLWithDetection, "_detect", detecting),
    ):
        yield


class LearnedQueries(heads.DetectionHead):
    """Queries are parameters at fixed places, as in Anchor DETR; the dense stage only helps training."""

    def __init__(self, shape: heads.HeadShape, num_queries: int) -> None:
        super().__init__(shape, num_queries)
        self.learned = nn.Parameter(torch.randn(num_queries, shape.hidden_size))
        self.query = nn.Identity()
        places = torch.quasirandom.SobolEngine(2).draw(num_queries)  # the first few cover the image evenly
        self.register_buffer("anchors", torch.cat([places, torch.full_like(places, 0.25)], 1), False)

    def forward(self, *arguments: Tensor) -> heads.HeadOutput:
        """Detect, with :func:`qwendet.model.head.take` taking our queries and anchors."""

        def instead(values: Tensor, index: Tensor) -> Tensor:
            chosen = self.anchors if values.shape[-1] == 4 else self.learned
            return chosen[: index.shape[1]].expand(len(index), -1, -1)

        with patch.object(heads, "take", instead):
            return super().forward(*arguments)


class PlainLabels(heads.LabelEncoder):
    """One linear map of the mean of a label's token embeddings."""

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Embed ``(C, T, text)`` as ``(C, size)``."""
        average = (embeds * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        result: Tensor = self.out(self.token[-1](self.token[0](self.norm(average))))
        return result


def replaced(name: str, by: type) -> Change:
    """Build the head with another class of that name."""
    target: Any = heads
    if name == "DetectionHead":
        from qwendet import loader as target
    return lambda: patch.object(target, name, by)


VARIANTS: dict[str, tuple[dict[str, Any], Change]] = {
    "as shipped": ({}, contextlib.nullcontext),
    "memory: patches alone": ({}, memory_without("context")),
    "memory: hidden states alone": ({}, memory_without("patches")),
    "memory: patches and merged tokens": ({}, merged_tokens),
    "one-to-many 1": ({"one_to_many": 1}, contextlib.nullcontext),
    "one-to-many 12": ({"one_to_many": 12}, contextlib.nullcontext),
    "queries: learned, at fixed anchors": ({}, replaced("DetectionHead", LearnedQueries)),
    "decoder layers 1": ({"num_layers": 1}, contextlib.nullcontext),
    "decoder layers 4": ({"num_layers": 4}, contextlib.nullcontext),
    "labels: mean and one linear map": ({}, replaced("LabelEncoder", PlainLabels)),
}


def main() -> None:
    """Run what has not been run, and print the table."""
    options = _options()
    setup(debug=False, quiet=True)
    folder: Path = options.output
    prepare(folder, options.bccd)
    results = folder / "results.jsonl"
    done = read(results)
    for seed in SEEDS:  # all variants of a seed first: a run that is cut short still compares like with like
        for variant in VARIANTS:
            for data in options.data:
                steps = {"shapes": options.shapes_steps, "bccd": options.bccd_steps}[data]
                key = (variant, data, seed, steps)
                if key not in done:
                    started = time.monotonic()
                    done[key] = run(folder, variant, data, seed, steps)
                    append(results, key, done[key])
                    print(*key, f"{done[key]:.3f}", f"{time.monotonic() - started:.0f} s", flush=True)
    figures = summary(done)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--bccd", type=Path, required=True, help="the folder with Annotations and JPEGImages"
    )
    arguments.add_argument("--output", type=Path, default=Path("runs/head_choices"))
    arguments.add_argument(
        "--data", nargs="+", choices=("shapes", "bccd"), default=["shapes", "bccd"],
        help="sets to train on (both); two processes may share OUTPUT, one for each",
    )  # fmt: skip
    arguments.add_argument("--shapes-steps", type=int, default=200)
    arguments.add_argument("--bccd-steps", type=int, default=150)
    return arguments.parse_args()


def prepare(folder: Path, bccd: Path) -> None:
    """Write data, and the tiny model without its head."""
    if not (folder / "shapes" / "test.jsonl").exists():
        write_dataset(DEMO, folder / "shapes" / "train.jsonl", 1600, seed=11)
        write_dataset(DEMO, folder / "shapes" / "test.jsonl", 200, seed=12)
    if not (folder / "bccd").exists():
        convert_dataset(bccd, folder / "bccd", Conversion(), progress)
    if not (folder / "base").exists():
        bundle = load(build_config({"data": {"labels": ["any"]}}, "tiny"), for_inference=True)
        bundle.detector.vlm.save_pretrained(folder / "base")
        save_processor(bundle.processor, folder / "base")


def run(folder: Path, variant: str, data: str, seed: int, steps: int) -> float:
    """Train one variant; its AP50 on unseen images."""
    detection, change = VARIANTS[variant]
    with change():
        trainer = create_trainer(run_config(folder, data, seed, steps, detection))
        trainer.train()
        bundle = trainer.bundle
        bundle.detector.eval()
        samples = list(SampleFile(folder / data / "test.jsonl"))
        predictions = list(Predictor(bundle).predict(samples))
    truth = coco_ground_truth(samples, predictions, bundle.labels)
    return coco_metrics(truth, coco_results(predictions, bundle.labels, "head"))["AP50"]


def run_config(folder: Path, data: str, seed: int, steps: int, detection: dict[str, Any]) -> Config:
    """The budget of a run; head sizes are the tiny model's."""
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 4}
    settings = {
        "model": {"path": str((folder / "base").resolve())},
        "data": {"train": str((folder / data / "train.jsonl").resolve())},
        "detection": sizes | detection,
        "train": {
            "output_dir": str((folder / f"run-{data}").resolve()),
            "max_steps": steps,
            "batch_size": 16 if data == "shapes" else 4,
            "learning_rate": 1.0e-3,
            "head_learning_rate": 1.0e-3,
            "weight_decay": 0.05,
            "save_steps": 1_000_000,
            "seed": seed,
        },
        "infer": {"mode": "head"},
    }
    return build_config(settings, "head_choices")


def read(path: Path) -> dict[tuple[str, str, int, int], float]:
    """Finished runs."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(r["variant"], r["data"], r["seed"], r["steps"]): r["ap50"] for r in records}


def append(path: Path, key: tuple[str, str, int, int], ap50: float) -> None:
    """Keep a finished run."""
    record = dict(zip(("variant", "data", "seed", "steps"), key, strict=True)) | {"ap50": ap50}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def summary(done: dict[tuple[str, str, int, int], float]) -> dict[str, float]:
    """Print mean and standard deviation over the seeds; returns them as flat figures."""
    figures, rows = {}, []
    for variant in VARIANTS:
        row = [variant]
        for data in ("shapes", "bccd"):
            values = [ap50 for (name, where, _, _), ap50 in done.items() if (name, where) == (variant, data)]
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
