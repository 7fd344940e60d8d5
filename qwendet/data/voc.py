"""Pascal VOC folders, read record by record; coordinates are taken as they stand (no minus one)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException, ElementTree

from qwendet.data.images import IMAGE_SUFFIXES, image_size, is_turned
from qwendet.data.records import SPLITS, WHOLE, Finding, Record
from qwendet.data.samples import DetectedObject, Sample, Turn, check_label
from qwendet.errors import DataError, Problem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Box = tuple[float, float, float, float]

MAX_OVERHANG = 1.0
"""Pixels by which a box may leave its image and be clipped: tools that count from one write that much."""
MAX_PROBLEMS = 20
"""Broken annotations that are named before a reader gives up."""
FLAG_COLUMN = frozenset({"-1", "0", "1"})


def voc_folders(path: Path) -> list[Path]:
    """``path`` if it holds VOC annotations itself, else its children that do."""
    if _annotation_files(path):
        return [path]
    children = sorted(path.iterdir()) if path.is_dir() else []
    return [child for child in children if _annotation_files(child)]


def _annotation_files(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / "Annotations").glob("*.xml") if not file.name.startswith("."))


def find_voc(path: Path) -> Path:
    """Return the VOC folder: ``path`` itself, or its only child that holds ``Annotations/*.xml``.

    Raises:
        DataError: if there is none, or more than one.
    """
    folders = voc_folders(path)
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise DataError(
            "expected a VOC folder (Annotations/*.xml, JPEGImages/), got no Annotations/*.xml",
            str(path),
            "give the folder that holds Annotations",
        )
    names = ", ".join(folder.name for folder in folders)
    raise DataError(f"expected one VOC folder, got {len(folders)}: {names}", str(path), "give one of them")


def read_voc(path: Path) -> Iterator[Record]:
    """Read a VOC folder: ``Annotations/*.xml``, ``JPEGImages/*``, ``ImageSets/Main/{train,val,test}.txt``.

    The splits are those of the lists; ``trainval.txt`` without ``train.txt`` gives ``train``, less what
    ``val.txt`` names, and is ignored otherwise; without any list all samples are in ``all``. Boxes are taken
    as they stand. The image is the file that shares the annotation's name, whatever ``<filename>`` says.

    Args:
        path: the folder, or its parent where that holds no other.

    Yields:
        A record per annotation, split by split; images as ``JPEGImages/<file>``.

    Raises:
        DataError: at the end, with every broken annotation (20 at most); at once, for broken split lists.
    """
    folder = find_voc(path)
    annotations = {file.stem: file for file in _annotation_files(folder)}
    images = _images_by_stem(folder / "JPEGImages")
    problems: list[Problem] = []
    for split, stems in _voc_splits(folder, annotations).items():
        for stem in stems:
            try:
                yield _read_annotation(split, annotations[stem], images, folder)
            except DataError as error:
                problems.extend(error.problems)
            if len(problems) >= MAX_PROBLEMS:
                raise DataError.of(problems)
    if problems:
        raise DataError.of(problems)


def _images_by_stem(folder: Path) -> Mapping[str, list[str]]:
    """File names in the image folder, by name without ending."""
    if not folder.is_dir():
        raise DataError("expected JPEGImages beside Annotations", str(folder.parent), "add the images")
    names: dict[str, list[str]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            names[file.stem].append(file.name)
    return names


def _voc_splits(folder: Path, annotations: Mapping[str, Path]) -> dict[str, list[str]]:
    """Names of the annotations in each split, in the order of the lists."""
    lists = folder / "ImageSets" / "Main"
    found = {
        name: _read_split(file, annotations)
        for name in (*SPLITS, "trainval")
        if (file := lists / f"{name}.txt").is_file()
    }
    both = found.pop("trainval", None)
    if both is not None and "train" not in found:
        validation = set(found.get("val", ()))
        found = {"train": [stem for stem in both if stem not in validation], **found}
    return found or {WHOLE: list(annotations)}


def _read_split(file: Path, annotations: Mapping[str, Path]) -> list[str]:
    """Read one split list: a name a line, perhaps followed by a flag (-1, 0 or 1)."""
    stems: dict[str, int] = {}
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        stem = _listed_name(line.strip(), annotations)
        if stem not in annotations:
            raise DataError(
                f"{stem!r} has no Annotations/{stem}.xml", where, "add the annotation or remove the line"
            )
        if stem in stems:
            raise DataError(f"{stem!r} is listed twice (line {stems[stem]})", where, "remove one line")
        stems[stem] = number
    if not stems:
        raise DataError("the split list is empty", str(file), "remove the file, or list annotations in it")
    return list(stems)


def _listed_name(line: str, annotations: Mapping[str, Path]) -> str:
    """The name in a line without its flag; a name may hold blanks."""
    name, *flags = line.rsplit(maxsplit=1)
    return name if line not in annotations and FLAG_COLUMN.issuperset(flags) else line


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the file as UTF-8 text ({error})", str(file)) from error


def _read_annotation(split: str, file: Path, images: Mapping[str, list[str]], folder: Path) -> Record:
    """Read one VOC annotation together with the size of its image."""
    where = str(file)
    root = _parse_xml(file)
    claimed_name = (root.findtext("filename") or "").strip()
    name = _choose_image(images.get(file.stem, []), claimed_name, where)
    image = f"JPEGImages/{name}"
    width, height = image_size(image, folder, where)
    findings: list[Finding] = []
    if claimed_name and claimed_name != name:
        findings.append(Finding("renamed", f"{where}: <filename> is {claimed_name!r}, used {name!r}"))
    findings += _compare_size(root, image, (width, height), folder, where)
    objects = []
    for index, element in enumerate(root.findall("object"), start=1):
        found, finding = _read_object(element, (width, height), f"{where}: object {index}")
        objects += [found] if found else []
        findings += [finding] if finding else []
    turn = Turn(image=image, objects=tuple(objects), width=width, height=height)
    return Record(split, Sample(student=turn, where=where), tuple(findings))


def _parse_xml(file: Path) -> Element:
    """Parse an annotation; entities are never expanded, nothing outside the file is read."""
    try:
        root: Element = ElementTree.parse(file).getroot()
    except DefusedXmlException as error:
        raise DataError(
            "the XML declares entities, which can read other files or fill the memory",
            str(file),
            "remove its <!DOCTYPE …> and write the values themselves",
        ) from error
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"expected an XML annotation, got a broken file ({error})", str(file)) from error
    if root.tag != "annotation":
        raise DataError(f"expected the XML element <annotation>, got <{root.tag}>", str(file))
    return root


def _choose_image(names: list[str], claimed_name: str, where: str) -> str:
    """Pick the image that shares the annotation's name; ``<filename>`` only decides between several."""
    name = claimed_name if claimed_name in names else names[0] if len(names) == 1 else None
    if name is None:
        found = ", ".join(names) or f"none (<filename> says {claimed_name!r})"
        raise DataError(
            f"expected one image JPEGImages/{Path(where).stem}.*, got {found}",
            where,
            "give image and annotation the same name",
        )
    if not name.isprintable():
        raise DataError(f"the image name {name!r} holds control characters", where, "rename the image")
    return name


def _compare_size(
    root: Element, image: str, size: tuple[int, int], folder: Path, where: str
) -> list[Finding]:
    """Compare ``<size>`` with the image; the image counts, unless the boxes' frame is then in doubt."""
    element = root.find("size")
    if element is None:
        return []
    claimed = (_number(element, "width", where), _number(element, "height", where))
    if claimed == size:
        return []
    if claimed == size[::-1] and is_turned(image, folder, where):
        raise DataError(
            f"<size> is {claimed[0]:g}×{claimed[1]:g}, that of {image!r} before its EXIF orientation is "
            f"applied; displayed it is {size[0]}×{size[1]}, and the boxes would lie elsewhere",
            where,
            "if the boxes were drawn on the unturned image remove its orientation "
            "(exiftool -Orientation= FILE), else correct <size>",
        )
    what = f"<size> is {claimed[0]:g}×{claimed[1]:g}, used {size[0]}×{size[1]} of {image!r}"
    return [Finding("resized", f"{where}: {what}")]


def _read_object(
    element: Element, size: tuple[int, int], where: str
) -> tuple[DetectedObject | None, Finding | None]:
    """Read one ``<object>``; its ``<part>`` elements (heads, hands) have boxes of their own and are left."""
    desc = check_label((element.findtext("name") or "").strip(), where, "<name>")
    where = f"{where} ({desc})"
    corners = element.find("bndbox")
    if corners is None:
        raise DataError("expected <bndbox>, got none", where, "draw the box or remove the object")
    written = _box(corners, where)
    box, overhang = _clip(written, size)
    if _is_empty(box) and (overhang <= MAX_OVERHANG or _is_empty(written)):
        return None, Finding("zero_area", f"{where}: {_show(written)} has no area, left out")
    if overhang > MAX_OVERHANG:
        raise DataError(
            f"the box {_show(written)} leaves the image of {size[0]}×{size[1]} by {overhang:g} pixels",
            where,
            "correct the box, or see whether the annotation belongs to another image",
        )
    found = DetectedObject(bbox_2d=box, desc=desc, difficult=_is_difficult(element, where))
    cut = Finding("clipped", f"{where}: {_show(written)} cut to {_show(box)}") if overhang else None
    return found, cut


def _box(corners: Element, where: str) -> Box:
    """``<bndbox>`` as xyxy in pixels, finite and not inside out."""
    x1, y1, x2, y2 = (_number(corners, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise DataError(
            f"expected xmin ≤ xmax and ymin ≤ ymax, got {_show((x1, y1, x2, y2))}", where, "swap the corners"
        )
    return x1, y1, x2, y2


def _number(parent: Element, tag: str, where: str) -> float:
    text = (parent.findtext(tag) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"<{parent.tag}> <{tag}>: expected a number, got {text!r}", where, "correct it")
    return value


def _is_difficult(element: Element, where: str) -> bool:
    text = (element.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise DataError(f"<difficult>: expected 0 or 1, got {text!r}", where, "correct it or leave it out")
    return text == "1"


def _clip(box: Box, size: tuple[int, int]) -> tuple[Box, float]:
    """Cut a box at the image's edges; also returns by how many pixels it left, 0 if inside."""
    limits = (*size, *size)
    x1, y1, x2, y2 = (min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True))
    clipped = (x1, y1, x2, y2)
    return clipped, max(abs(old - new) for old, new in zip(box, clipped, strict=True))


def _is_empty(box: Box) -> bool:
    return box[0] == box[2] or box[1] == box[3]


def _show(box: Box) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def unlisted(folder: Path) -> tuple[str, ...]:
    """Annotations of a VOC folder that no split list names."""
    annotations = {file.stem: file for file in _annotation_files(folder)}
    listed = {stem for stems in _voc_splits(folder, annotations).values() for stem in stems}
    return tuple(f"{file}: in no split list" for stem, file in annotations.items() if stem not in listed)
