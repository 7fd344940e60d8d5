"""What is open where an answer is being read: braces, brackets and box tokens, and what they hold so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwendet.answers.keys import is_box_key, is_name, is_no_box_key
from qwendet.answers.names import LabelText

# Answers nest three or four brackets; deeper ones are noise, of which the outermost is forgotten.
_MAX_DEPTH = 32


@dataclass(slots=True)
class FoundBox:
    """A box in an answer; ``desc`` and the range are settled when its object closes.

    Attributes:
        bbox_2d: x1, y1, x2, y2 as written.
        start: index of the first character of its object (of the box alone where an object holds several).
        end: index after the last one.
        opened: index of the box's own bracket.
        key: the key it stands under, if any.
        desc: its label, if any.
    """

    bbox_2d: tuple[float, float, float, float]
    start: int
    end: int
    opened: int
    key: str
    desc: str


@dataclass(slots=True)
class ObjectFrame:
    """An open brace.

    Attributes:
        start: index of the brace.
        under: the key that holds it; empty if none.
        skipped: it is part of points or of a 3-D box.
        implied: the brace is missing.
        settled: a box in it, or the failure of one, was counted.
        key: the key whose value is being read; empty between values.
        boxes: its boxes that have no label yet.
        texts: its texts, in order.
        coordinates: named coordinates so far, by their index in a box.
        coordinates_start: index of the first of them.
        point: its ``x`` and ``y``.
        numbered: it holds other numbers, such as a ``width``.
    """

    start: int
    under: str
    skipped: bool = False
    implied: bool = False
    settled: bool = False
    key: str = ""
    boxes: list[FoundBox] = field(default_factory=list)
    texts: list[LabelText] = field(default_factory=list)
    coordinates: dict[int, float] = field(default_factory=dict)
    coordinates_start: int = 0
    point: dict[str, float] = field(default_factory=dict)
    numbered: bool = False

    @property
    def is_point(self) -> bool:
        """Whether an x and a y are all that is in it."""
        return len(self.point) == 2 and not (self.texts or self.boxes or self.coordinates or self.numbered)


@dataclass(slots=True)
class ListFrame:
    """An open bracket, parenthesis or box token.

    Attributes:
        start: index of the bracket.
        owner: the object whose value it is part of.
        name: the text beside it.
        promised: its key or its box token says that this is a box.
        paired: two pairs in it are the corners of a box.
        skipped: it is part of points or of a 3-D box.
        tag: it is a box token.
        implied: the bracket is missing.
        worded: there are words or broken corners in it, so that it is no box; without any number it is a
            template from the prompt.
        tally: number of boxes and failures counted before it.
        numbers: the numbers in it.
        points: those of the points in it, each ``{"x": …, "y": …}``.
    """

    start: int
    owner: ObjectFrame | None
    name: str
    promised: bool = False
    paired: bool = False
    skipped: bool = False
    tag: bool = False
    implied: bool = False
    worded: bool = False
    tally: int = 0
    numbers: list[float] = field(default_factory=list)
    points: list[float] = field(default_factory=list)


class FrameStack:
    """The open frames, the innermost last; of bounded depth."""

    def __init__(self) -> None:
        self._frames: list[ObjectFrame | ListFrame] = []

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def top(self) -> ObjectFrame | ListFrame | None:
        """The innermost frame."""
        return self._frames[-1] if self._frames else None

    @property
    def owner(self) -> ObjectFrame | None:
        """The object that what stands here is part of."""
        top = self.top
        return top.owner if isinstance(top, ListFrame) else top

    @property
    def has_tag(self) -> bool:
        """Whether a box token is open."""
        return any(isinstance(frame, ListFrame) and frame.tag for frame in self._frames)

    @property
    def promises_box(self) -> bool:
        """Whether a key or a box token says that what stands here is a box."""
        top = self.top
        return top.promised if isinstance(top, ListFrame) else self.awaits_box

    @property
    def awaits_box(self) -> bool:
        """Whether a key promised a box, of which nothing has come yet."""
        top = self.top
        return isinstance(top, ObjectFrame) and is_box_key(top.key)

    @property
    def is_value(self) -> bool:
        """Whether what stands here is the value of a key that names nothing, such as ``result``."""
        top = self.top
        if isinstance(top, ListFrame):
            return top.paired
        return top is not None and bool(top.key) and not is_name(top.key)

    def push(self, frame: ObjectFrame | ListFrame) -> None:
        """Open a frame; what is in points or 3-D boxes is skipped."""
        top, owner = self.top, self.owner
        frame.skipped = (top is not None and top.skipped) or (owner is not None and is_no_box_key(owner.key))
        self._frames.append(frame)
        if len(self._frames) > _MAX_DEPTH:
            del self._frames[0]

    def pop(self) -> ObjectFrame | ListFrame:
        """Close the innermost frame."""
        return self._frames.pop()

    def end_value(self) -> None:
        """What follows is not under the innermost object's last key any more."""
        if isinstance(top := self.top, ObjectFrame):
            top.key = ""
