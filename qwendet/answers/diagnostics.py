"""What is wrong with a text answer, beside the boxes that can be read in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from qwendet.answers.format import ParsedAnswer


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """One answer, counted.

    Attributes:
        truncated: it was cut at the most tokens.
        unreadable: neither a box nor an empty list can be read in it.
        rejected: incomplete or impossible boxes, which were not read.
        repeated: of the boxes read, those that an earlier one equals, with its label.
        outside: of the boxes read, those that reach over the edge of the image.
        unknown_labels: of the boxes read, those whose label is not in the set.
    """

    text: str
    truncated: bool
    unreadable: bool
    boxes: int
    rejected: int
    repeated: int
    outside: int
    unknown_labels: int


def answer_facts(
    text: str, parsed: ParsedAnswer, *, truncated: bool, size: tuple[int, int], labels: Collection[str]
) -> AnswerFacts:
    """Count what an answer holds.

    Example:
        >>> from qwendet.answers.format import parse_answer
        >>> text = '[{"bbox_2d": [1, 2, 30, 4], "label": "dog"}, {"bbox_2d": [1, 2'
        >>> answer_facts(text, parse_answer(text), truncated=True, size=(20, 20), labels=["cat"])
        AnswerFacts(text=..., truncated=True, unreadable=False, boxes=1, rejected=1, repeated=0, outside=1,
                    unknown_labels=1)
    """
    objects = parsed.objects
    width, height = size
    return AnswerFacts(
        text=text,
        truncated=truncated,
        unreadable=not objects and (parsed.rejected > 0 or "[]" not in "".join(text.split())),
        boxes=len(objects),
        rejected=parsed.rejected,
        repeated=len(objects) - len({(item.bbox_2d, item.desc) for item in objects}),
        outside=sum(
            min(item.bbox_2d) < 0 or item.bbox_2d[2] > width or item.bbox_2d[3] > height for item in objects
        ),
        unknown_labels=sum(item.desc not in labels for item in objects),
    )


def joined_facts(facts: Sequence[AnswerFacts]) -> AnswerFacts | None:
    """Of several answers about one image: texts one after another, flags that hold of any, counts added."""
    if not facts:
        return None
    values = {one.name: [getattr(fact, one.name) for fact in facts] for one in fields(AnswerFacts)}
    text = "\n".join(values.pop("text"))
    flags = {name: any(values.pop(name)) for name in ("truncated", "unreadable")}
    return AnswerFacts(text, **flags, **{name: sum(counts) for name, counts in values.items()})
