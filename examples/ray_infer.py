"""Predict a folder of images on a Ray cluster: Ray Data deals the images, each worker holds the model.

    pip install 'qwendet[ray]'
    python examples/ray_infer.py run/final photos/ found/ --workers 8 --gpus 1

Ray Data reads, deals, retries and writes; ``found/`` holds JSON lines as ``qwendet infer`` writes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import ray

from qwendet import Predictor
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.files import files_below
from qwendet.inference.inputs import sample_of_image


class Detect:
    """An actor that loads the model once and predicts batches of image paths."""

    def __init__(self, checkpoint: str, settings: list[str]) -> None:
        self.predictor = Predictor.from_checkpoint(checkpoint, overrides=settings)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Predict a batch; one row an image."""
        samples = [sample_of_image(Path(path)) for path in batch["path"]]
        rows = [prediction.to_record() for prediction in self.predictor.predict(samples)]
        return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> None:
    """Predict a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path, help="folder for JSON lines")
    parser.add_argument("--workers", type=int, default=1, help="models at a time")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    paths = [{"path": str(path.absolute())} for path in files_below(options.images, IMAGE_SUFFIXES)]
    (
        ray.data.from_items(paths)
        .repartition(max(options.workers, len(paths) // 1000))
        .map_batches(
            Detect,
            fn_constructor_args=(options.checkpoint, options.set),
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=0.5,  # of two cores one half each, so that reading and writing get theirs
            num_gpus=options.gpus,
            batch_size=options.batch_size,
        )
        .write_json(str(options.output.absolute()))
    )


if __name__ == "__main__":
    main()
