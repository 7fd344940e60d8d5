"""Runs that were written to a file, and read again to be compared with.

``qwendet eval --json FILE`` writes the numbers and the predictions; ``infer --output`` and ``train`` write
predictions alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from qwendet.errors import DataError
from qwendet.inference.detections import Prediction, Source

SOURCES: tuple[Source, ...] = ("head", "text")
_FIX = "give a JSON file of `qwendet eval --json`, a JSONL file of `infer` or `train`, or a checkpoint"


def read_runs(file: Path) -> dict[str, tuple[Source, list[Prediction]]]:
    """The predictions of each run in a file, by the run's name."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            predictions = [
                Prediction.from_record(json.loads(line)) for line in text.splitlines() if line.strip()
            ]
            return {source: (source, predictions) for source in SOURCES if _has(predictions, source)}
        runs = json.loads(text)["runs"]
        return {
            run["name"]: (run["source"], [Prediction.from_record(record) for record in run["predictions"]])
            for run in runs
        }
    except OSError as error:
        raise DataError(f"cannot read the other run ({error.strerror})", str(file), _FIX) from error
    except (ValueError, KeyError, TypeError) as error:
        lacks = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"this is no run that can be compared with ({lacks})", str(file), _FIX) from error


def _has(predictions: Sequence[Prediction], source: Source) -> bool:
    return any(item.source == source for prediction in predictions for item in prediction.detections)


def align(predictions: Iterable[Prediction], images: Sequence[str], where: str) -> list[Prediction]:
    """The predictions in the order of images."""
    in_order = list(predictions)
    if [prediction.image for prediction in in_order] == list(images):  # also where one is asked about twice
        return in_order
    by_image = {prediction.image: prediction for prediction in in_order}
    missing = [image for image in images if image not in by_image]
    if missing:
        raise DataError(
            f"the other run knows nothing of {len(missing)} of {len(images)} images, such as {missing[0]!r}",
            where,
            "compare runs over the same data; infer names images as its inputs do: give it the JSONL file"
            " that eval measures, not the folder of its images",
        )
    return [by_image[image] for image in images]
