"""Pascal VOC annotations, image by image as written; coordinates are taken as they stand (no minus one)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException, ElementTree

from qwendet.data.formats.drawn import numbers
from qwendet.data.formats.fitting import join_image, show
from qwendet.data.formats.records import Box, Finding, Item, Record, Source, or_problems
from qwendet.data.formats.voc_layout import VocFolder, find_voc, images_by_stem, paired
from qwendet.data.samples import DetectedObject, Turn, check_label
from qwendet.errors import DataError
from qwendet.files import tell_unreadable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

FLAGS = {"0": False, "1": True, "false": False, "true": True, "unspecified": False}
"""What tools write for a flag."""
BOX_NAME = re.compile(
    r"(.*_)?(robnd|bnd|bounding_?)?b?box|rect(angle)?|polygon|points?|coord(inate)?s?|(.*_)?x_?min|xtl|x_?1|left"
)
"""Tags and attributes that hold the place of an object."""


def open_voc(path: Path, image_dir: Path | None = None, *, may_be_absent: bool = False) -> Source:
    """Open a VOC data set.

    The splits are those of the lists; ``trainval.txt`` without ``train.txt`` gives ``train``, less what
    ``val.txt`` names, and is ignored otherwise; without any list all samples are in ``all``. Boxes are taken
    as they stand. The image is the file that shares the annotation's name, whatever ``<filename>`` says.
    """
    home, folders = find_voc(path)
    root = image_dir or home
    total = sum(len(stems) for folder in folders for stems in folder.listed.values())

    def items() -> Iterator[Item]:
        for folder in folders:
            yield from _read_folder(folder, root, is_own=image_dir is None, may_be_absent=may_be_absent)

    return Source(root, total, items())


def _read_folder(folder: VocFolder, root: Path, *, is_own: bool, may_be_absent: bool) -> Iterator[Item]:
    """Read annotations; their images lie in the data set's own folder (``is_own``) or in the root."""
    place = folder.images if is_own else ""
    if not (root / place).is_dir() and not may_be_absent:
        what = f"expected {place or 'a folder of images'} beside Annotations"
        raise DataError(what, str(root), "add the images, or name their folder with --image-dir")
    yield from folder.notes
    there = images_by_stem(root / place, is_deep=any("/" in stem for stem in folder.annotations))
    images = paired(there, folder.annotations.keys())
    for split, stems in folder.listed.items():
        for stem in stems:
            paths, file = images.get(stem, []), folder.annotations[stem]
            yield from or_problems(_record(split, file, stem, paths, place, may_be_absent=may_be_absent))
    for file in folder.unlisted():
        yield Finding("unlisted", str(file), "in no split list")
    used = {image for stem in folder.annotations for image in images.get(stem, ())}
    for names in there.values() if is_own else ():
        if used.isdisjoint(names):
            yield Finding("no_annotation", f"{root / place / names[0]}")


def _record(
    split: str, file: Path, stem: str, candidates: list[str], place: str, *, may_be_absent: bool
) -> Iterator[Record]:
    """Read one annotation; ``candidates`` are the images of its name in the folder ``place``."""
    where = str(file)
    annotation = _parse_xml(file)
    claimed_name = (annotation.findtext("filename") or "").strip()
    base = PurePosixPath(claimed_name.replace("\\", "/")).name
    ending = PurePosixPath(base).suffix
    if not candidates and ending and may_be_absent:
        candidates = [stem.removesuffix(ending) + ending]
    name = _choose_image(candidates, base, f"{place}/{stem}" if place else stem, where)
    image = join_image(place, name, where)
    findings: tuple[Finding, ...] = ()
    image_file = PurePosixPath(name)
    # Label Studio leaves the ending out.
    if base and base not in (image_file.name.strip(), image_file.stem.strip()):
        findings = (Finding("renamed", where, f"<filename> is {claimed_name!r}, used {name!r}"),)
    _require_objects(annotation, where)
    written = [
        _read_object(element, f"{where}: object {index}")
        for index, element in enumerate(annotation.iter("object"), start=1)
    ]
    places, objects = tuple(place for place, _ in written), tuple(found for _, found in written)
    turn = Turn(image, objects, *_size(annotation, where))
    yield Record(split, turn, where, name, places, findings, size="<size>")


def _parse_xml(file: Path) -> Element:
    """Parse an annotation, its tags in lower case; entities are never expanded, nothing else is read."""
    try:
        with tell_unreadable(file):
            root: Element = ElementTree.parse(file).getroot()
    except DefusedXmlException as error:
        raise DataError(
            "the XML declares entities, which can read other files or fill the memory",
            str(file),
            "remove its <!DOCTYPE …> and write the values themselves",
        ) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        fix = (
            "save it as UTF-8" if "encoding" in str(error) else "export it again, or remove it with its image"
        )
        what = "the file is empty" if not file.stat().st_size else f"got a broken file ({error})"
        raise DataError(f"expected an XML annotation, {what}", str(file), fix) from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        what = f"expected the XML element <annotation>, got <{root.tag}>"
        raise DataError(what, str(file), "export as Pascal VOC, or as COCO")
    return root


def _choose_image(paths: list[str], claimed_name: str, wanted: str, where: str) -> str:
    """Pick the image that shares the annotation's name; ``<filename>`` only decides between several."""
    claimed = [path for path in paths if PurePosixPath(path).name == claimed_name]
    if len(claimed or paths) != 1:
        found = ", ".join(paths) or f"none (<filename> says {claimed_name!r})"
        raise DataError(
            f"expected one image {wanted}.*, got {found}", where, "give image and annotation the same name"
        )
    return (claimed or paths)[0]


def _size(annotation: Element, where: str) -> tuple[int | None, int | None]:
    element = annotation.find("size")
    if element is None or not (element.findtext("width") or "").strip():
        return None, None
    texts = {side: element.findtext(side) for side in ("width", "height")}
    width, height = map(round, numbers(texts, "width height", f"{where}: <size>"))
    return width, height


def _require_objects(annotation: Element, where: str) -> None:
    """Refuse boxes outside of any ``<object>``: as if there were none, their image would be a negative."""
    inside = {id(inner) for element in annotation.iter("object") for inner in element.iter()}
    for element in annotation.iter():
        names = {element.tag, *(name.lower() for name in element.attrib)}
        if id(element) not in inside and any(map(BOX_NAME.fullmatch, names)):
            what = f"expected <object> with <name> and <bndbox>, got <{element.tag}> outside of any <object>"
            raise DataError(what, where, "export it as Pascal VOC, or as COCO")


def _read_object(element: Element, where: str) -> tuple[str, DetectedObject]:
    """Read one ``<object>``; its ``<part>`` elements (heads, hands) have boxes of their own and are left."""
    if element.find("name") is None:
        tags = ", ".join(f"<{child.tag}>" for child in element) or "nothing"
        what = f"expected <name> and <bndbox> in <object>, got {tags}"
        raise DataError(what, where, "export it as Pascal VOC, or as COCO")
    desc = check_label((element.findtext("name") or "").strip(), where, "<name>")
    where = f"{where} ({desc})"
    boxes = element.findall("bndbox")
    if len(boxes) != 1:
        found = len(boxes) or "none"
        raise DataError(f"expected <bndbox>, got {found}", where, "give each object one box, or remove it")
    return where, DetectedObject(
        _box(boxes[0], where), desc, _flag(element, "crowd", where), _flag(element, "difficult", where)
    )


def _box(corners: Element, where: str) -> Box:
    """``<bndbox>`` as xyxy in pixels, finite and not inside out."""
    texts = {corner.tag: corner.text for corner in corners}
    x1, y1, x2, y2 = numbers(texts, "xmin ymin xmax ymax", f"{where}: <bndbox>")
    if x2 < x1 or y2 < y1:
        raise DataError(
            f"expected xmin ≤ xmax and ymin ≤ ymax, got {show((x1, y1, x2, y2))}", where, "swap the corners"
        )
    return x1, y1, x2, y2


def _flag(element: Element, tag: str, where: str) -> bool:
    """``<difficult>``, and ``<crowd>``, which ``data convert`` writes for COCO's ``iscrowd``."""
    text = (element.findtext(tag) or "0").strip()
    if text.lower() not in FLAGS:
        raise DataError(f"<{tag}>: expected 0 or 1, got {text!r}", where, "correct it or leave it out")
    return FLAGS[text.lower()]
