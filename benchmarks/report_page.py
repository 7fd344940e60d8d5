"""How long the report page of 1,000 images takes to open in headless Chromium.

    python -m benchmarks.report_page [--images 1000]

Every image has errors of two runs, by head and by text, so the page holds as many pictures as it can. Needs
Debian's chromium and chromium-driver. Opened is: loaded, its script run, the first pictures decoded.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from benchmarks.report import parser, report
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.evaluation.coco import coco_ground_truth
from qwendet.evaluation.command import Evaluation
from qwendet.evaluation.scores import score_run
from qwendet.inference.detections import Detection, Prediction, Source
from qwendet.report import write_report

LABELS = ("cat", "dog", "<script>document.title = 'stolen'</script>", "圆", "traffic light")
SIZE = (640, 480)
ROUNDS = 5
FIRST_PICTURES_DECODED = """
const done = arguments[0];
Promise.all([...document.images].map((image) => image.decode())).then(() => done(document.images.length));
"""


@dataclass
class Scene:
    """One image with what is in it and what two runs found."""

    sample: Sample
    found: dict[Source, Prediction]


def draw_scene(folder: Path, index: int) -> Scene:
    """Noise with three objects: two found, one missed or mislabelled, and a false alarm."""
    draw = np.random.default_rng(index)
    name = f"{index:05d}.jpg"
    coarse = draw.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(SIZE).save(folder / name, quality=80)
    boxes = [(x, y, x + 90.0, y + 80.0) for x, y in ((20.0, 30.0), (250.0, 200.0), (480.0, 330.0))]
    labels = [LABELS[(index + place) % len(LABELS)] for place in range(3)]
    objects = tuple(DetectedObject(box, label) for box, label in zip(boxes, labels, strict=True))
    found: dict[Source, Prediction] = {}
    for source in ("head", "text"):
        detections = [
            Detection(boxes[0], labels[0], 0.9 + 0.05 * float(draw.random()), source),
            Detection(boxes[1], LABELS[int(draw.integers(len(LABELS)))], 0.8, source),
            Detection(boxes[2], labels[2], 0.6, source),
            Detection((300.0, 20.0, 380.0, 90.0), labels[2], 0.7 + 0.2 * float(draw.random()), source),
        ]
        found[source] = Prediction(name, *SIZE, tuple(detections), 0)
    return Scene(Sample(Turn(name, objects, root=folder), where=name), found)


def invented_evaluation(
    folder: Path, images: int, sources: Sequence[Source] = ("head", "text")
) -> Evaluation:
    """An evaluation without a model.

    Args:
        folder: gets the images.
        images: how many.
        sources: the runs.
    """
    scenes = [draw_scene(folder, index) for index in range(images)]
    samples = tuple(scene.sample for scene in scenes)
    predictions = {source: [scene.found[source] for scene in scenes] for source in sources}
    truth = coco_ground_truth(samples, predictions[sources[0]], LABELS)
    runs = tuple(score_run(truth, samples, predictions[source], LABELS, source) for source in sources)
    return Evaluation("run/final", {}, "invented", LABELS, samples, truth, runs, (), ())


def browser() -> webdriver.Chrome:
    """Headless Chromium by Debian's own driver; nothing is downloaded."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def main() -> None:
    """Write the page, open it five times."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=1000)
    options = arguments.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        evaluation = invented_evaluation(folder, options.images)
        started = time.perf_counter()
        page = write_report(evaluation, folder / "report")
        written = time.perf_counter() - started
        seconds = []
        with browser() as chromium:
            for _ in range(ROUNDS):
                started = time.perf_counter()
                chromium.get(page.as_uri())
                decoded = chromium.execute_async_script(FIRST_PICTURES_DECODED)
                seconds.append(time.perf_counter() - started)
                chromium.get("about:blank")
        report(
            {
                "images": options.images,
                "page_megabytes": page.stat().st_size / 1e6,
                "write_seconds": written,
                "open_seconds_median": statistics.median(seconds),
                "open_seconds_longest": max(seconds),
                "pictures_decoded_at_opening": decoded,
            },
            options.json,
        )


if __name__ == "__main__":
    main()
