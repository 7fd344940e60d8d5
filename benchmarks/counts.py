"""What a training step does, in counts that no machine changes, against the committed table.

    python -m benchmarks.counts             compare; fails if one has grown by more than 2 %
    python -m benchmarks.counts --update    write benchmarks/counts.json, with a reason in the commit message

One optimizer step of the embedded model on four generated samples, with teachers and head, padded and packed:
operator calls, bytes of the largest tensor, rows through ``lm_head``, tokens; and the images decoded in
an epoch of 16 samples. A count that falls is no failure: update the table, so that it stays won.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import parser
from benchmarks.worlds import PRETRAIN
from qwendet.config.load import build_config
from qwendet.console.console import print_table
from qwendet.demo.shapes import write_dataset
from qwendet.encoding import encode
from qwendet.model import detector
from qwendet.training.build import create_trainer
from qwendet.training.trainer import DetectionTrainer

TABLE = Path(__file__).with_name("counts.json")
SAMPLES, BATCH_SIZE, MOST_GROWTH = 16, 4, 0.02


class OperatorCounts(TorchDispatchMode):
    """Counts operator calls, those of backward and optimizer too, and remembers the largest result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0
        self.largest_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one call."""
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.largest_bytes = max(self.largest_bytes, value.nbytes)
        return result


@contextmanager
def noted(module: Any, name: str, note: Callable[..., None]) -> Iterator[None]:
    """Tell ``note`` of each call of a module's function."""
    original = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(module, name, call)
    try:
        yield
    finally:
        setattr(module, name, original)


def trainer_for(folder: Path, *, packing: bool) -> DetectionTrainer:
    """A trainer on generated samples, half of them with a demonstration."""
    settings = {
        "model": {"path": "tiny", "dtype": "float32", "device": "cpu", "attn_implementation": "sdpa"},
        "data": {
            "train": str(write_dataset(PRETRAIN, folder / "train.jsonl", SAMPLES, seed=0)),
            "teacher_ratio": 0.5,
        },
        "train": {"output_dir": str(folder / "run"), "batch_size": BATCH_SIZE, "packing": packing},
    }
    return create_trainer(build_config(settings, "benchmark"))


def count_step(trainer: Any, name: str) -> dict[str, int]:
    """Counts of the second step; the first makes what is made once."""
    trainer.create_optimizer()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(BATCH_SIZE)])
    rows = 0

    def note(given: torch.Tensor, *args: Any) -> None:
        nonlocal rows
        rows += len(given)

    for _ in range(2):
        counts, rows = OperatorCounts(), 0
        with counts, noted(detector, "linear_cross_entropy", note):
            _, step = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=step).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    return {
        f"{name}_operator_calls": counts.calls,
        f"{name}_largest_tensor_bytes": counts.largest_bytes,
        f"{name}_lm_head_rows": rows,
        f"{name}_sequence_tokens": batch["input_ids"].numel(),
    }


def count_images(trainer: Any) -> int:
    """Images decoded in one epoch."""
    decoded = 0

    def note(*args: Any) -> None:
        nonlocal decoded
        decoded += 1

    with noted(encode, "open_image", note):
        for index in range(len(trainer.train_dataset)):
            trainer.train_dataset[index]
    return decoded


def counted() -> dict[str, int]:
    """All counts."""
    counts: dict[str, int] = {}
    for name, packing in (("padded", False), ("packed", True)):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_for(Path(folder), packing=packing)
            counts |= count_step(trainer, name)
            if not packing:
                counts["images_decoded_per_epoch"] = count_images(trainer)
    return counts


def grown(found: dict[str, int], table: dict[str, int]) -> list[str]:
    """What has grown by more than :data:`MOST_GROWTH`, or is not in the table.

    Example:
        >>> grown({"calls": 103, "rows": 102}, {"calls": 100, "rows": 100})
        ['calls: 103, the table says 100']
    """
    return [
        f"{name}: {value}, the table says {table.get(name, 'nothing')}"
        for name, value in found.items()
        if name not in table or value > table[name] * (1 + MOST_GROWTH)
    ]


def main() -> None:
    """Count; compare or update."""
    arguments = parser(__doc__)
    arguments.add_argument("--update", action="store_true", help="write the table")
    options = arguments.parse_args()
    found = counted()
    if options.update:
        TABLE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table: dict[str, int] = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = [[name, str(value), str(table.get(name, ""))] for name, value in found.items()]
    print_table("Counts", ["count", "now", "table"], rows)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if problems := grown(found, table):
        raise SystemExit("grown: " + "; ".join(problems) + "\nmend it, or explain and run with --update")


if __name__ == "__main__":
    main()
