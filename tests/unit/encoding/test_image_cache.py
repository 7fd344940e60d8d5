"""The image cache: the same pixels to the bit, never stale, bounded, and whole after a kill."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from qwendet.data.samples import Sample, Turn
from qwendet.encoding import encode
from qwendet.encoding.encode import Encoder
from qwendet.encoding.image_cache import LEDGER, CachedImage, ImageCache
from qwendet.errors import DataError
from qwendet.loader import Bundle


@pytest.fixture
def photograph(tmp_path: Path) -> Sample:
    """Of a size that the processor must change."""
    pixels = np.random.default_rng(0).integers(0, 256, (117, 201, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    return Sample(Turn("a.jpg", (), root=tmp_path), where="test:1")


def encoder_of(bundle: Bundle, folder: Path, gigabytes: float = 1.0) -> Encoder:
    update = {"image_cache": str(folder), "image_cache_gigabytes": gigabytes}
    return Encoder(bundle.processor, bundle.labels, bundle.config.data.model_copy(update=update))


def pixels_of(encoder: Encoder, sample: Sample) -> torch.Tensor:
    return encoder.encode(sample, with_answer=False).pixel_values


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def test_pixels__are_those_without_a_cache_when_made_and_when_found(
    bundle: Bundle, photograph: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bundle.encoder().encode(photograph, with_answer=False)
    encoder = encoder_of(bundle, tmp_path / "cache")
    made = encoder.encode(photograph, with_answer=False)
    monkeypatch.setattr(encode, "open_image", None)  # decoding again would fail
    found = encoder.encode(photograph, with_answer=False)
    for one in (made, found):
        assert torch.equal(one.pixel_values, plain.pixel_values)
        assert torch.equal(one.image_grid_thw, plain.image_grid_thw)
        assert one.image_size == plain.image_size == (201, 117)


def test_a_changed_image__is_read_anew(bundle: Bundle, photograph: Sample, tmp_path: Path) -> None:
    encoder = encoder_of(bundle, tmp_path / "cache")
    before = pixels_of(encoder, photograph)
    Image.new("RGB", (201, 117), "red").save(tmp_path / "a.jpg")
    assert not torch.equal(pixels_of(encoder, photograph), before)
    assert len(entries(tmp_path / "cache")) == 2


def test_other_limits__have_entries_of_their_own(tmp_path: Path, photograph: Sample) -> None:
    file = tmp_path / "a.jpg"
    names = {ImageCache(tmp_path, 1.0, {"longest_edge": edge}).name_of(file) for edge in (1, 2)}
    assert len(names) == 2


def test_a_full_folder__takes_no_more(bundle: Bundle, photograph: Sample, tmp_path: Path) -> None:
    encoder = encoder_of(bundle, tmp_path / "cache", gigabytes=1e-9)
    plain = pixels_of(bundle.encoder(), photograph)
    assert torch.equal(pixels_of(encoder, photograph), plain)
    assert entries(tmp_path / "cache") == []


def test_bound__counts_what_others_wrote(tmp_path: Path) -> None:
    image = CachedImage(np.zeros((10, 10, 3), dtype=np.uint8), (10, 10))
    mine, other = (ImageCache(tmp_path, 1e-6, {}) for _ in range(2))
    other.keep("ab" * 32, image)
    other.keep("cd" * 32, image)
    mine.keep("ef" * 32, image)
    assert len(entries(tmp_path)) == 2


def image_of(number: int) -> tuple[str, CachedImage]:
    """One of many small images, and its name."""
    pixels = np.full((10, 10, 3), number % 256, dtype=np.uint8)
    return hashlib.sha256(str(number).encode()).hexdigest(), CachedImage(pixels, (10, 10))


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed, one after another."""
    seen: list[str] = []
    sound = os.scandir

    def scandir(path: Any = ".") -> Any:
        seen.append(str(path))
        return sound(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return seen


def test_keep__lists_the_folder_once_however_many_images_come(tmp_path: Path, listings: list[str]) -> None:
    for number in range(200):
        ImageCache(tmp_path, 1.0, {}).keep(*image_of(number))
    assert len(entries(tmp_path)) == 200
    listings.clear()
    cache = ImageCache(tmp_path, 1.0, {})
    for number in range(200, 300):
        cache.keep(*image_of(number))
    assert listings == []


def test_keep__of_a_folder_without_a_ledger_counts_what_is_there_once(
    tmp_path: Path, listings: list[str]
) -> None:
    """As an earlier version left it, or after images were removed."""
    for number in range(3):
        ImageCache(tmp_path, 1.0, {}).keep(*image_of(number))
    size = entries(tmp_path)[0].stat().st_size
    (tmp_path / LEDGER).unlink()
    listings.clear()
    cache = ImageCache(tmp_path, 4.5 * size / 1e9, {})
    for number in range(3, 8):
        cache.keep(*image_of(number))
    assert len(listings) == 1 + 3  # the cache and the folders in it
    assert len(entries(tmp_path)) == 4


def test_a_full_folder__is_not_listed_and_its_ledger_does_not_grow(
    tmp_path: Path, listings: list[str]
) -> None:
    cache = ImageCache(tmp_path, 1e-6, {})
    for number in range(2):
        cache.keep(*image_of(number))
    ledger = (tmp_path / LEDGER).read_bytes()
    listings.clear()
    for number in range(2, 100):
        cache.keep(*image_of(number))
    assert ((tmp_path / LEDGER).read_bytes(), listings) == (ledger, [])


def keep_many(folder: Path, first: int, gigabytes: float) -> None:
    cache = ImageCache(folder, gigabytes, {})
    for number in range(first, first + 40):
        cache.keep(*image_of(number))


def test_bound__holds_over_processes_that_write_at_once(tmp_path: Path) -> None:
    """Four of them want to keep 160 images, and there is room for 60 and a half."""
    size = len(safetensors.numpy.save({"pixels": image_of(0)[1].pixels}, {"width": "10", "height": "10"}))
    workers = [
        multiprocessing.get_context("fork").Process(
            target=keep_many, args=(tmp_path, 40 * index, 60.5 * size / 1e9)
        )
        for index in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(entries(tmp_path)) in range(57, 61)  # two that meet at the limit may both step back
    changes = array("q", (tmp_path / LEDGER).read_bytes())
    assert sum(changes) == len(entries(tmp_path)) * size


def test_keep__into_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write \(File exists\)") as caught:
        ImageCache(tmp_path / "cache", 1.0, {}).keep(*image_of(0))
    assert caught.value.problems[0].where == str(tmp_path / "cache" / LEDGER)


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_broken_entry__is_made_anew_and_said(
    bundle: Bundle, photograph: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    encoder = encoder_of(bundle, tmp_path / "cache")
    whole = pixels_of(encoder, photograph)
    (entry,) = entries(tmp_path / "cache")
    content = entry.read_bytes()
    entry.write_bytes(content[:-100] if damage == "cut" else b"")
    assert torch.equal(pixels_of(encoder, photograph), whole)
    assert "is broken" in caplog.text
    assert len(entry.read_bytes()) == len(content)


def test_a_killed_writer__leaves_nothing_that_is_read(
    bundle: Bundle, photograph: Sample, tmp_path: Path
) -> None:
    encoder = encoder_of(bundle, tmp_path / "cache")
    whole = pixels_of(encoder, photograph)
    (entry,) = entries(tmp_path / "cache")
    half = entry.with_name(f".{entry.name}.writing-1")
    half.write_bytes(entry.read_bytes()[:50])
    entry.unlink()
    assert torch.equal(pixels_of(encoder, photograph), whole)
    assert entries(tmp_path / "cache") == [entry]


def test_a_wrong_declared_size__is_still_an_error(bundle: Bundle, photograph: Sample, tmp_path: Path) -> None:
    encoder = encoder_of(bundle, tmp_path / "cache")
    pixels_of(encoder, photograph)
    declared = Sample(Turn("a.jpg", (), root=tmp_path, width=5, height=5), where="test:1")
    with pytest.raises(DataError, match=r"^test:1: the image 'a.jpg' is declared 5×5"):
        encoder.encode(declared, with_answer=False)


def test_an_absent_image__is_an_error_though_it_was_kept(
    bundle: Bundle, photograph: Sample, tmp_path: Path
) -> None:
    encoder = encoder_of(bundle, tmp_path / "cache")
    pixels_of(encoder, photograph)
    shutil.move(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"^test:1: .*is absent"):
        encoder.encode(photograph, with_answer=False)
