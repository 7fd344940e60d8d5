"""Images inside tars, and the shards that convert writes: the same images, order and checks as with files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from qwendet.data.archives import Member, file_at, identity, same_bytes
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.placing import Placement
from qwendet.data.images import AbsentImageError, inspect_image, open_image
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.errors import ConfigError, DataError


def png(colour: str, size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    members = {"a.png": png("red"), "./b.png": png("blue"), "in/c.png": png("red"), "a.json": b"{}"}
    return write_tar(tmp_path / "shard.tar", members)


@pytest.mark.parametrize(("name", "colour"), [("a.png", "red"), ("b.png", "blue"), ("in/c.png", "red")])
def test_member__is_opened_as_a_file(name: str, colour: str, shard: Path) -> None:
    image = open_image(f"shard.tar/{name}", shard.parent, "here")
    assert image.tobytes() == Image.new("RGB", (32, 24), colour).tobytes()
    facts = inspect_image(f"shard.tar/{name}", shard.parent, "here")
    assert (facts.size, facts.path) == ((32, 24), f"{shard}/{name}")


def test_member__has_an_identity_and_bytes_of_its_own(shard: Path, tmp_path: Path) -> None:
    a, b, c = (file_at(shard / name) for name in ("a.png", "b.png", "in/c.png"))
    assert isinstance(a, Member)
    assert isinstance(b, Member)
    assert isinstance(c, Member)
    assert len({identity(a), identity(b), identity(c)}) == 3
    assert same_bytes(a, c)
    assert not same_bytes(a, b)
    (tmp_path / "a.png").write_bytes(png("red"))
    assert same_bytes(a, tmp_path / "a.png")


def test_member__of_one_name_the_last_counts_and_a_changed_tar_is_read_anew(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", {"a.png": png("red")})
    assert open_image("x.tar/a.png", tmp_path, "").getpixel((0, 0)) == (255, 0, 0)
    write_tar(shard, {"a.png": png("blue", (40, 40))}, "a")
    assert open_image("x.tar/a.png", tmp_path, "").size == (40, 40)


@pytest.mark.parametrize("name", ["shard.tar/z.png", "shard.tar/in", "none.tar/a.png", "shard.tar"])
def test_absent_member__is_an_absent_image(name: str, shard: Path) -> None:
    with pytest.raises((AbsentImageError, DataError)) as refused:
        open_image(name, shard.parent, "train.jsonl:3")
    assert refused.value.problems[0].where == "train.jsonl:3"


def test_path__may_not_lead_out_of_the_root_through_a_tar(shard: Path) -> None:
    with pytest.raises(DataError, match="leaves the data root"):
        open_image("shard.tar/../../a.png", shard.parent, "here")


def test_cut_and_compressed_tars__are_named(shard: Path, tmp_path: Path) -> None:
    whole = shard.read_bytes()
    last = whole.index(b"a.json")
    for name, content in (("cut.tar", whole[:1400]), ("header.tar", whole[: last + 20])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="the tar cannot be read") as refused:
            open_image(f"{name}/a.png", tmp_path, "here")
        assert name in refused.value.problems[0].where
    write_tar(tmp_path / "z.tar", {"a.png": png("red")}, "w:gz")
    with pytest.raises(DataError, match="uncompressed"):
        open_image("z.tar/a.png", tmp_path, "here")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scenes as files, and the same as shards of four images."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 10), ("val", 3)):
        write_dataset(DEMO, folder / "files" / f"{split}.jsonl", count, seed=count)
    convert_dataset(folder / "files", folder / "coco", Conversion(target="coco"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwendet.data.formats.shard_writer.SHARD_SAMPLES", 4)
        convert_dataset(folder / "coco", folder / "shards", Conversion(target="webdataset"))
    return folder / "coco", folder / "shards"


def test_shards__hold_every_image_and_its_objects(converted: tuple[Path, Path], tmp_path: Path) -> None:
    coco, shards = converted
    assert sorted(path.name for path in shards.iterdir()) == [
        "SHA256SUMS", "train-000000.tar", "train-000001.tar", "train-000002.tar", "train.jsonl",
        "val-000000.tar", "val.jsonl",
    ]  # fmt: skip
    convert_dataset(coco, tmp_path / "plain", Conversion())
    for split, count in (("train", 10), ("val", 3)):
        ours, plain = SampleFile(shards / f"{split}.jsonl"), SampleFile(tmp_path / "plain" / f"{split}.jsonl")
        assert len(ours) == count
        for packed, file in zip(ours, plain, strict=True):
            assert packed.student.objects == file.student.objects
            one, other = (open_image(s.student.image, s.student.root, "") for s in (packed, file))
            assert one.tobytes() == other.tobytes()


def test_shards__are_what_webdataset_expects_and_sum_up(converted: tuple[Path, Path]) -> None:
    _, shards = converted
    with tarfile.open(shards / "train-000001.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["000000004.png", "000000004.json"]
        member = tar.extractfile("000000004.json")
        assert member is not None
        assert json.load(member)["images"] == ["000000004.png"]
    for line in (shards / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((shards / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("images", ["reference", "link"])
def test_shards__want_the_images(images: Placement, converted: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards hold the images themselves"):
        convert_dataset(converted[0], tmp_path / "out", Conversion(target="webdataset", images=images))
    assert not (tmp_path / "out").exists()
