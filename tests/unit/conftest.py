"""Fixtures of unit tests: a small untrained model, and samples drawn for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.worlds import PRETRAIN
from qwendet.config.schema import Config, DataConfig, DetectionConfig, ModelConfig
from qwendet.data.samples import Sample, SampleFile, Turn
from qwendet.demo.shapes import write_dataset
from qwendet.encoding.collate import Batch
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import DataError
from qwendet.loader import Bundle, load
from qwendet.model.detector import Qwen25VLWithDetection
from tests.unit.data.voc_files import Voc

Mosaic = tuple[Sample, np.ndarray]


@pytest.fixture(scope="session")
def scenes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four drawn scenes of 84 to 168 pixels a side, so that grids differ and some exceed a window."""
    return write_dataset(PRETRAIN, tmp_path_factory.mktemp("scenes") / "scenes.jsonl", 24, seed=1)


@pytest.fixture(scope="session")
def lessons_file(scenes_file: Path) -> Path:
    """Four samples: two teachers; none; one teacher and no boxes; one teacher."""
    scenes = [json.loads(line) for line in scenes_file.read_text(encoding="utf-8").splitlines()]
    full = [scene for scene in scenes if 1 <= len(scene["objects"]) <= 3]  # short answers: fast tests
    full.sort(key=lambda scene: scene["width"] * scene["height"])
    empty = full[2] | {"objects": []}
    lessons = [
        {"teachers": [full[0], full[3]], "student": full[-1]},
        {"student": full[1]},
        {"teachers": [full[4]], "student": empty},
        {"teachers": [empty], "student": full[-2]},
    ]
    path = scenes_file.with_name("lessons.jsonl")
    path.write_text("".join(json.dumps(lesson) + "\n" for lesson in lessons), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def lessons(lessons_file: Path) -> list[Sample]:
    return list(SampleFile(lessons_file))


@pytest.fixture(scope="session")
def tiny_config(lessons_file: Path) -> Config:
    """The untrained tiny model with a small head. Some images have fewer patches than it has queries."""
    return Config(
        model=ModelConfig(path="tiny-untrained", dtype="float32", device="cpu", attn_implementation="sdpa"),
        data=DataConfig(train=str(lessons_file), labels=PRETRAIN.labels),
        detection=DetectionConfig(num_queries=70, hidden_size=128, num_layers=2, num_heads=4),
    )


@pytest.fixture(scope="session")
def bundle(tiny_config: Config) -> Bundle:
    """In float32; shared by all tests, so none may change it."""
    return load(tiny_config, for_inference=False)


@pytest.fixture(scope="session")
def detector64(bundle: Bundle) -> Qwen25VLWithDetection:
    """The same model in float64, its box regressors no longer all zero; none may change it."""
    detector = copy.deepcopy(bundle.detector).double()
    assert detector.head is not None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for regressor in (detector.head.dense_box, *detector.head.box):
            weight = regressor[-1].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return detector


@pytest.fixture(scope="session")
def encoded(bundle: Bundle, lessons: list[Sample]) -> list[EncodedSample]:
    """The lessons with their answers."""
    encoder = bundle.encoder()
    return [encoder.encode(lesson, with_answer=True) for lesson in lessons]


@pytest.fixture(scope="session")
def batch(bundle: Bundle, encoded: list[EncodedSample]) -> Batch:
    """All lessons in one batch; none may change it."""
    return bundle.collator()(encoded)


@pytest.fixture
def mosaic(tmp_path: Path) -> Callable[[int, int], Mosaic]:
    """Write an image of one random colour a patch, in a size that the processor keeps.

    Returns the sample and the colours ``(rows, columns, 3)``: what the patch at each place must show.
    """

    def write(columns: int, rows: int) -> Mosaic:
        colours = np.random.default_rng([columns, rows]).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        name = f"mosaic_{columns}x{rows}.png"
        Image.fromarray(colours.repeat(14, axis=0).repeat(14, axis=1)).save(tmp_path / name)
        return Sample(Turn(name, (), root=tmp_path), where=f"{name}:1"), colours

    return write


@pytest.fixture(scope="session")
def normalise(bundle: Bundle) -> Callable[[np.ndarray], np.ndarray]:
    """Colours ``(..., 3)`` of bytes as the image processor hands them to the model."""
    processor: Any = bundle.processor.image_processor

    def apply(colours: np.ndarray) -> np.ndarray:
        return (colours / 255 - np.array(processor.image_mean)) / np.array(processor.image_std)

    return apply


@pytest.fixture(scope="session")
def refusal() -> Callable[..., DataError]:
    """Call something that must refuse its data, and return its error."""

    def call(function: Callable[..., object], *args: object, **kwargs: object) -> DataError:
        with pytest.raises(DataError) as caught:
            function(*args, **kwargs)
        return caught.value

    return call


@pytest.fixture
def voc(tmp_path: Path) -> Voc:
    """A VOC folder to be filled."""
    return Voc(tmp_path / "voc")
