"""What the checks look at: both builds of the same weights, samples of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwendet.checks.consistency.pair import pair
from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.schema import Config
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import DataError
from qwendet.loader import Bundle


@pytest.fixture(scope="module")
def subject(tiny_config: Config, bundle: Bundle) -> Iterator[Subject]:
    with temporary_subject(tiny_config, bundle) as made:
        yield made


def with_lines(config: Config, path: Path, lines: list[object], on_bad_sample: str = "error") -> Config:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    update = {
        "train": str(path),
        "root": str(Path(str(config.data.train)).parent),
        "on_bad_sample": on_bad_sample,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def samples_of(config: Config, bundle: Bundle) -> list[Sample]:
    resolved = bundle.config.model_copy(update={"data": config.data})
    with temporary_subject(config, replace(bundle, config=resolved, manifest=None)) as made:
        return made.samples


def test_samples__are_of_every_kind(subject: Subject, encoded: list[EncodedSample]) -> None:
    """All four lessons, though not in the file's order: teachers and boxes, bare, negative."""
    kinds = [(len(sample.teachers), bool(sample.student.objects)) for sample in subject.samples]
    assert kinds == [(2, True), (0, True), (1, False), (1, True)]
    assert sorted(len(sample.input_ids) for sample in subject.encoded) == sorted(
        len(sample.input_ids) for sample in encoded
    )
    assert subject.collator(subject.encoded)["num_boxes"][2] == 0


def test_samples__missing_kinds_are_made(
    tiny_config: Config, bundle: Bundle, lessons_file: Path, tmp_path: Path
) -> None:
    lessons = [json.loads(line) for line in lessons_file.read_text(encoding="utf-8").splitlines()]
    bare = [lessons[1]["student"], lessons[3]["student"]]
    found = samples_of(with_lines(tiny_config, tmp_path / "bare.jsonl", bare), bundle)
    assert [sample.where.partition(":")[2] for sample in found if "jsonl" in sample.where] == [
        "1 (another sample put before it)",
        "1",
        "1 (its boxes taken away)",
        "2",
    ]
    assert found[0].teachers == (found[3].student,)
    assert found[2].student.objects == ()


def test_samples__a_demonstration_is_cut_to_one_box_where_it_would_not_fit(
    tiny_config: Config, bundle: Bundle, lessons_file: Path, tmp_path: Path
) -> None:
    lessons = [json.loads(line) for line in lessons_file.read_text(encoding="utf-8").splitlines()]
    bare = [lessons[1]["student"], lessons[3]["student"]]
    for turn in bare:
        (item,) = turn["objects"][:1]
        turn["objects"] = [{**item, "bbox_2d": [index, 0, 20 + index, 20]} for index in range(8)]
    config = with_lines(tiny_config, tmp_path / "bare.jsonl", bare)
    longest = max(
        len(bundle.encoder().encode(sample, with_answer=True).input_ids)
        for sample in samples_of(config, bundle)[1:]
    )
    limit = {"max_tokens": longest + longest // 4}  # as `qwendet init` has it
    config = config.model_copy(update={"data": config.data.model_copy(update=limit)})
    found = samples_of(config, bundle)
    assert found[0].where.endswith(":1 (another sample put before it, one box each)")
    assert [len(turn.objects) for turn in (found[0].student, *found[0].teachers)] == [1, 1]


def test_samples__one_is_enough(
    tiny_config: Config, bundle: Bundle, lessons_file: Path, tmp_path: Path
) -> None:
    lesson = json.loads(lessons_file.read_text(encoding="utf-8").splitlines()[0])
    found = samples_of(with_lines(tiny_config, tmp_path / "one.jsonl", [lesson]), bundle)
    assert [(len(sample.teachers), bool(sample.student.objects)) for sample in found] == [
        (2, True),
        (0, True),
        (2, False),
    ]


def test_samples__broken_ones_are_left_out_only_if_asked_for(
    tiny_config: Config, bundle: Bundle, lessons_file: Path, tmp_path: Path
) -> None:
    lesson = json.loads(lessons_file.read_text(encoding="utf-8").splitlines()[1])
    lines = [{"images": ["nowhere.png"], "objects": []}, {"images": 1}, lesson]
    config = with_lines(tiny_config, tmp_path / "broken.jsonl", lines, "skip")
    assert {sample.where.split(" ")[0] for sample in samples_of(config, bundle)} == {
        f"{tmp_path}/broken.jsonl:3"
    }
    with pytest.raises(DataError, match=r"broken.jsonl:2"):
        samples_of(with_lines(tiny_config, tmp_path / "broken.jsonl", lines), bundle)


def test_served__is_the_training_build_in_evaluation_mode(subject: Subject) -> None:
    """A new head too: inference never builds one, so it comes from what was saved."""
    served, bundle = pair(subject).served, pair(subject).trained
    assert served.detector is not bundle.detector
    assert not served.detector.training
    ours, theirs = (
        model.state_dict() | dict(model.named_buffers()) for model in (bundle.detector, served.detector)
    )
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("head.") for name in theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert served.labels == bundle.labels


def test_bundle__is_frozen_as_training_freezes_it(tiny_config: Config, bundle: Bundle) -> None:
    train = tiny_config.train.model_copy(update={"vision_learning_rate": 0.0})
    frozen = replace(bundle, config=bundle.config.model_copy(update={"train": train}), manifest=None)
    with temporary_subject(tiny_config, frozen) as made:
        patch = made.bundle.detector.vlm.model.visual.patch_embed.proj.weight
        assert not patch.requires_grad
    with temporary_subject(tiny_config, bundle) as made:
        assert made.bundle.detector.vlm.model.visual.patch_embed.proj.weight.requires_grad
