"""What the data checks are made of, held against what owns the truth: the published resizer, the encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from qwendet.checks.config.lookalikes import lookalikes, nearest_lookalike
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import exit_code, require_files, run_config_checks
from qwendet.config.load import load_config
from qwendet.config.schema import Config, DataConfig, ModelConfig
from qwendet.encoding.image_tokens import image_limits
from qwendet.errors import DataError, Result
from qwendet.families.family import PixelLimits
from qwendet.loader import Bundle, load_interface
from tests.planted.planting import Project

SIDES = st.integers(2, 6000)


@given(SIDES, SIDES, st.sampled_from([(3136, 50_176), (3136, 12_845_056), (200_704, 1_003_520)]))
def test_model_size__is_that_of_the_published_resizer(
    width: int, height: int, limits: tuple[int, int]
) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    expected = smart_resize(height, width, 28, *limits)
    assert PixelLimits(*limits, 28).resized((width, height))[::-1] == expected


def test_image_limits__are_the_models_own_unless_set() -> None:
    assert image_limits(Config()) == PixelLimits(3136, 50_176, 28)
    hub_id = ModelConfig(path="Qwen/Qwen2.5-VL-3B-Instruct")
    assert image_limits(Config(model=hub_id)) == PixelLimits(3136, 12_845_056, 28)
    limits = DataConfig(max_pixels=50_176)
    assert image_limits(Config(model=hub_id, data=limits)) == PixelLimits(3136, 50_176, 28)
    assert image_limits(Config(model=ModelConfig(path="somebody/cells"))) is None


def test_load_interface__needs_no_model(bundle: Bundle, tiny_config: Config) -> None:
    encoder, labels = load_interface(tiny_config).encoder(), bundle.labels
    assert encoder.label_tokens(labels) == bundle.encoder().label_tokens(labels)


def test_token_table__gives_median_and_most(tmp_path: Path) -> None:
    project = Project.sound(tmp_path)
    config = load_config(project.write())
    results, tables = run_config_checks(config, Thoroughness(tokens=True))
    assert {result.status for result in results if result.id.startswith("config.tokens.")} == {"pass"}
    encoder = load_interface(config).encoder()
    from qwendet.data.samples import SampleFile

    counts = sorted(
        len(encoder.encode(sample, with_answer=True).input_ids)
        for sample in SampleFile(tmp_path / "train.jsonl")
    )
    (row,) = (row for row in tables[-1].rows if row[0] == "train")
    assert (row[1], row[4], row[5]) == (12, counts[-1], 8192)
    assert counts[5] <= row[2] <= counts[6]


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        (["cat", "Cat", "dog"], [["cat", "Cat"]]),
        (
            ["traffic light", "traffic-light", "traffic_light"],
            [["traffic light", "traffic-light", "traffic_light"]],
        ),
        (["cafe\u0301", "café"], [["cafe\u0301", "café"]]),
        (["пёс", "кот", "dog"], []),
        (["A", "a", "B"], []),
        (["C", "C++", "c#"], []),
        (["می‌خواهم", "میخواهم"], [["می‌خواهم", "میخواهم"]]),
    ],
)
def test_lookalikes__are_what_a_person_reads_as_one(labels: list[str], groups: list[list[str]]) -> None:
    assert lookalikes(labels) == groups


def test_nearest_lookalike__is_another_label() -> None:
    assert nearest_lookalike("Cat.", ["dog", "cat"]) == "cat"
    assert nearest_lookalike("cat", ["dog", "cat"]) is None


# Files that may not be read, and how it ends


def test_unreadable_files__are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(DataError) as caught:
        require_files([("data.train", path), ("data.val", tmp_path / "no.jsonl")], str(tmp_path))
    assert [(problem.where, problem.what.split(":")[0]) for problem in caught.value.problems] == [
        ("data.train", "the sample file may not be read"),
        ("data.val", "there is no such sample file"),
        ("data.root", "the folder may not be read"),
    ]
    assert {problem.id for problem in caught.value.problems} == {"config.data.files"}


def test_folder_that_may_not_be_written__is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.sound(tmp_path)
    project.write()

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    failed = dict(project.failures())
    assert "Permission denied" in failed["config.train.output_dir"]


def test_images_that_may_not_be_read__are_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    project = Project.sound(tmp_path)
    monkeypatch.setattr("qwendet.data.images.Image.open", refuse)
    failed = project.failures()
    assert [id for id, _ in failed] == ["config.images.root", "config.images.root"]
    assert "none of the 4 images may be read" in failed[0][1]


def test_empty_training_file__is_the_only_problem(tmp_path: Path) -> None:
    project = Project.sound(tmp_path)
    project.files["train"] = []
    assert [id for id, _ in project.failures()] == ["config.data.empty"]


def test_no_images__opens_none_and_uses_declared_sizes(tmp_path: Path) -> None:
    project = Project.sound(tmp_path)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    project.at(4).update(width=100, height=100)
    found = project.failures(images="none")
    assert {id for id, _ in found} == {"config.boxes.inside"}
    assert "train.jsonl:5" in found[0][1]


@pytest.mark.parametrize(
    ("failed", "code"),
    [
        ([], 0),
        (["config.environment.gpu"], 3),
        (["config.environment.gpu", "config.environment.flash_attention"], 3),
        (["config.environment.gpu", "config.boxes.inside"], 1),
    ],
)
def test_exit_code__is_3_if_the_machine_is_all_that_is_wrong(failed: list[str], code: int) -> None:
    results = [Result("config.data.empty", "pass", "fine"), *(Result(id, "fail", "bad") for id in failed)]
    assert exit_code(results) == code


def test_numbers_beyond_measure__are_problems_and_no_crash(tmp_path: Path) -> None:
    project = Project.sound(tmp_path)
    project.at(0)["objects"][0]["bbox_2d"] = [-1e300, 0, 1e300, 1e38]
    project.at(1)["objects"][0]["bbox_2d"] = [float("nan"), 0, float("inf"), 7]
    project.at(2)["width"] = 10**400
    project.at(3).update(images=["absent.png"], width=2**31 - 1, height=1)
    found = project.failures()
    assert [(id, words.split(" | ")[1].rpartition(":")[2]) for id, words in found] == [
        ("config.data.samples", "2"),
        ("config.data.samples", "3"),
        ("config.images.open", "4"),
        ("config.boxes.inside", "1"),
    ]
