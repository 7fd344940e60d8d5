"""Windows of large images: where their boxes come to lie, which of them count, and what stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwendet.config.load import override_config
from qwendet.config.schema import Config, InferConfig
from qwendet.data.samples import Sample, SampleFile, Turn
from qwendet.data.windows import windows_of
from qwendet.errors import ConfigError
from qwendet.families.family import PixelLimits
from qwendet.inference import tiles as tiling
from qwendet.inference.batches import Skipped
from qwendet.inference.detections import Detection, Prediction, Source
from qwendet.inference.predictor import Predictor
from qwendet.inference.tiles import Tiles, require_tiles_that_fit
from qwendet.loader import Bundle

LIMITS = PixelLimits(56**2, 224**2, 28)
Box = tuple[float, float, float, float]


def predictor_with(bundle: Bundle, **infer: Any) -> Predictor:
    asked = [f"infer.{key}={value}" for key, value in infer.items()]
    return Predictor(replace(bundle, config=override_config(bundle.config, asked)))


def found(*boxes: Box, desc: str = "cell", score: float = 0.5, source: Source = "head") -> list[Detection]:
    return [Detection(box, desc, score, source) for box in boxes]


def merged(
    tiles: int | str, size: tuple[int, int], seen: dict[int, list[Detection]], **infer: Any
) -> list[Detection]:
    """What is made of detections in views: 0 is the whole image, then the windows."""
    config = InferConfig(tiles=tiles, **infer)
    sample = Sample(Turn("a.png", (), *size), where="a.png")

    views = Tiles(config, LIMITS).views(sample)
    predictions = [
        Prediction("a.png", *(view.student.declared_size or size), tuple(seen.get(at, ())), 0)
        for at, view in enumerate(views)
    ]
    prediction = Tiles(config, LIMITS).merged(views, predictions)
    assert (prediction.image, prediction.width, prediction.height) == ("a.png", *size)
    return list(prediction.detections)


@pytest.mark.parametrize(("tiles", "mode"), [("auto", "head"), ("1x1", "both"), (168, "text")])
def test_predict__a_window_that_is_the_whole_image_changes_nothing(
    bundle: Bundle, scenes_file: Path, tiles: str | int, mode: str
) -> None:
    """The scenes have at most 168 pixels a side, and the model sees 224: bit for bit the same."""
    samples = list(SampleFile(scenes_file))[:4]
    same = {"max_new_tokens": 9, "batch_size": 3, "score_threshold": 0.0}
    plain, tiled = predictor_with(bundle, **same), predictor_with(bundle, tiles=tiles, **same)
    assert list(tiled.predict(samples, mode)) == list(plain.predict(samples, mode))
    assert tiled.predict_all(samples, mode) == plain.predict_all(samples, mode)


def test_predict__batches_mix_windows_of_several_images(
    bundle: Bundle, scenes_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = list(SampleFile(scenes_file))[:3]
    predictor = predictor_with(bundle, tiles="2x1", batch_size=4)
    batches: list[list[str]] = []
    sound = predictor.predict_encoded

    def predict(batch: Sequence[Sample], encoded: Any, sources: Any) -> Any:
        batches.append([sample.student.image for sample in batch])
        return sound(batch, encoded, sources)

    monkeypatch.setattr(predictor, "predict_encoded", predict)
    names = [sample.student.image for sample in samples]
    done: list[int] = []
    together = predictor.predict_all(samples, advance=lambda count, _: done.append(count))
    assert sorted(name for batch in batches for name in batch) == sorted(names * 3)
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert done == [3]
    in_order = list(predictor.predict(samples))
    assert batches[3:] == batches[:3]
    assert len(set(batches[0])) == 2
    for prediction, one, sample in zip(together, in_order, samples, strict=True):
        assert prediction.image == one.image == sample.student.image
        assert (prediction.width, prediction.height) == sample.student.declared_size
        assert len(prediction.detections) == len(one.detections) > 0


def test_predict__a_window_is_what_a_crop_of_the_image_would_be(
    bundle: Bundle, scenes_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same boxes as of a file that holds the window alone, moved by where it begins."""
    sample = max(SampleFile(scenes_file), key=lambda sample: sample.student.width or 0)
    width, height = sample.student.declared_size or (0, 0)
    windows = windows_of((width, height), "2x1", 0.2)
    predictor = predictor_with(bundle, tiles="2x1", score_threshold=0.0)
    seen: list[tuple[list[Sample], list[Prediction]]] = []
    monkeypatch.setattr(Tiles, "merged", lambda _, views, found: seen.append((views, found)) or found[0])
    predictor.predict_all([sample])
    ((views, predictions),) = seen
    assert [view.student.window for view in views] == [None, *windows]
    for number, window in enumerate(windows, start=1):
        file = tmp_path / f"{number}.png"
        with Image.open(sample.student.root / sample.student.image) as image:
            image.convert("RGB").crop(window).save(file)
        alone = predictor_with(bundle, score_threshold=0.0).predict_image(file)
        for ours, wanted in zip(predictions[number].detections, alone.detections, strict=True):
            assert ours.score == pytest.approx(wanted.score, abs=1e-5)
            assert ours.bbox_2d == pytest.approx(wanted.bbox_2d, abs=0.02)


def test_predict__windows_few_labels_a_request_and_a_broken_image_go_together(
    bundle: Bundle, scenes_file: Path
) -> None:
    """The head needs one forward for all labels: the same boxes, to rounding; a broken image is told."""
    samples = list(SampleFile(scenes_file))[:3]
    plain = predictor_with(bundle, tiles="2x1", batch_size=4)
    data = plain.bundle.config.data.model_copy(update={"labels_per_request": 1})
    few = Predictor(replace(plain.bundle, config=plain.bundle.config.model_copy(update={"data": data})))
    assert len(list(few.requests(samples[0], ("text",)))) == len(plain.bundle.labels) > 1
    for one, other in zip(few.predict_all(samples, "head"), plain.predict_all(samples, "head"), strict=True):
        assert [item.desc for item in one.detections] == [item.desc for item in other.detections]
        scores = [item.score for item in other.detections]
        assert [item.score for item in one.detections] == pytest.approx(scores, abs=1e-5)
    absent = Sample(Turn("absent.png", ()), where="absent.png")
    results: dict[int, Any] = {}
    plan = few.plan([samples[0], absent, samples[1]], 4)
    few.predict_batches(plan, [0], lambda _, found: results.update(found), mode="head", skip_bad=True)
    assert isinstance(results[1], Skipped)
    assert [results[at].image for at in (0, 2)] == [sample.student.image for sample in samples[:2]]


def hundredths(least: int, most: int) -> st.SearchStrategy[float]:
    return st.integers(least * 100, most * 100).map(lambda value: value / 100)


@given(st.tuples(st.integers(300, 5000), st.integers(300, 5000)), st.integers(100, 290), st.data())
def test_moved__adds_whole_pixels_to_hundredths_of_pixels_exactly(
    size: tuple[int, int], tiles: int, data: st.DataObject
) -> None:
    window = data.draw(st.sampled_from(windows_of(size, tiles, 0.2)))
    side = st.tuples(hundredths(0, tiles), hundredths(0, tiles)).map(sorted)
    (x1, x2), (y1, y2) = data.draw(side), data.draw(side)
    found, _ = tiling._moved(Detection((x1, y1, x2, y2), "cell", 0.5, "head"), window, size)
    starts = (*window[:2], *window[:2])
    moved = [Decimal(str(number)) - start for number, start in zip(found.bbox_2d, starts, strict=True)]
    assert moved == [Decimal(str(number)) for number in (x1, y1, x2, y2)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([64, 90, "3x2", "4x4"]), st.sampled_from([0.3, 0.5]))
def test_predict__finds_each_drawn_rectangle_once_where_it_is(
    seed: int, tiles: int | str, overlap: float
) -> None:
    """A finder that reads boxes off the pixels of each window, cut ones too; in the whole it finds none."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((230, 260, 3), np.uint8)
    boxes = []
    for number in range(12):
        x1, y1 = (int(start) for start in rng.integers(0, (240, 210)))
        x2, y2 = (int(end) for end in rng.integers((x1 + 4, y1 + 4), (x1 + 18, y1 + 18)))
        if pixels[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1].any():
            continue
        pixels[y1:y2, x1:x2] = number + 1
        boxes.append((x1, y1, x2, y2))

    def predict(view: Sample) -> Prediction:
        left, top, right, bottom = view.student.window or (0, 0, 0, 0)
        shown = pixels[top:bottom, left:right, 0]
        hits = []
        for value in np.unique(shown[shown > 0]):
            rows, columns = np.nonzero(shown == value)
            x1, x2 = float(columns.min()), float(columns.max() + 1)
            y1, y2 = float(rows.min()), float(rows.max() + 1)
            hits.append(Detection((x1, y1, x2, y2), "cell", float(rng.uniform(0.2, 1)), "head"))
        return Prediction("a.png", *(view.student.declared_size or (0, 0)), tuple(hits), 0)

    tiled = Tiles(InferConfig(tiles=tiles, overlap=overlap), LIMITS)
    views = tiled.views(Sample(Turn("a.png", (), 260, 230), where="a.png"))
    prediction = tiled.merged(views, [predict(view) for view in views])
    assert sorted(item.bbox_2d for item in prediction.detections) == sorted(boxes)


SIZE = (200, 100)
"""Of an image whose two windows of 110 pixels begin at 0 and at 90."""


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        # One object in both windows, and again, coarser, in the whole image.
        (
            {
                0: found((94, 20, 112, 38), score=0.9),
                1: found((95, 20, 108, 40)),
                2: found((5, 20, 18, 40), score=0.6),
            },
            [(95, 20, 108, 40)],
        ),
        # Cut by the left window's edge, whole in the right one: the cut one goes, however sure it is.
        ({1: found((96, 20, 110, 40), score=0.9), 2: found((6, 20, 26, 40))}, [(96, 20, 116, 40)]),
        # Cut by both: the surer one stays.
        ({1: found((60, 20, 110, 40), score=0.6), 2: found((0, 20, 30, 40))}, [(60, 20, 110, 40)]),
        # Too large for a window: the whole image has it, and what windows show of it goes.
        (
            {0: found((10, 10, 190, 90), score=0.3), 1: found((10, 10, 110, 90)), 2: found((0, 10, 100, 90))},
            [(10, 10, 190, 90)],
        ),
        # At the image's own edge nothing is cut.
        ({1: found((0, 0, 20, 20), score=0.9), 0: found((0, 0, 40, 40))}, [(0, 0, 20, 20), (0, 0, 40, 40)]),
        # Of one view nothing is left out, and of another label neither.
        ({1: found((10, 10, 40, 40), (12, 10, 40, 40))}, [(10, 10, 40, 40), (12, 10, 40, 40)]),
        (
            {1: found((95, 20, 108, 40)), 2: found((5, 20, 18, 40), desc="dog")},
            [(95, 20, 108, 40), (95, 20, 108, 40)],
        ),
        ({1: found((95, 20, 108, 40)), 2: found((5, 20, 18, 40), source="text")}, [(95, 20, 108, 40)] * 2),
        ({}, []),
    ],
)  # fmt: skip
def test_merged__takes_each_object_from_the_view_that_shows_it_best(
    views: dict[int, list[Detection]], expected: list[Box]
) -> None:
    kept = merged(110, SIZE, views, overlap=0.15)
    assert sorted(item.bbox_2d for item in kept) == sorted(expected)
    assert [item.score for item in kept] == sorted((item.score for item in kept), reverse=True)


def test_merged__keeps_as_many_of_each_source_as_without_windows() -> None:
    boxes = [(float(at), 0.0, at + 5.0, 9.0) for at in range(0, 90, 10)]
    views = {
        1: found(*boxes, score=0.9) + found(*boxes, score=0.2, source="text"),
        2: found(*boxes, score=0.8),
    }
    kept = merged(110, SIZE, views, max_detections=10, overlap=0.15)
    assert [item.source for item in kept].count("head") == 10
    assert [item.source for item in kept].count("text") == 9
    assert [item.score for item in kept] == [0.9] * 9 + [0.8] + [0.2] * 9


def test_text__counts_of_all_answers_are_added_up(bundle: Bundle, scenes_file: Path) -> None:
    (sample,) = list(SampleFile(scenes_file))[:1]
    predictor = predictor_with(bundle, tiles="2x1", max_new_tokens=5, draft="off")
    (prediction,) = predictor.predict([sample], "text")
    assert prediction.answer is not None
    assert prediction.answer.truncated
    assert prediction.answer.text.count("\n") >= 2


def test_views__auto_windows_are_seen_without_shrinking() -> None:
    config = InferConfig(tiles="auto")
    for size in ((2048, 2048), (5000, 90), (230, 1000)):
        sample = Sample(Turn("a.png", (), *size), where="a.png")
        whole, *windows = Tiles(config, LIMITS).views(sample)
        assert whole is sample
        for view in windows:
            width, height = view.student.declared_size or (0, 0)
            resized = LIMITS.resized((width, height))
            assert abs(resized[0] - width) <= 14
            assert abs(resized[1] - height) <= 14
    assert len(windows) > 3
    fits = Sample(Turn("a.png", (), 230, 230), where="a.png")
    assert Tiles(config, LIMITS).views(fits) == [fits]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["infer.tiles=170"], "tiles of 170 would cut no image: the largest has "),
        (["infer.tiles=20"], "windows of 20x20.*at least 28x28"),
        (["infer.tiles=9x1"], r"windows of \d\dx\d+"),
    ],
)
def test_require_tiles_that_fit__refuses_what_shows_nothing(
    tiny_config: Config, scenes_file: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        require_tiles_that_fit(override_config(tiny_config, overrides), list(SampleFile(scenes_file)))
    assert caught.value.problems[0].where == "--tiles (infer.tiles)"


def test_require_tiles_that_fit__leaves_broken_images_to_whoever_predicts_them(tiny_config: Config) -> None:
    config = override_config(tiny_config, ["infer.tiles=640"])
    absent = Sample(Turn("absent.png", ()), where="absent.png")
    require_tiles_that_fit(config, [absent])
    small = Sample(Turn("a.png", (), 200, 100), where="a.png")
    with pytest.raises(ConfigError, match="the largest has 200x100 pixels"):
        require_tiles_that_fit(config, [absent, small])


@pytest.mark.parametrize("value", ["off", "auto", "3x2", 640])
def test_require_tiles_that_fit__takes_all_else(tiny_config: Config, value: str | int) -> None:
    large = Sample(Turn("a.png", (), 2000, 1000), where="a.png")
    require_tiles_that_fit(override_config(tiny_config, [f"infer.tiles={value}"]), [large])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("infer.tiles=3", None),
        ("infer.tiles=3x", "expected tiles, got '3x'"),
        ("infer.tiles=0", "expected tiles, got 0"),
        ("infer.tiles=true", "expected tiles, got True"),
        ("infer.overlap=1", "expected a number less than or equal to 0.9, got 1"),
        ("infer.overlap=-0.1", "expected a number greater than or equal to 0"),
    ],
)
def test_settings__refuse_what_is_no_window(tiny_config: Config, override: str, words: str | None) -> None:
    if words is None:
        assert override_config(tiny_config, [override]).infer.tiles == 3
        return
    with pytest.raises(ConfigError, match=words):
        override_config(tiny_config, [override])
