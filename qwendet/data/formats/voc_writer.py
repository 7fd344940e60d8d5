"""Records as Pascal VOC: an XML an image, a list a split."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from qwendet.data.formats.records import WHOLE
from qwendet.data.formats.writer import SplitFiles, Writer, number
from qwendet.data.samples import DetectedObject, Turn
from qwendet.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocWriter(Writer):
    """Writes ``Annotations/<stem>.xml`` and ``ImageSets/Main/<split>.txt``; images go to ``JPEGImages/``.

    Coordinates are written as they stand, with fractions where there are any.
    """

    def __init__(self, folder: Path, *, has_images: bool = True) -> None:
        super().__init__(folder, has_images=has_images)
        self._annotations = folder / "Annotations"
        self._annotations.mkdir()
        self._lists = SplitFiles(folder / "ImageSets" / "Main", "{}.txt", self.files)
        self._written: dict[str, tuple[set[str], int]] = {}

    def place(self, split: str, name: str) -> str:
        """Into ``JPEGImages/``."""
        return f"JPEGImages/{name}"

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write an XML; the same image in another split only joins its list."""
        stem = PurePosixPath(image).stem
        text = _annotation(turn, image)
        splits, content = self._written.setdefault(stem, (set(), hash(text)))
        if split in splits or content != hash(text):
            raise DataError(
                f"VOC holds one annotation an image, and {image!r} has another", "", "merge the two"
            )
        if not splits:
            (self._annotations / f"{stem}.xml").write_text(text, encoding="utf-8", newline="\n")
        splits.add(split)
        self._lists.write("trainval" if split == WHOLE else split, f"{stem}\n")

    def finish(self) -> list[str]:
        """Close the lists; without splits there is none."""
        splits = self._lists.close()
        if splits == ["trainval"]:  # all there is: no list says that as well
            shutil.rmtree(self._lists.path("").parents[1])
            return ["Annotations"]
        return ["Annotations", *(f"ImageSets/Main/{split}.txt" for split in splits)]


def _annotation(turn: Turn, image: str) -> str:
    objects = "".join(map(_object, turn.objects))
    return (
        "<annotation>\n  <folder>JPEGImages</folder>\n"
        f"  <filename>{escape(image)}</filename>\n"
        f"  <size><width>{turn.width}</width><height>{turn.height}</height><depth>3</depth></size>\n"
        f"  <segmented>0</segmented>\n{objects}</annotation>\n"
    )


def _object(found: DetectedObject) -> str:
    corners = "".join(
        f"<{tag}>{number(value)}</{tag}>" for tag, value in zip(CORNERS, found.bbox_2d, strict=True)
    )
    crowd = "<crowd>1</crowd>" if found.crowd else ""
    return (
        f"  <object>\n    <name>{escape(found.desc)}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>0</truncated><difficult>{int(found.difficult)}</difficult>{crowd}\n"
        f"    <bndbox>{corners}</bndbox>\n  </object>\n"
    )
