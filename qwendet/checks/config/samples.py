"""Rules that every turn of every sample is held against; the pass over the files is in ``scan``.

    line ─► Sample ─► its turns ─► Visit ─► every rule ─► problems

A rule sees one turn. What only shows over the whole data set is in ``dataset``, ``overlap`` and ``frames``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qwendet.checks.config.lookalikes import nearest_lookalike
from qwendet.config.schema import Config
from qwendet.data.formats.fitting import ROUNDING, show
from qwendet.data.images import ImageFacts
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.encoding.image_tokens import num_image_tokens
from qwendet.errors import Problem
from qwendet.families.family import PixelLimits

Split = Literal["val", "test", "train", "teachers"]
Box = tuple[float, float, float, float]
Size = tuple[int, int]

OTHER_IMAGE = "correct the box, or see whether the annotation belongs to another image or size"
LEAST_OVERLAP_PX = 0.5  # boxes whose corners all lie closer are the same box


@dataclass(frozen=True, slots=True)
class Visit:
    """One turn of a sample, as the rules see it.

    Attributes:
        split: the file that the sample is in.
        field: the turn's place in the line, such as ``teachers[0].``; empty for a flat sample.
        facts: of the image; None where it was not opened, or cannot be.
        limits: how the model's processor resizes; None where that is not known without a download.
        places: where each object of an annotated data set is written; its edges may be off by rounding.
    """

    config: Config
    split: Split
    turn: Turn
    sample: Sample
    field: str = ""
    facts: ImageFacts | None = None
    limits: PixelLimits | None = None
    places: Sequence[str] = ()

    @property
    def where(self) -> str:
        """File and line."""
        return self.sample.where

    @property
    def size(self) -> Size | None:
        """Displayed width and height in pixels: the image's own, else those that the file declares."""
        return self.turn.declared_size if self.facts is None else self.facts.size

    def place(self, index: int) -> str:
        """Where an object is written."""
        return self.places[index] if self.places else self.where

    def name(self, index: int) -> str:
        """An object for those who know its place: ``student.objects[2]`` of a line, else its label."""
        return repr(self.turn.objects[index].desc) if self.places else f"{self.field}objects[{index}]"

    def box(self, index: int) -> str:
        """A box for those who know its place."""
        box = self.turn.objects[index].bbox_2d
        return f"the box {show(box)}" if self.places else f"{self.name(index)}.bbox_2d: {list(box)}"

    def holds(self, box: Box, size: Size) -> bool:
        """Whether a box lies inside an image, edges included."""
        return is_inside(box, size, ROUNDING if self.places else 0.0)


def size_is_declared(visit: Visit) -> Iterable[Problem]:
    """``width`` and ``height``, where given, are those of the image as displayed."""
    turn, facts = visit.turn, visit.facts
    if facts is None:
        return
    size = facts.size
    declared = (turn.width or size[0], turn.height or size[1])
    if declared == size:
        return
    what = f"{turn.image!r} is declared {declared[0]}×{declared[1]} but is displayed {size[0]}×{size[1]}"
    fix = "correct width and height, and see that the boxes fit the image"
    if declared == size[::-1] and facts.is_turned:
        fix = "give size and boxes after the EXIF orientation is applied, as viewers show the image"
    yield Problem(what, visit.where, fix)


def boxes_are_turned(visit: Visit) -> Iterable[Problem]:
    """Boxes of an image with EXIF orientation fit the image as displayed, not the one as stored."""
    facts = visit.facts
    boxes = [item.bbox_2d for item in visit.turn.objects]
    if facts is None or not facts.is_turned or all(visit.holds(box, facts.size) for box in boxes):
        return
    stored = facts.size[::-1]
    if all(visit.holds(box, stored) for box in boxes):
        what = (
            f"{visit.turn.image!r} is displayed {facts.size[0]}×{facts.size[1]}, but its boxes fit only the "
            f"{stored[0]}×{stored[1]} that are stored: they were drawn before the EXIF orientation is applied"
        )
        fix = "turn the boxes with the image, or remove its orientation (exiftool -Orientation= FILE)"
        yield Problem(what, visit.where, fix)


def boxes_are_inside(visit: Visit) -> Iterable[Problem]:
    """No box leaves its image."""
    size = visit.size
    if size is None:
        return
    for index, item in enumerate(visit.turn.objects):
        if not visit.holds(item.bbox_2d, size):
            what = f"{visit.box(index)} leaves {visit.turn.image}, which is {size[0]}x{size[1]}"
            fix = OTHER_IMAGE if visit.places else _fix_of_outside(item.bbox_2d, size)
            yield Problem(what, visit.place(index), fix)


def boxes_are_larger_than_a_pixel(visit: Visit) -> Iterable[Problem]:
    """No box lies in the image's first pixel, as one in 0-1 coordinates does."""
    for index, item in enumerate(visit.turn.objects):
        if max(item.bbox_2d) <= 1:
            what = f"{visit.box(index)} lies in the first pixel of the image"
            yield Problem(
                what, visit.place(index), "if these are shares of the image, multiply by width and height"
            )


def no_box_is_repeated(visit: Visit) -> Iterable[Problem]:
    """No label has the same box twice in an image."""
    seen: dict[tuple[str, int, int, int, int], int] = {}
    for index, item in enumerate(visit.turn.objects):
        x1, y1, x2, y2 = item.bbox_2d
        first = seen.setdefault((item.desc, round(x1), round(y1), round(x2), round(y2)), index)
        if first != index and _is_same(visit.turn.objects[first].bbox_2d, item.bbox_2d):
            other = visit.places[first] if visit.places else f"objects[{first}]"
            what = f"{visit.name(index)} repeats {other}: {item.desc!r} {list(item.bbox_2d)}"
            yield Problem(what, visit.place(index), "remove one: the head would have to find it twice")


def labels_are_listed(visit: Visit) -> Iterable[Problem]:
    """Every label is in ``data.labels``, where that is given and the sample does not say what it asks."""
    listed = visit.config.data.labels
    if listed is None or visit.turn.labels is not None:
        return
    listed = (*listed, *(visit.sample.student.labels or ()))
    for label in sorted({item.desc for item in visit.turn.objects} - set(listed)):
        near = nearest_lookalike(label, listed)
        fix = "add it there or correct it" if near is None else f"write {near!r}, which is in data.labels"
        yield Problem(f"the label {label!r} is not in data.labels", visit.where, fix)


def labels_have_no_stray_blanks(visit: Visit) -> Iterable[Problem]:
    """No label begins or ends with a blank, or holds two in a row."""
    for label in sorted({item.desc for item in visit.turn.objects}.union(visit.turn.labels or ())):
        plain = " ".join(label.split())
        if label != plain:
            yield Problem(f"the label {label!r} has stray blanks", visit.where, f"write {plain!r}")


def head_has_queries(visit: Visit) -> Iterable[Problem]:
    """The head has a query for every box of an image."""
    head, turn = visit.config.detection, visit.turn
    if not head.enabled or turn is not visit.sample.student or len(turn.objects) <= head.num_queries:
        return
    count = sum(not item.crowd for item in turn.objects)
    if count > head.num_queries:
        what = f"{turn.image!r} has {count} boxes, but detection.num_queries is {head.num_queries}"
        yield Problem(what, visit.where, f"set detection.num_queries to {count} or more: the rest is lost")


def no_crowd_is_augmented(visit: Visit) -> Iterable[Problem]:
    """No image that ``data.augment`` would change has a crowd."""
    crowds = [item.desc for item in visit.turn.objects if item.crowd]
    if visit.config.data.augment != "off" and visit.split in ("train", "teachers") and crowds:
        what = (
            f"{visit.turn.image!r} has a crowd of {crowds[0]!r}, of which a cut may leave one: no background"
        )
        fix = "remove the sample, set data.augment to off, or accept this where crowds are rare"
        yield Problem(what, visit.where, fix)


def images_fit_the_limit(visit: Visit) -> Iterable[Problem]:
    """The images of a sample alone do not exceed ``data.max_tokens``: nothing is ever cut."""
    size, limits, most = visit.size, visit.limits, visit.config.data.max_tokens
    if size is None or limits is None:
        return
    tokens = num_image_tokens(size, limits)
    if tokens > most:
        became = f"{visit.turn.image!r} of {size[0]}×{size[1]} becomes {tokens} tokens"
        what = f"{became}, but data.max_tokens is {most}"
        yield Problem(what, visit.where, "raise data.max_tokens or lower data.max_pixels")


class Rule(NamedTuple):
    """A rule.

    Attributes:
        good: what is so when there are none.
        needs_images: it says nothing while images are not opened.
        leaves_out: ``data.on_bad_sample: skip`` leaves samples out that it speaks against.
    """

    find: Callable[[Visit], Iterable[Problem]]
    good: str
    needs_images: bool = False
    leaves_out: bool = False


RULES: Mapping[str, Rule] = {
    "config.images.size": Rule(size_is_declared, "declared sizes are those of the images", needs_images=True),
    "config.images.orientation": Rule(
        boxes_are_turned, "boxes lie in the images as displayed", needs_images=True
    ),
    "config.boxes.inside": Rule(boxes_are_inside, "every box lies inside its image", leaves_out=True),
    "config.boxes.pixels": Rule(boxes_are_larger_than_a_pixel, "boxes are in pixels, not in 0-1"),
    "config.boxes.duplicate": Rule(no_box_is_repeated, "no box is repeated"),
    "config.labels.unknown": Rule(labels_are_listed, "every label is in the label set", leaves_out=True),
    "config.labels.blanks": Rule(labels_have_no_stray_blanks, "no label has stray blanks"),
    "config.detection.queries": Rule(head_has_queries, "the head has a query for every box"),
    "config.augment.crowds": Rule(no_crowd_is_augmented, "no augmented image has a crowd"),
    "config.tokens.images": Rule(images_fit_the_limit, "no image alone exceeds data.max_tokens"),
}


def is_inside(box: Box, size: Size, slack: float = 0.0) -> bool:
    """Whether a box lies inside an image, edges included; ``slack`` pixels beyond them count as inside."""
    x1, y1, x2, y2 = box
    return x1 >= -slack and y1 >= -slack and x2 <= size[0] + slack and y2 <= size[1] + slack


def is_counted(item: DetectedObject) -> bool:
    """Whether an object is trained on."""
    return not item.crowd


def _is_same(first: Box, second: Box) -> bool:
    return all(abs(a - b) < LEAST_OVERLAP_PX for a, b in zip(first, second, strict=True))


def _fix_of_outside(box: Box, size: Size) -> str:
    x1, y1, x2, y2 = box
    if is_inside((y1, x1, y2, x2), size):
        return "it fits with x and y swapped: boxes are [x1, y1, x2, y2]"
    return "give xyxy pixels of the image as displayed, or clip the box"
