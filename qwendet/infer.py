"""``qwendet infer``: predict images, folders and sample files; write the predictions and draw them.

inputs ─► samples, with demonstrations ─► Predictor ─► predictions ─► JSON lines, pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwendet.config.schema import Config
from qwendet.errors import ConfigError
from qwendet.files import partial_of
from qwendet.inference.detections import Source, write_predictions
from qwendet.inference.inputs import collect_samples, with_teachers
from qwendet.inference.served import predictor_of
from qwendet.inference.sharding import is_first_process, joined_processes
from qwendet.progress import track
from qwendet.visualization.pictures import save_pictures


@dataclass(frozen=True)
class InferSummary:
    """What ``qwendet infer`` did.

    Attributes:
        images: images predicted.
        detections: objects found in all.
        rejected: boxes of text answers that could not be used.
        output: file that was written, if one was asked for.
        lines: the output's lines, if none was.
        model: who trained it, and how it was asked.
    """

    images: int
    detections: int
    rejected: int
    output: Path | None
    lines: list[str]
    model: dict[str, Any]


def infer(
    model: Path,
    inputs: Sequence[Path],
    *,
    output: Path | None = None,
    mode: str | None = None,
    teachers: int = 0,
    labels: Sequence[str] | None = None,
    constrained: bool = False,
    visualize: Path | None = None,
    overrides: Sequence[str] = (),
    given: Config | None = None,
    server: str | None = None,
) -> InferSummary:
    """Predict images, folders and JSONL files.

    Args:
        model: a checkpoint, or any model of a family, in a folder or on the hub.
        inputs: image files, folders of images, JSONL files.
        output: JSONL file to write; it appears when all is done.
        mode: ``head``, ``text`` or ``both``; ``None`` takes the config's.
        teachers: demonstrations to show where a sample has none of its own.
        labels: other labels to look for.
        constrained: keep text answers inside the grammar of a valid one.
        visualize: folder for pictures with boxes.
        overrides: ``key=value`` for the checkpoint's config.
        given: how a model without a manifest was trained.
        server: URL of the server that answers in the model's place, in text.

    Raises:
        QwendetError: for a checkpoint, image or option that cannot be used; then nothing is written.
    """
    forced = ["infer.constrained=true"] if constrained else []
    with joined_processes():
        samples = collect_samples(inputs)
        kept = None if output is None else partial_of(output)
        predictor = predictor_of(
            model, server, kept, labels=labels, overrides=[*overrides, *forced], given=given, mode=mode
        )
        if constrained:
            _require_text(predictor.sources(mode))
        samples = with_teachers(samples, predictor.bundle.config, teachers)
        with track("predicting", len(samples)) as advance:
            predictions = predictor.predict_all(samples, mode, advance)
    if visualize is not None and is_first_process():
        threshold = predictor.bundle.config.infer.picture_threshold
        save_pictures(samples, predictions, visualize, threshold)
    origin = predictor.origin()
    told = origin if predictor.bundle.manifest is None or server is not None else None
    if output is not None and is_first_process():
        write_predictions(predictions, output, told)
        partial_of(output).unlink(missing_ok=True)
    return InferSummary(
        images=len(predictions),
        detections=sum(len(prediction.detections) for prediction in predictions),
        rejected=sum(prediction.rejected for prediction in predictions),
        output=output,
        lines=[] if output is not None else [prediction.to_json(told) for prediction in predictions],
        model=origin,
    )


def _require_text(sources: Sequence[Source]) -> None:
    if "text" not in sources:
        raise ConfigError(
            "--constrained is about text answers, but the head answers", "--mode", "add --mode text"
        )
