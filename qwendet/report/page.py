"""The page: numbers, charts and pictures put into the template."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from qwendet.data.images import open_image
from qwendet.data.samples import Sample
from qwendet.evaluation.command import Evaluation
from qwendet.evaluation.scores import SCORE_MEANINGS
from qwendet.files import atomic_file
from qwendet.inference.asked import in_words
from qwendet.report.charts import SIDE, calibration_of, confusion_of, curves_of
from qwendet.report.errors import KINDS, Drawn, ImageErrors, errors_of

MOST_PICTURES = 300
THUMBNAIL_SIDE = 400
JPEG_QUALITY = 78


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``folder/index.html``, which needs no other file and no network."""
    return _write(render(evaluation), folder)


def _write(html: str, folder: Path) -> Path:
    page = folder / "index.html"
    with atomic_file(page) as path:
        path.write_text(html, encoding="utf-8", errors="backslashreplace")
    return page


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qwendet.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _number, "in_words": in_words}
    return environment


def render(evaluation: Evaluation) -> str:
    """The page's HTML; every text that comes from data is escaped."""
    errors = [errors_of(run, evaluation.ground_truth) for run in evaluation.runs]
    worst = _worst(errors)
    shown = worst[:MOST_PICTURES]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            evaluation=evaluation,
            runs=[_run(run, evaluation.ground_truth) for run in evaluation.runs],
            figures=[run.figures() for run in evaluation.runs],
            boxes=sum(not item["ignore"] for item in evaluation.ground_truth["annotations"]),
            score_meanings=SCORE_MEANINGS,
            side=SIDE,
            kinds=KINDS,
            pictures={
                "runs": [run.name for run in evaluation.runs],
                "labels": {item["id"]: item["name"] for item in evaluation.ground_truth["categories"]},
                "images": [
                    _picture(
                        evaluation.samples[index], evaluation.ground_truth["images"][index], index, errors
                    )
                    for index in shown
                ],
            },
            with_errors=len(worst),
            style=_own_file("page.css"),
            script=_own_file("page.js"),
        )
    )


def write_benchmark_page(table: Mapping[str, Any], folder: Path) -> Path:
    """Write ``folder/index.html``: the table of ``eval --benchmark``."""
    template = _environment().get_template("benchmark.html.j2")
    return _write(template.render(table=table, style=_own_file("page.css")), folder)


def _worst(errors: Sequence[Sequence[ImageErrors]]) -> list[int]:
    """Images with any error, the worst first."""
    severity = [sum(image.severity() for image in runs) for runs in zip(*errors, strict=True)]
    return sorted(
        (index for index, value in enumerate(severity) if value), key=lambda index: -severity[index]
    )


def _run(run: Any, ground_truth: dict[str, Any]) -> dict[str, Any]:
    bins, calibration_error = calibration_of(run)
    return {
        "scores": run,
        "curves": curves_of(run),
        "bins": bins,
        "calibration_error": calibration_error,
        "confusion": confusion_of(run, ground_truth),
    }


def _picture(
    sample: Sample, image: dict[str, Any], index: int, errors: Sequence[Sequence[ImageErrors]]
) -> dict[str, Any]:
    return {
        "name": ": ".join(image[key] for key in ("file_name", "expression") if key in image),
        "size": [image["width"], image["height"]],
        "jpeg": thumbnail(open_image(sample.student.image, sample.student.root, sample.where)),
        "runs": [
            {
                "objects": [_box(box) for box in run[index].objects],
                "found": [_box(box) for box in run[index].detections],
            }
            for run in errors
        ],
    }


def _box(box: Drawn) -> list[Any]:
    """A box as the script reads it: x, y, width, height, category, score, kind, category it is about."""
    return [
        *(round(number, 1) for number in box.box_xywh),
        box.category,
        box.score and round(box.score, 3),
        box.kind,
        box.about,
    ]


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of an image, in base64."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _number(value: float | int | None) -> str:
    """A number as it is shown.

    Example:
        >>> _number(0.12345), _number(7), _number(None)
        ('0.123', '7', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _own_file(name: str) -> Markup:
    """Style or script of the page, which are the only texts that are not escaped."""
    return Markup(files("qwendet.report").joinpath(name).read_text(encoding="utf-8"))
