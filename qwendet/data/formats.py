"""Foreign data sets: Pascal VOC folders, read as samples and converted to JSONL.

    folder ─► detect_format ─► "voc" ─► read_voc ─► Record(split, sample, findings) ─┐
                                                                                     ├─► DST/train.jsonl, …
    convert_voc ─► everything is read and checked first, images are placed last ─────┘   DST/images/…

A record is the same for every format; only reading differs. VOC coordinates are taken as they stand (no
minus one). What a reader mends it says, with the place, in the :class:`ConversionReport`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from defusedxml import DefusedXmlException, ElementTree

from qwendet.data.images import IMAGE_SUFFIXES, image_size, is_turned, resolve_image
from qwendet.data.samples import DetectedObject, Sample, Turn, check_label
from qwendet.errors import DataError, Problem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Format = Literal["jsonl", "voc", "coco", "yolo"]
FindingKind = Literal["zero_area", "clipped", "renamed", "resized"]
Placement = Literal["copy", "link", "reference"]
Progress = Callable[[str, int], None]
Box = tuple[float, float, float, float]

SPLITS = ("train", "val", "test")
WHOLE = "all"
MAX_OVERHANG = 1.0
"""Pixels by which a box may leave its image and be clipped: tools that count from one write that much."""
MAX_PROBLEMS = 20
"""Broken annotations that are named before a reader gives up."""
FLAG_COLUMN = frozenset({"-1", "0", "1"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a reader mended or left out.

    Attributes:
        kind: the field of :class:`ConversionReport` that it is listed in.
        note: the annotation file, the object where it is about one, and what was found, in words.
    """

    kind: FindingKind
    note: str


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image, whatever format it came from.

    Attributes:
        split: ``train``, ``val``, ``test``, or ``all`` where the data set has no splits.
        sample: its image is relative to the data set's folder; width and height are those displayed.
        findings: what was mended in it.
    """

    split: str
    sample: Sample
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion wrote and what it mended.

    Attributes:
        files: the JSONL files.
        images: images per split.
        boxes: boxes per split and label.
        data_root: what ``data.root`` must be set to; None where the images lie beside the JSONL.
        zero_area: boxes without area, left out; these and the following are notes of a :class:`Finding`.
        clipped: boxes cut at the image's edge.
        renamed: annotations that name another file than the image used.
        resized: annotations that claim another size than the image has, which counts.
        unlisted: annotations that no split list names, left out.
    """

    files: tuple[Path, ...]
    images: Mapping[str, int]
    boxes: Mapping[str, Mapping[str, int]]
    data_root: Path | None = None
    zero_area: tuple[str, ...] = ()
    clipped: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def detect_format(path: Path) -> Format:
    """Tell which data set format a path holds, from names and not from contents as far as they suffice.

    Where a folder holds several, the first of JSONL, VOC, COCO, YOLO counts.

    Args:
        path: a ``.jsonl`` file, a COCO ``.json`` file, a YOLO ``data.yaml``, or a folder.

    Raises:
        DataError: if it is absent or none of them.
    """
    if path.is_file():
        found = _detect_file(path)
    elif path.is_dir():
        found = _detect_folder(path)
    else:
        raise DataError("expected a data set, got no such file or folder", str(path), "correct the path")
    if found is None:
        raise DataError(
            "no data set found: expected a .jsonl file, a folder with train.jsonl or all.jsonl, "
            "VOC (Annotations/*.xml, JPEGImages/), COCO (a .json with annotations) "
            "or YOLO (data.yaml or labels/)",
            str(path),
            "give the folder that holds these directly",
        )
    return found


def _detect_file(path: Path) -> Format | None:
    if path.suffix == ".jsonl":
        return "jsonl"
    if path.suffix == ".json" and _is_coco(path):
        return "coco"
    return "yolo" if path.name in ("data.yaml", "data.yml") else None


def _detect_folder(folder: Path) -> Format | None:
    if any((folder / f"{split}.jsonl").is_file() for split in (*SPLITS, WHOLE)):
        return "jsonl"
    if _voc_folders(folder):
        return "voc"
    if any(_is_coco(path) for pattern in ("*.json", "annotations/*.json") for path in folder.glob(pattern)):
        return "coco"
    is_yolo = any((folder / name).is_file() for name in ("data.yaml", "data.yml"))
    return "yolo" if is_yolo or (folder / "labels").is_dir() else None


def _is_coco(path: Path) -> bool:
    """Whether a JSON file holds the key ``annotations``; read in pieces, because COCO's own has 450 MB."""
    key, seen = b'"annotations"', b""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            seen = seen[-len(key) :] + piece
            if key in seen:
                return True
    return False


def _voc_folders(path: Path) -> list[Path]:
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
    folders = _voc_folders(path)
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


def convert_voc(
    src: Path, dst: Path, *, images: Placement = "copy", progress: Progress | None = None
) -> ConversionReport:
    """Convert a VOC folder into one JSONL file a split, complete or not at all.

    Args:
        src: as for :func:`read_voc`; stays as it is.
        dst: a folder that is absent or empty. Gets ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, as far as
            the data has these splits, else ``all.jsonl``.
        images: ``copy`` and ``link`` (hard links: the same file system, no symbolic links, because these
            would leave the data root) put the images into ``dst/images``. ``reference`` leaves them where
            they are: the JSONL names them relative to the VOC folder, and ``data.root`` must be set to that
            folder, which the report's ``data_root`` names.
        progress: called with ``"read"`` or ``"placed"`` and the number of images so far.

    Raises:
        DataError: if ``dst`` holds something, ``src`` is broken (see :func:`read_voc`), an image cannot be
            placed. Nothing is left behind then.
    """
    folder = find_voc(src)
    report = _convert(read_voc(folder), folder, dst, images, progress)
    return replace(report, unlisted=_unlisted(folder))


def _unlisted(folder: Path) -> tuple[str, ...]:
    """Annotations of a VOC folder that no split list names."""
    annotations = {file.stem: file for file in _annotation_files(folder)}
    listed = {stem for stems in _voc_splits(folder, annotations).values() for stem in stems}
    return tuple(f"{file}: in no split list" for stem, file in annotations.items() if stem not in listed)


def _convert(
    records: Iterator[Record], root: Path, dst: Path, images: Placement, progress: Progress | None
) -> ConversionReport:
    """Write records of any format; their images are relative to ``root``."""
    _refuse_occupied(dst)
    with _complete_or_absent(dst) as partial:
        tally = _write_samples(records, partial, images, progress)
        if images != "reference":
            _place_images(tally.sources, root, partial / "images", images, progress)
    return ConversionReport(
        files=tuple(dst / f"{split}.jsonl" for split in tally.images),
        images=dict(tally.images),
        boxes={split: dict(counts) for split, counts in tally.boxes.items()},
        data_root=root.resolve() if images == "reference" else None,
        zero_area=tuple(tally.notes["zero_area"]),
        clipped=tuple(tally.notes["clipped"]),
        renamed=tuple(tally.notes["renamed"]),
        resized=tuple(tally.notes["resized"]),
    )


def _refuse_occupied(dst: Path) -> None:
    is_empty_folder = dst.is_dir() and not any(dst.iterdir())
    if dst.exists() and not is_empty_folder:
        raise DataError("expected a folder that is absent or empty", str(dst), "give another folder")


@contextmanager
def _complete_or_absent(dst: Path) -> Iterator[Path]:
    """Give a folder beside ``dst`` to fill; it becomes ``dst`` if all went well and vanishes if not."""
    partial = dst.parent / f".{dst.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if dst.is_dir():
            dst.rmdir()
        partial.rename(dst)
    except OSError as error:
        raise DataError(f"cannot write the data set ({error})", str(dst), "give another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(slots=True)
class _Tally:
    """What has been written so far; ``sources`` holds each image once, with the place that names it."""

    images: Counter[str] = field(default_factory=Counter)
    boxes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sources: dict[str, str] = field(default_factory=dict)
    notes: dict[FindingKind, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        turn = record.sample.student
        self.images[record.split] += 1
        self.boxes[record.split].update(found.desc for found in turn.objects)
        self.sources[turn.image] = record.sample.where
        for finding in record.findings:
            self.notes[finding.kind].append(finding.note)


def _write_samples(
    records: Iterator[Record], folder: Path, images: Placement, progress: Progress | None
) -> _Tally:
    """Write every record into ``folder/<split>.jsonl``."""
    tally = _Tally()
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for record in records:
            if record.split not in files:
                path = folder / f"{record.split}.jsonl"
                files[record.split] = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
            turn = record.sample.student
            image = turn.image if images == "reference" else f"images/{Path(turn.image).name}"
            files[record.split].write(_line(turn, image))
            tally.add(record)
            if progress:
                progress("read", tally.images.total())
    return tally


def _line(turn: Turn, image: str) -> str:
    """One JSONL line; whole numbers without ``.0``, flags only where set."""
    record: dict[str, Any] = {
        "images": [image],
        "objects": [_object_record(found) for found in turn.objects],
        "width": turn.width,
        "height": turn.height,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _object_record(found: DetectedObject) -> dict[str, Any]:
    corners = [int(value) if value.is_integer() else value for value in found.bbox_2d]
    flags = {name: True for name in ("crowd", "difficult") if getattr(found, name)}
    return {"bbox_2d": corners, "desc": found.desc, **flags}


def _place_images(
    sources: Mapping[str, str], root: Path, folder: Path, images: Placement, progress: Progress | None
) -> None:
    """Copy or hard-link each image of ``sources`` (path relative to ``root`` ─► where it is named)."""
    folder.mkdir()
    for done, (image, where) in enumerate(sources.items(), start=1):
        source = resolve_image(image, root, where)
        target = folder / Path(image).name
        if images == "copy":
            shutil.copyfile(source, target)
        else:
            _link(source, target, where)
        if progress:
            progress("placed", done)


def _link(source: Path, target: Path, where: str) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        raise DataError(
            f"cannot make a hard link to {source} ({error.strerror})",
            where,
            "copy the images instead, or convert into a folder on the same file system",
        ) from error
