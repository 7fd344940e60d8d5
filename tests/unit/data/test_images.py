"""Images: every way in which a file can be bad has its own message; every good one comes out upright RGB."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from qwendet.data.images import (
    MAX_IMAGE_PIXELS,
    decode_image,
    image_size,
    inspect_image,
    open_image,
    resolve_image,
)
from qwendet.errors import DataError

WHERE = "train.jsonl:3"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


def noise(image_format: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    )


def both_errors(root: Path, image: str) -> tuple[str, str]:
    """What `open_image` and `image_size` say; neither may let the image pass, nor may `decode_image`."""
    with pytest.raises(DataError) as opening:
        open_image(image, root, WHERE)
    if not re.search("the data root|is absolute|is absent|cannot be followed", str(opening.value)):
        with pytest.raises(DataError, match=re.escape(str(opening.value))):
            decode_image((root / image).read_bytes(), image, WHERE)
    with pytest.raises(DataError) as sizing:
        image_size(image, root, WHERE)
    for error in (opening.value, sizing.value):
        assert str(error).startswith(f"{WHERE}: ")
        assert image in str(error)
        assert error.problems[0].fix
    return str(opening.value), str(sizing.value)


def test_resolve_image__returns_real_path(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    assert resolve_image("images/a.jpg", tmp_path, WHERE) == tmp_path.resolve() / "images" / "a.jpg"


def test_resolve_image__root_behind_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    assert resolve_image("a.jpg", tmp_path / "root", WHERE) == tmp_path.resolve() / "real" / "a.jpg"


@pytest.mark.parametrize("image", ["../secret.jpg", "inside/../../secret.jpg", "folder/../../secret.jpg"])
def test_resolve_image__leaving_root(tmp_path: Path, image: str) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(noise("JPEG"))
    (tmp_path / "other").mkdir()
    (root / "folder").symlink_to(tmp_path / "other")
    for message in both_errors(root, image):
        assert "leaves the data root" in message
        assert "set data.root" in message


def test_resolve_image__links_that_lead_out(tmp_path: Path) -> None:
    """As in the Hugging Face cache, and for a folder on another disk; a path cannot climb by them."""
    root, blobs = tmp_path / "root", tmp_path / "blobs"
    (blobs / "inner").mkdir(parents=True)
    root.mkdir()
    (blobs / "0a1b").write_bytes(noise("JPEG"))
    (root / "a.jpg").symlink_to("../blobs/0a1b")
    (root / "folder").symlink_to(blobs / "inner")
    (root / "gone.jpg").symlink_to(blobs / "gone")
    (root / "device").symlink_to("/dev/null")
    assert resolve_image("folder/../a.jpg", root, WHERE) == (blobs / "0a1b").resolve()
    assert image_size("a.jpg", root, WHERE) == (50, 30)
    for image in ("folder/../0a1b", "gone.jpg", "device"):
        assert "is absent" in both_errors(root, image)[0]


def test_resolve_image__neighbour_with_same_prefix(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "a.jpg").write_bytes(noise("JPEG"))
    assert "leaves the data root" in both_errors(tmp_path / "root", "../root2/a.jpg")[0]


def test_resolve_image__absolute(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(noise("JPEG"))
    assert "is absolute, expected one relative to" in both_errors(tmp_path, str(tmp_path / "a.jpg"))[0]


def test_resolve_image__absent(tmp_path: Path) -> None:
    for message in both_errors(tmp_path, "missing.jpg"):
        assert (
            f"the image 'missing.jpg' is absent (no such file: {tmp_path.resolve() / 'missing.jpg'})"
            in message
        )


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_resolve_image__not_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert "is absent (not a regular file" in both_errors(tmp_path, "a.jpg")[0]


def test_resolve_image__unusable_names(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for image in ("loop", "a\0b", "x" * 5000):
        with pytest.raises(DataError, match="cannot be followed"):
            resolve_image(image, tmp_path, WHERE)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_open_image__exif_orientation_6(tmp_path: Path, image_format: str) -> None:
    two_halves().save(tmp_path / "a", image_format, exif=orientation(6))
    image = open_image("a", tmp_path, WHERE)
    assert (image.mode, image.size) == ("RGB", (20, 40))
    assert np.abs(np.asarray(image)[5, 10] - np.array(RED)).max() < 6  # what was left is on top
    assert np.abs(np.asarray(image)[35, 10] - np.array(BLUE)).max() < 6
    assert image.getexif().get(ExifTags.Base.Orientation) is None  # nobody turns it a second time
    assert image_size("a", tmp_path, WHERE) == (20, 40)
    # Pillow's TIFF reader turns by itself.
    assert inspect_image("a", tmp_path, WHERE).is_turned is (image_format != "TIFF")


@pytest.mark.parametrize("value", range(9))
def test_image_size__every_orientation(tmp_path: Path, value: int) -> None:
    two_halves().save(tmp_path / "a.jpg", exif=orientation(value))
    expected = (20, 40) if value >= 5 else (40, 20)
    assert image_size("a.jpg", tmp_path, WHERE) == expected
    assert open_image("a.jpg", tmp_path, WHERE).size == expected


def test_image_size__png_with_exif_after_pixels(tmp_path: Path) -> None:
    png = noise("PNG")
    late = png_chunk(b"eXIf", orientation(6).tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "a.png").write_bytes(png[:-12] + late + png[-12:])
    assert image_size("a.png", tmp_path, WHERE) == (30, 50)
    assert open_image("a.png", tmp_path, WHERE).size == (30, 50)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_image_size__does_not_decode(
    tmp_path: Path, image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(noise(image_format))
    reader = type(Image.open(io.BytesIO(noise(image_format))))
    monkeypatch.setattr(reader, "load", lambda self: pytest.fail("decoded"))
    assert image_size("a", tmp_path, WHERE) == (50, 30)


def test_image_size__bytes_after_the_end(tmp_path: Path) -> None:
    """Phones append a film to a JPEG: no end mark near the end, yet the picture is whole."""
    (tmp_path / "a.jpg").write_bytes(noise("JPEG") + bytes(10_000))
    assert image_size("a.jpg", tmp_path, WHERE) == (50, 30)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated(tmp_path: Path, image_format: str, share: float) -> None:
    whole = noise(image_format)
    (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
    for message in both_errors(tmp_path, "cut"):
        assert "the image 'cut' is truncated or broken" in message


@given(data=st.data())
def test_truncated__anywhere_both_agree(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = noise(data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"])))
    root = tmp_path_factory.getbasetemp()
    (root / "cut").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    outcomes: list[tuple[int, int] | None] = []
    for read in (image_size, lambda *arguments: open_image(*arguments).size):
        try:
            outcomes.append(read("cut", root, WHERE))
        except DataError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def test_not_an_image__text(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404 Not Found</html>", encoding="utf-8")
    for message in both_errors(tmp_path, "a.jpg"):
        assert (
            "'a.jpg' is not an image: expected one of JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, got a web page"
            in message
        )


def test_not_an_image__empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert "got an empty file" in both_errors(tmp_path, "a.jpg")[0]


def test_not_an_image__postscript_is_never_run(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert "is not an image" in both_errors(tmp_path, "a.jpg")[0]


@pytest.mark.parametrize("side", [50_000, 10_000])  # above Pillow's error, between its warning and its error
def test_too_large(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    for message in both_errors(tmp_path, "bomb.png"):
        assert f"is too large: its header promises more than {MAX_IMAGE_PIXELS:,} pixels" in message


def test_too_large__whatever_pillow_is_set_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    assert "is too large" in both_errors(tmp_path, "bomb.png")[0]


def test_too_large__warning_not_raised(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "is too large" in both_errors(tmp_path, "bomb.png")[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    for message in both_errors(tmp_path, "a.png"):
        assert f"is too small: {size[0]}×{size[1]}, expected at least 2×2 pixels" in message


def test_too_narrow(tmp_path: Path) -> None:
    Image.new("RGB", (2, 400)).save(tmp_path / "a.png")
    assert open_image("a.png", tmp_path, WHERE).size == (2, 400)
    Image.new("RGB", (2, 401)).save(tmp_path / "a.png")
    for message in both_errors(tmp_path, "a.png"):
        assert "is too narrow: 2×401, the long side is more than 200 times the short one" in message


def test_open_image__declared_size(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.jpg", exif=orientation(6))
    assert open_image("a.jpg", tmp_path, WHERE, (20, 40)).size == (20, 40)
    with pytest.raises(DataError, match="declared 64×48 but is displayed 20×40") as error:
        open_image("a.jpg", tmp_path, WHERE, (64, 48))
    assert str(error.value).startswith(f"{WHERE}: the image 'a.jpg'")
    with pytest.raises(DataError, match="before its EXIF orientation is applied"):
        open_image("a.jpg", tmp_path, WHERE, (40, 20))


def test_open_image__transparent_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    pixels = open_image("a.png", tmp_path, WHERE)
    assert [pixels.getpixel((x, 0)) for x in range(3)] == [BLUE, (127, 127, 127), WHITE]


def test_open_image__palette_with_transparency(tmp_path: Path) -> None:
    image = two_halves().quantize(2)
    image.info["transparency"] = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    pixels = open_image("a.png", tmp_path, WHERE)
    assert (pixels.getpixel((0, 0)), pixels.getpixel((39, 0))) == (WHITE, BLUE)


def test_open_image__sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x7F00, np.uint16)).save(tmp_path / "a.png")
    assert open_image("a.png", tmp_path, WHERE).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_open_image__converts(tmp_path: Path, mode: str) -> None:
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.new("RGB", (8, 6), WHITE).convert(mode).save(tmp_path / name)
    image = open_image(name, tmp_path, WHERE)
    assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (8, 6), WHITE)
    assert image_size(name, tmp_path, WHERE) == (8, 6)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_undefined_white(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 6)).save(tmp_path / "a.tif")
    for message in both_errors(tmp_path, "a.tif"):
        assert f"has pixels of Pillow mode {mode}, expected 8 or 16 bits" in message


def test_open_image__real_photographs(shared: Path) -> None:
    root = shared / "data" / "bccd" / "BCCD"
    names = sorted(path.name for path in (root / "JPEGImages").iterdir())
    assert len(names) == 364
    assert {image_size(f"JPEGImages/{name}", root, WHERE) for name in names} == {(640, 480)}
    assert np.asarray(open_image(f"JPEGImages/{names[0]}", root, WHERE, (640, 480))).max() > 100


# What sensors and tools write


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize(
    ("bits", "expected"), [(8, 255), (10, 255), (12, 255), (14, 255), (16, 255), (11, 127)]
)
def test_open_image__values_of_a_sensor_in_sixteen_bits(
    tmp_path: Path, name: str, bits: int, expected: int
) -> None:
    """A 12-bit image in a 16-bit file was nearly black: 4,095 became 15."""
    pixels = np.zeros((8, 8), np.uint16)
    pixels[:4] = 2**bits - 1
    Image.fromarray(pixels).save(tmp_path / name)
    found = np.asarray(open_image(name, tmp_path, WHERE))
    assert (found.min(), found.max()) == (0, expected)
    assert image_size(name, tmp_path, WHERE) == (8, 8)


@pytest.mark.parametrize("hot", [1, 4])
def test_open_image__hot_pixels_are_white_and_leave_the_others_as_they_are(tmp_path: Path, hot: int) -> None:
    """One among 12-bit values left the picture nearly black; of a larger share nothing is assumed."""
    pixels = np.full((50, 64), 4_095, np.uint16)
    pixels[25:] = 0
    pixels[0, :hot] = 65_535
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = np.asarray(open_image("a.png", tmp_path, WHERE))
    assert (found[0, 0, 0], found[10, 10, 0], found[30, 0, 0]) == (255, 255 if hot == 1 else 15, 0)


@pytest.mark.parametrize("kind", [2, 6])
@pytest.mark.parametrize(("bits", "is_told"), [(12, True), (8, True), (16, False), (14, False)])
def test_colours_of_sixteen_bits__nearly_black_is_told(
    tmp_path: Path, kind: int, bits: int, is_told: bool
) -> None:
    """Pillow keeps the upper 8 bits of colours: of 12-bit values nothing that can be seen."""
    channels = {2: 3, 6: 4}[kind]
    pixels = np.full((4, 4, channels), 2**bits - 1, ">u2")
    pixels[..., 3:] = 65_535
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    if is_told:
        for message in both_errors(tmp_path, "a.png"):
            assert "is nearly black: of the 16 bits of its colours at most 12 are used" in message
    else:
        assert image_size("a.png", tmp_path, WHERE) == (4, 4)
        assert np.asarray(open_image("a.png", tmp_path, WHERE)).max() == 2 ** (bits - 8) - 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("alpha", [0, 1])
def test_open_image__alpha_that_was_never_filled(tmp_path: Path, name: str, alpha: int) -> None:
    """All of it was a white page."""
    image = two_halves()
    image.putalpha(alpha)
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    pixels = open_image(name, tmp_path, WHERE)
    assert (pixels.getpixel((0, 0)), pixels.getpixel((39, 0))) == (RED, BLUE)


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_open_image__alpha_that_was_never_filled__other_modes(tmp_path: Path, mode: str) -> None:
    image = two_halves()
    if mode == "LA":
        image.putalpha(0)
        image.convert("LA").save(tmp_path / "a.png")
    else:
        image.quantize(2).save(tmp_path / "a.png", transparency=b"\0\0")
    pixels = open_image("a.png", tmp_path, WHERE)
    assert pixels.getpixel((0, 0)) != pixels.getpixel((39, 0)) != WHITE


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"subsampling": 0}])
@pytest.mark.parametrize("bytes_missing", [1, 2])
def test_jpeg__without_its_end_mark(tmp_path: Path, options: dict[str, object], bytes_missing: int) -> None:
    whole = noise("JPEG", **options)
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "a.jpg").write_bytes(whole[:-bytes_missing])
    (tmp_path / "padded.jpg").write_bytes(whole[:-2] + bytes(100))
    expected = np.asarray(open_image("whole.jpg", tmp_path, WHERE))
    for name in ("a.jpg", "padded.jpg"):
        assert image_size(name, tmp_path, WHERE) == (50, 30)
        assert np.array_equal(np.asarray(open_image(name, tmp_path, WHERE)), expected)
        in_memory = decode_image((tmp_path / name).read_bytes(), name, WHERE)
        assert np.array_equal(np.asarray(in_memory), expected)


def test_jpeg__without_its_end_mark__is_turned(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.jpg", exif=orientation(6))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2])
    assert inspect_image("a.jpg", tmp_path, WHERE).is_turned
    assert open_image("a.jpg", tmp_path, WHERE).size == image_size("a.jpg", tmp_path, WHERE) == (20, 40)


def test_jpeg__progressive_without_its_end_mark_is_broken(tmp_path: Path) -> None:
    """A scan may be missing."""
    (tmp_path / "a.jpg").write_bytes(noise("JPEG", progressive=True)[:-2])
    assert all("is truncated or broken" in message for message in both_errors(tmp_path, "a.jpg"))


@given(missing=st.integers(6, 1200), progressive=st.booleans())
def test_jpeg__pixels_missing_is_broken(
    tmp_path_factory: pytest.TempPathFactory, missing: int, progressive: bool
) -> None:
    whole = noise("JPEG", progressive=progressive)
    root = tmp_path_factory.getbasetemp()
    (root / "cut.jpg").write_bytes(whole[:-missing])
    with pytest.raises(DataError, match=r"is truncated or broken|is not an image"):
        open_image("cut.jpg", root, WHERE)


@pytest.mark.parametrize("name", ["a.ppm", "a.pgm", "a.pnm", "a.pbm"])
def test_open_image__portable_pixmaps(tmp_path: Path, name: str) -> None:
    modes = {".pgm": "L", ".pbm": "1"}
    two_halves().convert(modes.get(name[1:], "RGB")).save(tmp_path / name, "PPM")
    assert open_image(name, tmp_path, WHERE).size == image_size(name, tmp_path, WHERE) == (40, 20)


def test_open_image__png_with_long_texts(tmp_path: Path) -> None:
    """Of Photoshop and ComfyUI; Pillow's own limit is a megabyte."""
    png = noise("PNG")
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000)))
    (tmp_path / "a.png").write_bytes(png[:33] + text + png[33:])
    assert open_image("a.png", tmp_path, WHERE).size == image_size("a.png", tmp_path, WHERE) == (50, 30)
    bomb = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(70_000_000)))
    (tmp_path / "a.png").write_bytes(png[:33] + bomb + png[33:])
    assert "too large" in both_errors(tmp_path, "a.png")[0]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0", "got an AVIF image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "got an HEIC image"),
        (b"\xff\x0a\0\0", "got a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n", "got a JPEG 2000 image"),
        (b"8BPS\0\1", "got a Photoshop file"),
        (b"%PDF-1.7", "got a PDF"),
        (b"<?xml version='1.0'?><svg/>", "got an SVG drawing"),
        (bytes(128) + b"DICM", "got a DICOM image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "got a pointer of Git LFS (git lfs pull fetches"),
        (b"\xff\xd8\xff", "got something else, or a file cut in its header"),
    ],
)
def test_not_an_image__is_named(tmp_path: Path, head: bytes, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(head)
    assert what in both_errors(tmp_path, "a.jpg")[0]


@pytest.mark.parametrize(("channels", "bits"), [(3, 16), (5, 8), (4, 16), (12, 8)])
def test_not_an_image__tiff_of_many_channels(tmp_path: Path, channels: int, bits: int) -> None:
    tags = [(256, 4, 1, 8), (257, 4, 1, 6), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 200), (277, 3, 1, channels), (278, 4, 1, 6), (279, 4, 1, 48 * channels * bits // 8)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(content.ljust(200, b"\0") + bytes(48 * channels * bits // 8))
    message = both_errors(tmp_path, "a.tif")[0]
    assert "got a TIFF whose channels or bits are not read" in message
