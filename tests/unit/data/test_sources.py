"""Samples in shards, folders, object stores and mixtures: the same as those of files; every mistake named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from pycocotools.mask import encode

from qwendet.config.load import build_config, load_config
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.records import Target
from qwendet.data.images import inspect_image, open_image
from qwendet.data.mixture import mixed
from qwendet.data.parquet import FEDERATED, open_table
from qwendet.data.samples import Sample, SampleFile, SampleSource
from qwendet.data.segmentation import Rle
from qwendet.data.sources import samples_of
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.errors import ConfigError, DataError, EnvironmentLacksError
from tests.unit.data.test_shards import picture, write_table, write_tar

pyarrow = pytest.importorskip("pyarrow", reason="pip install 'qwendet[parquet]'")


def shown(samples: SampleSource) -> list[tuple[Any, bytes]]:
    """Objects and pixels of every sample."""

    def pixels(sample: Sample) -> bytes:
        return open_image(sample.student.image, sample.student.root, sample.where).tobytes()

    return [(sample.student.objects, pixels(sample)) for sample in samples]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes to train on and three to validate, as files; and as shards of four, of both kinds."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 10), ("val", 3)):
        write_dataset(DEMO, folder / "files" / f"{split}.jsonl", count, seed=count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwendet.data.formats.shard_writer.SHARD_SAMPLES", 4)
        for target in ("parquet", "webdataset"):
            convert_dataset(folder / "files", folder / target, Conversion(target=target))
    (folder / "webdataset" / "train.jsonl").unlink()
    return folder


def test_parquet__is_written_in_shards_with_checksums(scenes: Path) -> None:
    names = [f"train-00000{number}.parquet" for number in range(3)]
    assert sorted(file.name for file in (scenes / "parquet").iterdir()) == [
        "SHA256SUMS", *names, "val-000000.parquet",
    ]  # fmt: skip
    for line in (scenes / "parquet" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((scenes / "parquet" / name).read_bytes()).hexdigest() == digest
    assert [len(open_table(scenes / "parquet" / name)) for name in names] == [4, 4, 2]


@pytest.mark.parametrize(("size", "rows", "groups"), [(1, 256, 9), (1 << 20, 256, 1), (1 << 20, 4, 3)])
def test_parquet__row_groups_are_of_a_size(
    size: int, rows: int, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    file = write_dataset(DEMO, tmp_path / "in" / "train.jsonl", 9, seed=0)
    monkeypatch.setattr("qwendet.data.formats.shard_writer.GROUP_BYTES", size)
    monkeypatch.setattr("qwendet.data.formats.shard_writer.GROUP_ROWS", rows)
    convert_dataset(file, tmp_path / "out", Conversion(target="parquet"))
    assert parquet.ParquetFile(tmp_path / "out" / "train-000000.parquet").num_row_groups == groups


@pytest.mark.parametrize(
    "form", ["parquet", "parquet/train-*.parquet", "webdataset", "webdataset/train-*.tar"]
)
def test_shards__hold_what_the_files_hold(form: str, scenes: Path) -> None:
    samples = samples_of([scenes / form], split="train")
    assert shown(samples) == shown(SampleFile(scenes / "files" / "train.jsonl"))
    assert len(samples.line_bytes()) == 10
    image = samples[5].student
    assert inspect_image(image.image, image.root, "").size == (image.width, image.height)


def test_folder__gives_each_split_its_shards(scenes: Path) -> None:
    assert len(samples_of([scenes / "parquet"], split="val")) == 3
    with pytest.raises(DataError, match=r"no shard is of teachers: there are shards of train, val"):
        samples_of([scenes / "parquet"], split="teachers")


@pytest.mark.parametrize("target", ["parquet", "webdataset"])
def test_shards__keep_all_that_a_sample_file_says(scenes: Path, tmp_path: Path, target: Target) -> None:
    box = {"bbox_2d": [0, 0, 4, 4], "desc": "a"}
    mask = np.asfortranarray(np.eye(4, dtype=np.uint8))
    rle = {"size": [4, 4], "counts": encode(mask)["counts"].decode()}
    objects = [
        box | {"polygon": [[0, 0, 4, 0, 4, 4]], "frequency": "r"},
        box | {"rle": rle, "area": 3.5, "crowd": True, "difficult": True},
    ]
    own = {"labels": ["a", "b"], "neg_labels": ["b"], "not_exhaustive_labels": ["a"], "width": 4, "height": 4}
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = json.dumps({"images": ["a.png"], "objects": objects} | own)
    (tmp_path / "train.jsonl").write_text(line + "\n")
    wanted = samples_of(tmp_path / "train.jsonl", tmp_path)[0].student
    convert_dataset(tmp_path / "train.jsonl", tmp_path / "out", Conversion(target=target))
    (tmp_path / "out" / "train.jsonl").unlink(missing_ok=True)  # what the shards say by themselves
    found = samples_of([tmp_path / "out"], split="train")[0].student
    assert replace(found, image="", root=Path()) == replace(wanted, image="", root=Path())
    for got, item in zip(found.objects, wanted.objects, strict=True):
        assert (got.segmentation, got.frequency, got.area) == (item.segmentation, item.frequency, item.area)


def test_parquet__compresses_the_counts_of_a_mask(tmp_path: Path) -> None:
    """COCO's crowds have theirs as numbers, and a column has one type."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rle = {"size": [4, 4], "counts": [0, 1, 4, 1, 4, 1, 4, 1]}
    item = {"bbox_2d": [0, 0, 4, 4], "desc": "a", "rle": rle, "crowd": True}
    (tmp_path / "train.jsonl").write_text(json.dumps({"images": ["a.png"], "objects": [item]}) + "\n")
    convert_dataset(tmp_path / "train.jsonl", tmp_path / "out", Conversion(target="parquet"))
    (found,) = samples_of([tmp_path / "out"], split="train")[0].student.objects
    wanted = encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))["counts"].decode()
    assert found.segmentation == Rle(4, 4, wanted)


@pytest.mark.parametrize("target", ["parquet", "webdataset"])
def test_shards__take_images_whose_names_are_not_utf_8(tmp_path: Path, target: Target) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    line = json.dumps({"images": [name], "objects": []})
    (tmp_path / "train.jsonl").write_text(line + "\n")
    convert_dataset(tmp_path / "train.jsonl", tmp_path / "out", Conversion(target=target))
    turn = samples_of([tmp_path / "out"], split="train")[0].student
    assert open_image(turn.image, turn.root, "").getpixel((0, 0)) == (255, 0, 0)


def test_parquet__comes_back_as_files(scenes: Path, tmp_path: Path) -> None:
    report = convert_dataset(scenes / "parquet", tmp_path / "out", Conversion())
    assert report.images == {"train": 10, "val": 3}
    assert shown(SampleFile(tmp_path / "out" / "val.jsonl")) == shown(
        SampleFile(scenes / "files" / "val.jsonl")
    )


# Shards of others

COCO, CORNERS = [40, 8, 10, 20], [40, 8, 50, 28]


@pytest.mark.parametrize(
    "told",
    [
        {"objects": [{"bbox_2d": CORNERS, "desc": "bolt", "difficult": True}]},
        {"objects": {"bbox": [COCO], "category": ["bolt"], "difficult": [1]}},
        {
            "annotations": [{"bbox": COCO, "category_id": 7, "ignore": 1}],
            "categories": [{"id": 7, "name": "bolt"}],
        },
        [{"bbox": COCO, "label": "bolt", "difficult": True}],
    ],
    ids=["ours", "datasets", "COCO", "a list"],
)
def test_tar_of_others__is_read_where_it_lies(told: Any, tmp_path: Path) -> None:
    text = json.dumps(told).encode()
    shard = write_tar(
        tmp_path / "a.tar", {"in/0.x.json": b"{}", "in/0.png": picture(0)[0], "in/0.json": text}
    )
    (sample,) = samples_of([shard])
    (found,) = sample.student.objects
    assert (found.bbox_2d, found.desc, found.difficult) == (tuple(map(float, CORNERS)), "bolt", True)
    assert (sample.student.image, sample.where) == ("a.tar/in/0.png", f"{shard}/in/0.png")


def test_boxes_of_others__are_corners_where_these_alone_are_possible(tmp_path: Path) -> None:
    objects = [{"bbox": CORNERS, "category": "bolt"}]
    row = {"image": {"bytes": picture(0)[0], "path": "../a.png"}, "objects": objects}
    file = write_table(tmp_path / "a.parquet", {name: [value] for name, value in row.items()})
    samples = samples_of([file])
    assert samples[0].student.objects[0].bbox_2d == tuple(map(float, CORNERS))
    assert samples.form == "[x1, y1, x2, y2] (of 1 boxes 1 are impossible as COCO's, 0 as corners)"
    assert samples[0].student.image == "a.parquet/0/a.png"


# Object stores and the hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwendet" / "remote"


@pytest.fixture
def store(cache: Path, scenes: Path) -> MemoryFileSystem:
    """The scenes in fsspec's memory, below ``cells``."""
    memory = fsspec.filesystem("memory")
    memory.put(str(scenes) + "/", "/cells/", recursive=True)
    yield memory
    memory.rm("/cells", recursive=True)


@pytest.mark.parametrize("name", ["parquet/train-*.parquet", "webdataset", "files/train.jsonl"])
@pytest.mark.parametrize("start", ["memory://cells", "file://"])
def test_url__gives_what_the_files_hold(
    start: str, name: str, store: MemoryFileSystem, scenes: Path, cache: Path
) -> None:
    url = f"{start if start.startswith('memory') else start + str(scenes)}/{name}"
    for own in ("train", "val") if "*" in name else ("train",):  # a pattern means what it names
        assert len(samples_of([Path(url)], split=own)) == 10
    samples = samples_of([Path(url)], split="train")
    assert shown(samples) == shown(SampleFile(scenes / "files" / "train.jsonl"))
    assert list(cache.rglob("train*"))


def test_url__is_fetched_once_and_again_when_it_has_changed(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    original = MemoryFileSystem.get_file

    def note(self: MemoryFileSystem, name: str, *args: Any, **options: Any) -> None:
        fetched.append(name)
        original(self, name, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", note)
    for _ in range(2):
        samples_of(["memory://cells/parquet/val-000000.parquet"])
    assert fetched == ["/cells/parquet/val-000000.parquet"]
    store.copy("/cells/parquet/train-000000.parquet", "/cells/parquet/val-000000.parquet")
    assert len(samples_of(["memory://cells/parquet/val-000000.parquet"])) == 4
    assert len(fetched) == 2
    assert len(samples_of(["memory://cells/parquet/val-000000.parquet"], split="train")) == 4


def test_hub__is_asked_through_its_file_system(
    cache: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in answers the calls of ``HfFileSystem`` that are made, from a folder."""
    home = "datasets/team/cells/data"

    class Hub:
        def isdir(self, name: str) -> bool:
            return name == home

        def find(self, name: str) -> list[str]:
            return [f"{name}/{file.name}" for file in (scenes / "parquet").iterdir()]

        def ukey(self, name: str) -> str:
            return "1"

        def get_file(self, name: str, target: str) -> None:
            shutil.copy(scenes / "parquet" / Path(name).name, target)

    def url_to_fs(url: str) -> tuple[Hub, str]:
        assert fsspec.get_filesystem_class(url.partition(":")[0]) is huggingface_hub.HfFileSystem
        return Hub(), url.partition("://")[2]

    monkeypatch.setattr(fsspec, "url_to_fs", url_to_fs)
    samples = samples_of([f"hf://{home}"], split="train")
    assert shown(samples) == shown(SampleFile(scenes / "files" / "train.jsonl"))
    assert (cache / "hf" / home / "train-000002.parquet").is_file()


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("memory://cells/none.parquet", DataError, "there is no such file"),
        ("memory://cells/none-*.tar", DataError, "there is no such file, nor one of samples below it"),
        ("nothing://cells/a.tar", DataError, "Protocol not known: nothing"),
        ("s3://cells/a.tar", EnvironmentLacksError, r"pip install 'qwendet\[s3\]'"),
    ],
)
def test_url__that_cannot_be_fetched_is_named(
    url: str, kind: type[Exception], words: str, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(kind, match=words) as caught:
        samples_of([url])
    assert caught.value.problems[0].where == url


def test_url__in_a_config_stays_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: {train: [{path: 's3://b/a.jsonl', weight: 2}, b.parquet], val: 'hf://d'}"
    )
    data = load_config(tmp_path / "c.yaml").data
    assert [source.path for source in data.sources("train")] == [
        "s3://b/a.jsonl",
        str(tmp_path / "b.parquet"),
    ]
    assert (data.val, [source.weight for source in data.sources("train")]) == ("hf://d", [2.0, 1.0])


# Mixtures


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_weight__of_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config({"data": {"train": [{"path": "a.jsonl", "weight": weight}, "b.jsonl"]}}, "c.yaml")
    (problem,) = refused.value.problems
    assert problem.where == "c.yaml: data.train.0.weight"
    assert problem.what.startswith("expected ")


def test_sources__of_an_empty_list_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.train is an empty list"):
        build_config({"data": {"train": []}}, "c.yaml")


def test_mixed__by_hand() -> None:
    """Of ten samples the first six have weight 2.5, the others 0.5; in four epochs all are taken alike."""
    epochs = [mixed(range(10), None, [0, 6, 10], [2.5, 0.5], seed=0, epoch=epoch) for epoch in range(4)]
    assert {len(indices) for indices, _ in epochs} == {6 * 2 + 3 + 2}
    assert [first for _, first in epochs] == [8] * 4
    assert all(sorted(set(indices)) == sorted(indices[:first]) for indices, first in epochs)
    counts = Counter(index for indices, _ in epochs for index in indices)
    assert counts == {**dict.fromkeys(range(6), 10), **dict.fromkeys(range(6, 10), 2)}
    assert epochs[1] == mixed(range(10), None, [0, 6, 10], [2.5, 0.5], seed=0, epoch=1) != epochs[0]
    assert mixed(range(10), None, [0, 6, 10], [2.5, 0.5], seed=1, epoch=1) != epochs[1]


def test_mixed__repeats_of_rare_labels_come_before_weights() -> None:
    indices, first = mixed([0, 2, 3], [1, 2, 1], [0, 3, 4], [2.0, 1.0], seed=0, epoch=0)
    assert (sorted(indices), first) == ([0, 0, 2, 2, 2, 2, 3], 3)


# Bad input


def of_columns(folder: Path, **columns: list[Any]) -> Path:
    image = {"bytes": picture(0)[0], "path": "0.png"}
    return write_table(folder / "a.parquet", {"image": [image], **columns})


def no_column(folder: Path, scenes: Path) -> list[Path]:
    return [of_columns(folder, label=["bolt"])]


def objects_of_texts(folder: Path, scenes: Path) -> list[Path]:
    return [of_columns(folder, objects=["bolt"])]


def twice(folder: Path, scenes: Path) -> list[Path]:
    return [scenes / "parquet" / "val-000000.parquet", scenes / "parquet" / "val-*.parquet"]


def cut(folder: Path, scenes: Path) -> list[Path]:
    shutil.copytree(scenes / "webdataset", folder / "cut")
    shard = folder / "cut" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    return [folder / "cut" / "train-*.tar"]


def nothing(folder: Path, scenes: Path) -> list[Path]:
    return [folder / "no-*.tar"]


@pytest.mark.parametrize(
    ("plant", "what", "where"),
    [
        (no_column, "no column objects: expected image and objects, got image (struct<", "a.parquet"),
        (objects_of_texts, "the column objects holds string: expected a list of objects", "a.parquet"),
        (twice, "these samples are named twice", "val-000000.parquet"),
        (cut, "the tar cannot be read", "train-000001.tar"),
        (nothing, "there is no shard of this name, or below it", "no-*.tar"),
    ],
)  # fmt: skip
def test_mistake__is_named_when_the_source_is_opened(
    plant: Callable[[Path, Path], list[Path]], what: str, where: str, tmp_path: Path, scenes: Path
) -> None:
    with pytest.raises(DataError) as refused:
        samples_of(plant(tmp_path, scenes))
    (problem,) = refused.value.problems
    assert problem.what.startswith(what)
    assert problem.where.endswith(where)
    assert problem.fix


@pytest.mark.parametrize(
    ("image", "objects", "what"),
    [
        ({"bytes": None, "path": "/data/a.png"}, [], "the row names the image '/data/a.png' and"),
        ({"bytes": b"GIF", "path": "a.png"}, [], "'a.parquet/0/a.png' is not an image"),
        (None, [{"bbox": [1.0, 2.0, 3.0], "category": "bolt"}], "objects[0].bbox_2d: expected [x1"),
        (None, [{"bbox": COCO, "category": None}], "objects[0].desc: expected a label text, got None"),
    ],
)  # fmt: skip
def test_mistake__of_a_row_is_named_with_it(
    image: Any, objects: list[Any], what: str, tmp_path: Path
) -> None:
    columns = {"image": [image or {"bytes": picture(0)[0], "path": "a.png"}], "objects": [objects]}
    if not objects:
        kind = pyarrow.list_(
            pyarrow.struct({"bbox": pyarrow.list_(pyarrow.float64()), "category": pyarrow.string()})
        )
        columns["objects"] = pyarrow.array([[]], kind)
    samples = samples_of([write_table(tmp_path / "a.parquet", columns)])
    with pytest.raises(DataError) as refused:
        inspect_image(samples[0].student.image, samples[0].student.root, samples[0].where)
    (problem,) = refused.value.problems
    assert what in problem.what
    assert problem.where == f"{tmp_path / 'a.parquet'}: row 0"


def test_tar__without_the_json_of_an_image(tmp_path: Path) -> None:
    samples = samples_of([write_tar(tmp_path / "a.tar", {"0.png": picture(0)[0], "1.json": b"{}"})])
    with pytest.raises(DataError, match=r"there is no \.json of the image's name in the tar"):
        samples[0]


def test_conversion__that_fills_the_disk_leaves_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    calls: list[Any] = []
    original = parquet.ParquetWriter.write_table

    def full(self: Any, table: Any) -> None:
        calls.append(table)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        original(self, table)

    monkeypatch.setattr("qwendet.data.formats.shard_writer.GROUP_ROWS", 2)
    monkeypatch.setattr(parquet.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"cannot write the data set \(.*No space left"):
        convert_dataset(scenes / "files", tmp_path / "out", Conversion(target="parquet"))
    assert list(tmp_path.iterdir()) == []


def test_reads__of_neighbours_share_a_row_group(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images in one row group: it is read once for all of them, and once for what is said of them."""
    from qwendet.data import parquet

    samples = samples_of([scenes / "parquet" / "train-000000.parquet"])
    read: list[tuple[str, ...]] = []
    original = parquet.Table._read

    def note(self: parquet.Table, number: int, columns: tuple[str, ...]) -> Any:
        read.append(columns)
        return original(self, number, columns)

    monkeypatch.setattr(parquet.Table, "_read", note)
    parquet._group.cache_clear()
    parquet._group_of_images.cache_clear()
    for index in np.random.default_rng(0).permutation(4):
        turn = samples[int(index)].student
        open_image(turn.image, turn.root, "")
    assert sorted(read) == [
        ("image.bytes",),
        ("width", "height", "objects", "labels", *FEDERATED, "image.path"),
    ]
