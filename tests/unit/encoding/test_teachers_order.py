"""Which demonstrations and which order: functions of seed, epoch and index, and of nothing else."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from qwendet.config.schema import Config, DataConfig, TrainConfig
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.records import Target
from qwendet.data.samples import SampleFile
from qwendet.data.teachers import choose_teachers
from qwendet.encoding.dataset import TrainingSamples, usable_samples
from qwendet.loader import Bundle
from qwendet.training.sampler import BATCHES_PER_GROUP, EpochOrder


def draws(epoch: int = 0, seed: int = 0, ratio: float = 1.0) -> list[list[int]]:
    return [choose_teachers(seed, epoch, index, 20, 3, ratio, exclude=index) for index in range(20)]


def test_choose_teachers__never_the_sample_itself_and_never_one_twice() -> None:
    for epoch in range(30):
        for index, chosen in enumerate(draws(epoch)):
            assert index not in chosen
            assert len(set(chosen)) == 3
            assert set(chosen) < set(range(20))


def test_choose_teachers__depends_on_seed_epoch_and_index_alone() -> None:
    first = draws()
    random.seed(123)
    np.random.seed(123)  # noqa: NPY002
    torch.manual_seed(123)
    assert draws() == first
    assert draws(epoch=1) != first
    assert draws(seed=1) != first
    assert len({tuple(chosen) for chosen in first}) > 15


def test_choose_teachers__same_in_every_process() -> None:
    """Written down once: a hash that Python salts would give other numbers in each process."""
    assert choose_teachers(0, 0, 7, pool_size=100, count=3, ratio=1.0) == [12, 81, 26]


def test_choose_teachers__all_are_drawn_equally_often() -> None:
    counts = Counter(
        at
        for epoch in range(200)
        for at in choose_teachers(0, epoch, 4, pool_size=5, count=1, ratio=1.0, exclude=4)
    )
    assert set(counts) == {0, 1, 2, 3}
    assert all(30 <= count <= 70 for count in counts.values())


def test_choose_teachers__ratio_is_the_share_of_samples_that_get_any() -> None:
    some = [bool(choose_teachers(0, 0, index, 20, 1, 0.3)) for index in range(2000)]
    assert 0.27 <= sum(some) / len(some) <= 0.33
    assert not any(draws(ratio=0.0))


@pytest.mark.parametrize(("pool_size", "expected"), [(1, 0), (2, 1), (3, 2)])
def test_choose_teachers__a_small_pool_gives_what_it_has(pool_size: int, expected: int) -> None:
    assert len(choose_teachers(0, 0, 0, pool_size, 3, 1.0, exclude=0)) == expected


# Order

LENGTHS = np.random.default_rng(0).integers(50, 5000, 1103).tolist()


class Lengths(list[int]):
    """Samples of which only the lengths are known."""

    def set_epoch(self, epoch: int) -> None:
        pass

    def lengths(self) -> list[int]:
        return self


def order(seed: int = 0, batch_size: int = 4, lengths: list[int] = LENGTHS) -> EpochOrder:
    return EpochOrder(Lengths(lengths), batch_size, seed)


def in_epoch(epoch: int, seed: int = 0) -> list[int]:
    sampler = order(seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_epoch_order__is_a_permutation() -> None:
    sampler = order()
    assert sorted(sampler) == list(range(1103))
    assert len(sampler) == 1103


def test_epoch_order__depends_on_seed_and_epoch_alone() -> None:
    first = in_epoch(0)
    random.seed(5)
    torch.manual_seed(5)
    state = random.getstate()
    assert in_epoch(0) == first
    assert random.getstate() == state
    assert in_epoch(1) != first
    assert in_epoch(0, seed=1) != first


def test_epoch_order__repeats_an_epoch_when_asked_twice() -> None:
    sampler = order()
    sampler.set_epoch(3)
    assert list(sampler) == list(sampler)


def batches(sequence: list[Any], size: int) -> list[list[Any]]:
    return [sequence[start : start + size] for start in range(0, len(sequence), size)]


def test_epoch_order__a_batch_holds_neighbours_in_length() -> None:
    """Of one group of 50 batches: put in order, the batches' lengths are the sorted lengths."""
    lengths = LENGTHS[: 4 * BATCHES_PER_GROUP]
    found = [[lengths[index] for index in batch] for batch in batches(list(order(lengths=lengths)), 4)]
    assert found != sorted(found)
    assert [length for batch in sorted(found) for length in batch] == sorted(lengths)


def test_epoch_order__batches_are_far_more_alike_than_chance() -> None:
    def padding(sequence: list[int]) -> int:
        groups = [[LENGTHS[index] for index in batch] for batch in batches(sequence, 4)]
        return sum(max(group) * len(group) - sum(group) for group in groups)

    assert padding(in_epoch(0)) < 0.1 * padding(list(range(1103)))


def test_epoch_order__the_short_batch_comes_last() -> None:
    """1103 is 275 batches of 4 and one of 3: were the short one elsewhere, all after it would be mixed."""
    groups = [[LENGTHS[index] for index in batch] for batch in batches(in_epoch(0), 4)]
    assert [len(group) for group in groups] == [4] * 275 + [3]
    assert max(max(group) - min(group) for group in groups) < 1000


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_epoch_order__of_few_samples(count: int) -> None:
    assert sorted(order(lengths=LENGTHS[:count])) == list(range(count))


# Both in the dataset


def dataset(bundle: Bundle, train: Path, ratio: float = 1.0, **settings: object) -> TrainingSamples:
    config = Config(
        data=DataConfig(
            train=str(train), labels=bundle.labels, teacher_ratio=ratio, num_teachers=2, **settings
        ),
        train=TrainConfig(seed=7),
    )
    return TrainingSamples(config, bundle.encoder())


def shown(samples: TrainingSamples) -> list[list[str]]:
    return [[turn.image for turn in samples.sample(at).teachers] for at in range(len(samples))]


def test_training_samples__draw_teachers_anew_each_epoch(bundle: Bundle, scenes_file: Path) -> None:
    samples = dataset(bundle, scenes_file)
    first = shown(samples)
    for at, images in enumerate(first):
        assert len(images) == 2
        assert samples.samples[at].student.image not in images
    assert shown(samples) == first
    samples.set_epoch(1)
    assert shown(samples) != first
    samples.set_epoch(0)
    assert shown(samples) == first


def test_training_samples__teachers_are_in_the_tokens(bundle: Bundle, scenes_file: Path) -> None:
    encoded = dataset(bundle, scenes_file)[0]
    assert len(encoded.image_grid_thw) == 3
    assert len(encoded.teacher_assistant_spans) == 2


def test_training_samples__own_teachers_come_first(bundle: Bundle, lessons_file: Path) -> None:
    samples = dataset(bundle, lessons_file)
    own = [len(sample.teachers) for sample in SampleFile(lessons_file)]
    assert own == [2, 0, 1, 1]
    assert [len(images) for images in shown(samples)] == [2, 2, 1, 1]


def test_training_samples__a_pool_never_shows_a_sample_its_own_image(
    bundle: Bundle, scenes_file: Path
) -> None:
    pool = scenes_file.with_name("pool.jsonl")
    pool.write_text("".join(scenes_file.read_text().splitlines(keepends=True)[:2]))
    samples = dataset(bundle, scenes_file, teachers=str(pool))
    both = {sample.student.image for sample in SampleFile(pool)}
    asked = [sample.student.image for sample in SampleFile(scenes_file)]
    assert [set(images) for images in shown(samples)] == [both - {image} for image in asked]


def test_training_samples__a_copy_of_the_own_image_is_never_shown(
    bundle: Bundle, scenes_file: Path, tmp_path: Path
) -> None:
    """In a pool, and in the training set itself; there are three images, so that two are always left."""
    shutil.copytree(scenes_file.parent, tmp_path, dirs_exist_ok=True)
    scenes = scenes_file.read_text().splitlines(keepends=True)
    own = json.loads(scenes[0])["images"][0]
    shutil.copyfile(tmp_path / own, tmp_path / "copy.png")
    copy = scenes[0].replace(own, "copy.png")
    train, pool = tmp_path / "train.jsonl", tmp_path / "pool.jsonl"
    train.write_text("".join([scenes[0], copy, *scenes[1:3]]))
    pool.write_text("".join([copy, *scenes[1:3]]))
    for samples in (dataset(bundle, train), dataset(bundle, train, teachers=str(pool))):
        for epoch in range(5):
            samples.set_epoch(epoch)
            first, second, *_ = shown(samples)
            assert {own, "copy.png"}.isdisjoint({*first, *second})
            assert len(first) >= 1


def test_training_samples__what_was_left_out_teaches_nobody(
    bundle: Bundle, scenes_file: Path, tmp_path: Path
) -> None:
    broken = {"images": ["absent.png"], "objects": []}
    lines = [json.dumps(broken) + "\n"] * 6 + scenes_file.read_text().splitlines(keepends=True)[:4]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(lines))
    samples = dataset(bundle, train, root=str(scenes_file.parent))
    usable, problems = usable_samples(samples.samples, bundle.labels)
    samples = TrainingSamples(samples.config, bundle.encoder(), usable)
    assert (samples.indices, len(problems)) == ([6, 7, 8, 9], 6)
    for epoch in range(10):
        samples.set_epoch(epoch)
        for at, images in enumerate(shown(samples)):
            assert "absent.png" not in images
            assert samples.sample(at).student.image not in images


def test_training_samples__lengths_are_those_of_the_demonstrations_drawn(
    bundle: Bundle, scenes_file: Path
) -> None:
    """Samples with and without demonstrations, and short and long ones, are to share few batches."""
    samples = dataset(bundle, scenes_file, ratio=0.5)
    own = samples.samples.line_bytes()
    by_image = {sample.student.image: own[at] for at, sample in enumerate(SampleFile(scenes_file))}
    seen = []
    for epoch in range(2):
        samples.set_epoch(epoch)
        expected = [
            (len(images), own[at] + sum(by_image[image] for image in images))
            for at, images in enumerate(shown(samples))
        ]
        assert samples.lengths() == expected
        assert {count for count, _ in expected} == {0, 2}
        seen.append(expected)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_set_epoch__reaches_sampler_and_dataset_through_accelerate(
    bundle: Bundle, scenes_file: Path, processes: int
) -> None:
    """Of several processes accelerate tells the sampler alone, which passes it on."""
    samples = dataset(bundle, scenes_file)
    sampler = EpochOrder(samples, 4, seed=7)
    loader = DataLoader(samples, batch_size=4, sampler=sampler, collate_fn=bundle.collator())
    prepared = prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)
    prepared.set_epoch(2)
    assert (sampler.epoch, samples.epoch) == (2, 2)
    whole = [samples.samples.where(index) for index in sampler]
    expected = [source for batch in batches(whole, 4)[::processes] for source in batch]
    assert [source for batch in prepared for source in batch["where"]] == expected


# In shards and mixtures


@pytest.mark.parametrize("target", ["parquet", "webdataset"])
def test_training_samples__from_shards_are_those_of_files(
    target: Target, bundle: Bundle, scenes_file: Path, tmp_path: Path
) -> None:
    """Demonstrations, labels and augmentation are drawn by index: the same tokens, pixels and boxes."""
    convert_dataset(scenes_file, tmp_path / "shards", Conversion(target=target))
    (tmp_path / "shards" / "train.jsonl").unlink(missing_ok=True)
    settings = {"augment": "light", "labels_per_request": 2}
    ours, files = (dataset(bundle, path, **settings) for path in (tmp_path / "shards", scenes_file))
    for at in (3, 0, 17):
        one, other = ours[at], files[at]
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.pixel_values, other.pixel_values)
        assert torch.equal(one.boxes_cxcywh, other.boxes_cxcywh)


def test_mixture__takes_each_source_by_its_weight_and_never_shows_a_sample_itself(
    bundle: Bundle, scenes_file: Path
) -> None:
    lines = scenes_file.read_text().splitlines(keepends=True)
    paths = [scenes_file.with_name(f"part-{number}.jsonl") for number in range(2)]
    for path, own in zip(paths, (lines[:6], lines[6:10]), strict=True):
        path.write_text("".join(own))
    weighed = [{"path": str(path), "weight": weight} for path, weight in zip(paths, (2, 0.5), strict=True)]
    data = DataConfig(train=weighed, labels=bundle.labels, teacher_ratio=1.0, num_teachers=2)
    samples = TrainingSamples(Config(data=data, train=TrainConfig(seed=7)), bundle.encoder())
    taken: Counter[int] = Counter()
    for epoch in range(2):
        samples.set_epoch(epoch)
        assert len(samples) == 2 * 6 + 2
        taken.update(samples.indices)
        for at, images in enumerate(shown(samples)):
            assert len(set(images)) == 2
            assert samples.sample(at).student.image not in images
        twice = [shown(samples)[at] for at, index in enumerate(samples.indices) if index == 0]
        assert twice[0] != twice[1]
    assert taken == {**dict.fromkeys(range(6), 4), **dict.fromkeys(range(6, 10), 1)}
