"""The page of ``qwendet serve`` in headless Chromium, against a server of the embedded model."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from benchmarks.worlds import PRETRAIN
from qwendet.demo.shapes import write_dataset
from qwendet.inference.detections import Prediction
from qwendet.inference.predictor import Predictor
from qwendet.serve.app import create_app
from qwendet.serve.limits import Limits
from qwendet.serve.server import bound

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
THRESHOLD = 0.1


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_checkpoint(
        "tiny", overrides=["infer.max_new_tokens=400", f"infer.picture_threshold={THRESHOLD}"]
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_dataset(PRETRAIN, folder / "scene.jsonl", 1, seed=3)
    (path,) = (path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    return path


@pytest.fixture(scope="module")
def serve(predictor: Predictor) -> Iterator[Callable[[str | None], str]]:
    """Start a server on a free port, with a token or without one; its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(token: str | None) -> str:
        app = create_app(predictor, "tiny", Limits(), token)
        server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, log_level="error"))
        socket = bound("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{socket.getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def page(driver: webdriver.Chrome, serve: Callable[[str | None], str], image: Path) -> webdriver.Chrome:
    """The page with one image answered by head and text."""
    driver.get(serve(None))
    wait(driver, lambda: driver.find_element(By.ID, "name").text == "tiny")
    driver.find_element(By.ID, "files").send_keys(str(image))
    wait(driver, lambda: states(driver, "shown") == 2)
    return driver


def wait(driver: webdriver.Chrome, condition: Callable[[], bool]) -> None:
    WebDriverWait(driver, 60, 0.05).until(lambda _: condition())


def states(driver: webdriver.Chrome, word: str) -> int:
    """Panels whose line holds a word."""
    return sum(word in item.text for item in driver.find_elements(By.CSS_SELECTOR, ".panel > p"))


def entries(driver: webdriver.Chrome) -> list[list[str]]:
    """What each panel lists."""
    panels = driver.find_elements(By.CSS_SELECTOR, ".panel")
    return [[item.text for item in panel.find_elements(By.CSS_SELECTOR, "li")] for panel in panels]


def listed(prediction: Prediction, least: float) -> list[str]:
    found = prediction.detections
    return [f"{item.desc} {item.score:.2f}" for item in found if item.score >= least]


def set_score(driver: webdriver.Chrome, value: float) -> None:
    slider = "const slider = document.getElementById('score'); slider.value = arguments[0];"
    driver.execute_script(f"{slider} slider.dispatchEvent(new Event('input'))", value)


def test_page__is_one_file_that_loads_nothing(repo_root: Path) -> None:
    html = (repo_root / "qwendet" / "serve" / "page.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"]*)', html)) == {"data:,"}
    assert "://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in html
    assert "innerHTML" not in html


def test_page__head_and_text_side_by_side(page: webdriver.Chrome, predictor: Predictor, image: Path) -> None:
    expected = [listed(predictor.predict_image(image, mode), THRESHOLD) for mode in ("head", "text")]
    assert entries(page) == expected
    assert all(expected)
    first, second = page.find_elements(By.CSS_SELECTOR, ".panel")
    assert (first.rect["y"], first.text[:4], second.text[:4]) == (second.rect["y"], "head", "text")
    assert len(first.find_elements(By.CSS_SELECTOR, "rect")) == len(expected[0])
    assert page.find_element(By.CSS_SELECTOR, "article > h2").text == image.name
    assert page.get_log("browser") == []


def test_page__the_score_filters(page: webdriver.Chrome, predictor: Predictor, image: Path) -> None:
    set_score(page, 0.0)
    everything = predictor.predict_image(image, "head")
    assert entries(page)[0] == listed(everything, 0.0)
    set_score(page, THRESHOLD)
    assert entries(page)[0] == listed(everything, THRESHOLD)


def test_page__boxes_lie_where_they_were_found(
    page: webdriver.Chrome, predictor: Predictor, image: Path
) -> None:
    found = predictor.predict_image(image, "head")
    frame = page.find_element(By.CSS_SELECTOR, ".frame").rect
    x1, y1, x2, y2 = found.detections[0].bbox_2d
    rect = page.execute_script(
        "const r = document.querySelector('rect').getBoundingClientRect();"
        "return [r.x + scrollX, r.y + scrollY, r.width, r.height]"
    )
    scale = frame["width"] / found.width
    expected = [frame["x"] + x1 * scale, frame["y"] + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale]
    assert rect == pytest.approx(expected, abs=1.5)


def test_page__other_labels(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "labels").send_keys("red circle, <b>zebra</b>")
    Select(page.find_element(By.ID, "mode")).select_by_visible_text("head")
    page.find_element(By.ID, "again").click()
    wait(page, lambda: states(page, "shown") == 1)
    set_score(page, 0.0)
    (names,) = entries(page)
    assert {name.rpartition(" ")[0] for name in names} == {"red circle", "<b>zebra</b>"}
    page.find_element(By.ID, "labels").send_keys(",,")
    page.find_element(By.ID, "again").click()
    wait(page, lambda: states(page, "expected a label text") == 1)
    page.find_element(By.ID, "labels").clear()
    Select(page.find_element(By.ID, "mode")).select_by_visible_text("head and text")
    set_score(page, THRESHOLD)
    page.find_element(By.ID, "again").click()
    wait(page, lambda: states(page, "shown") == 2)


def test_page__downloads_what_infer_writes(
    page: webdriver.Chrome, predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    allow = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", allow)
    page.find_element(By.ID, "download").click()
    file = tmp_path / "detections.json"
    wait(page, file.is_file)
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    expected = [json.loads(predictor.predict_image(image, mode).to_json()) for mode in ("head", "text")]
    assert found == expected


DROP = """
const done = arguments[0];
const canvas = document.createElement("canvas");
canvas.toBlob((blob) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([blob], "dropped.png"));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
  done();
});
"""


def test_page__takes_what_is_dropped(page: webdriver.Chrome) -> None:
    page.execute_async_script(DROP)
    wait(page, lambda: states(page, "shown") == 4)
    names = [item.text for item in page.find_elements(By.CSS_SELECTOR, "article > h2")]
    assert names[0] == "dropped.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__fits_a_phone_and_follows_the_colour_scheme(page: webdriver.Chrome, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    width, colour = page.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    first, second = (panel.rect for panel in page.find_elements(By.CSS_SELECTOR, ".panel")[:2])
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (width, colour) == (390, {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 21, 27)"}[scheme])
    assert second["y"] > first["y"] + first["height"] - 1


def test_page__asks_for_the_token(
    driver: webdriver.Chrome, serve: Callable[[str | None], str], page: webdriver.Chrome
) -> None:
    driver.get(serve("sesame"))
    token = driver.find_element(By.ID, "token")
    wait(driver, token.is_displayed)
    assert "the bearer token is missing or wrong" in driver.find_element(By.ID, "problem").text
    token.send_keys("sesame\t")
    wait(driver, lambda: driver.find_element(By.ID, "name").text == "tiny")
    assert driver.find_element(By.ID, "problem").text == ""
