"""``qwendet infer``: predict images, folders and sample files; write the predictions and draw them.

inputs ─► samples, with demonstrations ─► Predictor ─► parts, as they come ─► output, pictures
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qwendet.config.schema import Config
from qwendet.data.parquet import import_parquet
from qwendet.errors import ConfigError, Problem
from qwendet.files import partial_of
from qwendet.inference.asked import require_settings
from qwendet.inference.batches import Result, Skipped, shard_of, window_size
from qwendet.inference.detections import CocoIds, Prediction, write_predictions
from qwendet.inference.inputs import coco_ids, digest_of, find_samples, with_teachers
from qwendet.inference.parts import predict_parts, require_free
from qwendet.inference.served import predictor_of
from qwendet.inference.sharding import folder_or_temporary, is_first_process, joined_processes
from qwendet.inference.tiles import require_tiles_that_fit
from qwendet.visualization.pictures import save_pictures


@dataclass
class InferSummary:
    """What ``qwendet infer`` did; of several processes, the first one knows.

    Attributes:
        output: file that was written, if one was asked for.
        model: who trained it, and how it was asked.
        images: images predicted.
        detections: objects found in all.
        rejected: boxes of text answers that could not be used.
        lines: the output's lines, if no file was asked for.
        skipped: what is wrong with the images that were left out.
    """

    output: Path | None
    model: dict[str, Any]
    images: int = 0
    detections: int = 0
    rejected: int = 0
    lines: list[str] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    def take(self, results: Iterable[Result], stated: Mapping[str, Any] | None, ids: CocoIds) -> None:
        """Count results and write the predictions among them; arguments as of :func:`write_predictions`."""
        if self.output is None:
            self.lines = [prediction.to_json(stated) for prediction in self._counted(results)]
        else:
            write_predictions(self._counted(results), self.output, stated, ids)

    def _counted(self, results: Iterable[Result]) -> Iterator[Prediction]:
        for result in results:
            if isinstance(result, Skipped):
                self.skipped += result.problems
                continue
            self.images += 1
            self.detections += len(result.detections)
            self.rejected += result.rejected
            yield result


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
    resume: bool = False,
    skip_bad: bool = False,
    shard: tuple[int, int] | None = None,
) -> InferSummary:
    """Predict images, folders and JSONL files.

    Args:
        model: a checkpoint, or any model of a family, in a folder or on the hub.
        inputs: images, folders of them, JSONL and COCO files, shards (``.tar``, ``.parquet``); ``-`` for
            paths on standard input.
        output: file to write, ``.jsonl``, ``.parquet`` or COCO results as ``.json``. It appears when all is
            done; until then predictions are kept beside it.
        mode: ``head``, ``text`` or ``both``; ``None`` takes the config's.
        teachers: demonstrations to show where a sample has none of its own.
        labels: other labels to look for.
        constrained: keep text answers inside the grammar of a valid one.
        visualize: folder for pictures with boxes.
        overrides: ``key=value`` for the checkpoint's config.
        given: how a model without a manifest was trained.
        server: URL of the server that answers in the model's place, in text.
        resume: go on from what a run with the same output has predicted, if there is one.
        skip_bad: leave out images that cannot be used.
        shard: ``(i, n)`` predicts the i-th of n parts of the inputs, counted from 0.

    Raises:
        QwendetError: for a checkpoint, image or option that cannot be used; the output is not written.
    """
    kept = None if output is None else partial_of(output)
    if output is not None and output.suffix == ".parquet":
        import_parquet()  # what is lacking is reported before the work
    require_free(kept, "--output", resume=resume)
    require_settings(model, overrides)
    if constrained:
        overrides = [*overrides, "infer.constrained=true"]
    with joined_processes(), folder_or_temporary(kept) as folder:
        found = find_samples(inputs)
        # Of all inputs as they are, before a model is loaded.
        digest = "" if shard or teachers else digest_of(found, skip_bad=skip_bad)
        check = partial(require_tiles_that_fit, samples=found)
        predictor = predictor_of(
            model, server, labels=labels, overrides=overrides, given=given, mode=mode, check=check
        )
        if constrained and "text" not in predictor.sources(mode):
            what = "--constrained is about text answers, but the head answers"
            raise ConfigError(what, "--mode", "add --mode text")
        window = window_size(len(found), predictor.batch_size)
        own = found if shard is None else found[shard_of(len(found), window, shard)]
        samples = with_teachers(own, predictor.bundle.config, teachers)
        digest = digest or digest_of(samples, skip_bad=skip_bad)
        header = {"images": len(samples), "shard": shard, "sha256": digest}
        plan = predictor.plan(samples, window)
        parts = predict_parts(predictor, plan, mode, folder, header, skip_bad=skip_bad)
        origin = predictor.origin()
        summary = InferSummary(output, origin)
        if is_first_process():
            if visualize is not None:
                threshold = predictor.bundle.config.infer.picture_threshold
                save_pictures(samples, parts.read(plan), visualize, threshold)
            stated = origin if predictor.bundle.manifest is None or server is not None else None
            is_coco_output = output is not None and output.suffix == ".json"
            ids = coco_ids(inputs, predictor.bundle.labels) if is_coco_output else ({}, {})
            summary.take(parts.read(plan), stated, ids)
            if kept is not None:
                shutil.rmtree(kept)
    return summary
