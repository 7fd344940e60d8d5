"""The report page: what it says of errors, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from benchmarks.report_page import FIRST_PICTURES_DECODED, LABELS, invented_evaluation
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.evaluation.coco import coco_ground_truth
from qwendet.evaluation.command import Evaluation
from qwendet.evaluation.scores import score_run
from qwendet.inference.detections import Detection, Prediction
from qwendet.report import write_report
from qwendet.report.charts import calibration_of, confusion_of, curves_of
from qwendet.report.errors import errors_of
from qwendet.report.page import render

IMAGES = 16
SCRIPT = LABELS[2]
A, B, C, D = ((x, 0.0, x + 10.0, 10.0) for x in (0.0, 20.0, 40.0, 60.0))
NEAR_C = (45.0, 0.0, 55.0, 10.0)  # IoU 1/3
EMPTY = (80.0, 50.0, 90.0, 60.0)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return invented_evaluation(tmp_path_factory.mktemp("invented"), IMAGES)


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(evaluation, tmp_path_factory.mktemp("report") / "new")


# Errors and charts, by hand


@pytest.fixture(scope="module")
def scene() -> Any:
    """One error of each kind, one right detection, a difficult object that was found."""
    objects = [DetectedObject(box, "cat") for box in (A, B, C)]
    hard = DetectedObject(D, "cat", difficult=True)
    found = [
        (A, "cat", 0.9),
        (A, "cat", 0.8),
        (B, "dog", 0.7),
        (NEAR_C, "cat", 0.6),
        (EMPTY, "dog", 0.55),
        (D, "cat", 0.85),
    ]
    detections = tuple(Detection(*item, "head") for item in found)
    samples, predictions = (
        [Sample(Turn("a.jpg", (*objects, hard)))],
        [Prediction("a.jpg", 100, 100, detections, 0)],
    )
    truth = coco_ground_truth(samples, predictions, ["cat", "dog"])
    run = score_run(truth, samples, predictions, ["cat", "dog"], "head")
    return replace(run, at_best=run.at_best._replace(threshold=0.5)), truth


def test_errors__each_has_its_kind(scene: Any) -> None:
    (image,) = errors_of(*scene)
    assert [(box.score, box.kind) for box in image.detections] == [
        (0.9, None), (0.85, None), (0.8, "double"), (0.7, "wrong label"), (0.6, "loose box"),
        (0.55, "false alarm"),
    ]  # fmt: skip
    assert [box.kind for box in image.objects] == [None, "missed", "missed", None]
    assert image.detections[3].about == 1
    assert image.severity() == pytest.approx(2 + 0.8 + 0.7 + 0.6 + 0.55)


def test_confusion__counts_every_object_and_every_detection_once(scene: Any) -> None:
    confusion = confusion_of(*scene)
    assert (confusion.rows, confusion.columns) == (["cat", "dog", "nothing there"], ["cat", "dog", "missed"])
    assert confusion.counts == [[1, 1, 1], [0, 0, 0], [2, 1, 0]]


def test_calibration__by_hand(scene: Any) -> None:
    bins, error = calibration_of(scene[0])
    assert [(item.low, item.total, item.right) for item in bins] == [
        (0.5, 1, 0), (0.6, 1, 0), (0.7, 1, 0), (0.8, 1, 0), (0.9, 1, 1),
    ]  # fmt: skip
    assert error == pytest.approx((0.55 + 0.6 + 0.7 + 0.8 + 0.1) / 5)


def test_curves__are_those_of_the_metrics(evaluation: Evaluation) -> None:
    run = evaluation.runs[0]
    curves = curves_of(run)
    assert curves[0].ap50 == pytest.approx(run.metrics["AP50"])
    assert [curve.ap50 for curve in curves[1:]] == [label.AP50 for label in run.labels]
    assert all(len(curve.points.split()) == 101 for curve in curves)


def test_render__without_objects_or_detections(evaluation: Evaluation) -> None:
    samples = [Sample(Turn("a.jpg", ()))]
    predictions = [Prediction("a.jpg", 100, 100, (), 0)]
    truth = coco_ground_truth(samples, predictions, ["cat"])
    runs = (score_run(truth, samples, predictions, ["cat"], "head"),)
    html = render(replace(evaluation, samples=tuple(samples), ground_truth=truth, runs=runs))
    assert "There are no objects to be found." in html
    assert "Nothing was detected." in html
    assert "0 of 1 images have errors" in " ".join(html.split())


# The file


def test_page__needs_nothing_else_and_every_text_of_data_is_escaped(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert [file.name for file in page.parent.iterdir()] == ["index.html"]
    markup = html.partition('<script type="application/json"')[0]
    assert set(re.findall(r'(?:src|href)="([^"#]*)', markup)) == {"data:,", ""}
    assert "url(" not in markup
    assert "://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert SCRIPT not in html
    assert html.count("&lt;script&gt;document.title") > 3
    assert html.count("<script") == html.count("</script>") == 2


# In a browser


@pytest.fixture(scope="module")
def chromium(driver: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """The browser with the page open and its first pictures decoded."""
    driver.get(page.as_uri())
    assert driver.execute_async_script(FIRST_PICTURES_DECODED) == 24
    return driver


@pytest.fixture
def opened(chromium: webdriver.Chrome) -> webdriver.Chrome:
    """The page as after loading."""
    chromium.execute_script(
        "const form = document.getElementById('filters');"
        "form.reset(); form.dispatchEvent(new Event('change'))"
    )
    return chromium


def records(page: Path) -> list[dict[str, Any]]:
    html = page.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    images: list[dict[str, Any]] = json.loads(data[1])["images"]
    return images


def choose(driver: webdriver.Chrome, name: str, text: str) -> None:
    Select(driver.find_element(By.ID, name)).select_by_visible_text(text)


def faults(driver: webdriver.Chrome) -> list[str]:
    texts: list[str] = driver.execute_script(
        "return [...document.querySelectorAll('.faults li')].map((item) => item.textContent)"
    )
    return texts


def show_all(driver: webdriver.Chrome) -> int:
    button = driver.find_element(By.ID, "more")
    while button.is_displayed():
        driver.execute_script("arguments[0].click()", button)
    return len(driver.find_elements(By.CSS_SELECTOR, ".picture"))


def test_browser__loads_without_errors_and_runs_no_label(opened: webdriver.Chrome) -> None:
    assert opened.get_log("browser") == []
    assert opened.title == "invented · qwendet eval"
    assert opened.find_element(By.ID, "count").text == f"12 of {IMAGES} images"
    assert SCRIPT in opened.find_element(By.CSS_SELECTOR, "#labels").text


def test_browser__pictures_are_made_when_they_are_asked_for(opened: webdriver.Chrome) -> None:
    assert len(opened.find_elements(By.CSS_SELECTOR, ".picture")) == 12
    assert show_all(opened) == IMAGES
    assert opened.find_element(By.ID, "count").text == f"{IMAGES} of {IMAGES} images"


@pytest.mark.parametrize("kind", ["missed", "wrong label", "false alarm"])
def test_browser__the_error_filter_leaves_what_the_data_holds(
    opened: webdriver.Chrome, page: Path, kind: str
) -> None:
    choose(opened, "kind", kind)
    boxes = [
        [box for run in image["runs"] for box in (*run["objects"], *run["found"]) if box[6] == kind]
        for image in records(page)
    ]
    assert show_all(opened) == sum(map(bool, boxes)) > 0
    assert len(faults(opened)) == sum(map(len, boxes))
    assert all(text.startswith(kind) for text in faults(opened))


def test_browser__the_label_filter_takes_errors_of_and_about_it(opened: webdriver.Chrome) -> None:
    choose(opened, "label", SCRIPT)
    assert show_all(opened) > 0
    found = faults(opened)
    assert found
    assert all(SCRIPT in text for text in found)
    dimmed = opened.find_elements(By.CSS_SELECTOR, "#curves polyline.dimmed")
    assert len(dimmed) == 2 * (len(LABELS) - 1)


def test_browser__head_and_text_side_by_side_or_alone(opened: webdriver.Chrome) -> None:
    names = Counter(item.text for item in opened.find_elements(By.CSS_SELECTOR, ".panel > b"))
    assert names == {"head": 12, "text": 12}
    first, second = opened.find_elements(By.CSS_SELECTOR, ".picture:first-child .panel")
    assert first.rect["y"] == second.rect["y"]
    choose(opened, "run", "text")
    assert {item.text for item in opened.find_elements(By.CSS_SELECTOR, ".panel > b")} == {"text"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser__fits_a_phone_and_follows_the_colour_scheme(opened: webdriver.Chrome, scheme: str) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    width, colour = opened.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (width, colour) == (390, {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 21, 27)"}[scheme])
