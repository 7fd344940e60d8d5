"""Which words in an answer name a box: keys that hold labels, keys that are labels, text before a box."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

# Keys that hold a label, best first. A key equal to one beats a key that contains it.
_LABEL_KEYS = (
    "label",
    "name",
    "object",
    "class",
    "categ",
    "desc",
    "标签",
    "名称",
    "类别",
    "caption",
    "phrase",
    "text",
    "title",
    "instance",
    "entity",
    "element",
    "item",
    "物体",
    "物品",
    "对象",
    "名字",
    "target",
    "目标",
    "type",
)
# Words that a key is made of when it says what its value is, not what is in the box.
_PLAIN_WORDS = frozenset(
    re.findall(
        r"\w+",
        """bbox bboxes box boxes boundingbox boundingboxes bounding d x y xy xyxy coord coords coordinate
        coordinates position positions location locations region regions rect rectangle area roi frame
        object objects detection detections detected result results annotation annotations prediction
        predictions answer answers response output outputs json data list items instances arguments args
        parameters image images value values final label labels name class category target targets
        坐标 位置 边界框 检测框 目标框 框 区域 目标 物体 对象 结果 检测结果""",
    )
)
_BOX_KEY = re.compile(
    r"(?:^|[\W_])(?:b|bounding[\W_]?)?box(?:es)?(?:[\W_]?(?:2d|xyxy|coord\w*))?$|框$", re.IGNORECASE
)
_NO_BOX_KEY = re.compile(r"(?<![a-z])(?:key|way)?points?(?![a-z])|3d", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\b(?:is|are|at|in|from|box|bbox|boxes|coordinates)\W*$|\(s\)$", re.IGNORECASE)
_NUMBERING = re.compile(r"^\s*(?:\d{1,3}[.)]\s+)?[\s\"'`*#•,;.，、。(-]*")
_LONGEST_NAME = 200


class LabelText(NamedTuple):
    """A text inside an object: where it stands, its key, its value."""

    start: int
    key: str
    value: str


def is_box_key(key: str) -> bool:
    """Whether a key promises a box, so that anything else under it is a failed one.

    Example:
        >>> [is_box_key(key) for key in ("bbox_2d", "bounding boxes", "box_id", "mailbox")]
        [True, True, False, False]
    """
    return _BOX_KEY.search(key) is not None and not is_no_box_key(key)


def is_no_box_key(key: str) -> bool:
    """Whether a key holds points or 3-D boxes, whose four numbers are no box.

    Example:
        >>> [is_no_box_key(key) for key in ("point_2d", "bbox_3d", "bbox_2d")]
        [True, True, False]
    """
    return _NO_BOX_KEY.search(key) is not None


def is_label_key(key: str) -> bool:
    """Whether a key is the very name of those that hold labels.

    Example:
        >>> [is_label_key(key) for key in ("label", "sub_label", "cat")]
        [True, False, False]
    """
    return key in _LABEL_KEYS


def may_hold_label(key: str) -> bool:
    """Whether a key contains one of the names of those that hold labels.

    Example:
        >>> [may_hold_label(key) for key in ("sub_label", "cat", "position")]
        [True, False, False]
    """
    return _rank(key) != _NO_RANK


def is_name(key: str) -> bool:
    """Whether a key names what its box shows, as in ``{"red car": [1, 2, 3, 4]}``.

    Example:
        >>> [is_name(key) for key in ("red car", "mailbox", "bbox_2d", "")]
        [True, True, False, False]
    """
    words = [word for word in re.split(r"[\W\d_]+", key.lower()) if word]
    return any(word not in _PLAIN_WORDS for word in words)


def name_before(text: str, floor: int, start: int) -> str:
    """The name that stands before a box outside any bracket, else the empty string.

    It ends in a colon (``Red car: [1, 2, 3, 4]``) or touches the box (``car[[1, 2, 3, 4]]``); a sentence
    such as ``The box is [1, 2, 3, 4]`` names nothing.

    Args:
        text: the whole answer.
        floor: index after the previous box, before which nothing is looked at.
        start: index of the box's bracket.

    Example:
        >>> name_before("- **Red car**: [1, 2, 3, 4]", 0, 15)
        'Red car'
    """
    if text.startswith("([", start):  # a call such as array([…])
        return ""
    line = text[max(floor, start - _LONGEST_NAME) : start].rpartition("\n")[2].rpartition(">")[2]
    if line.lstrip().startswith("|"):  # a row of a table
        line = line.strip().strip("|").rpartition("|")[2].strip() + ":"
    name = line.rstrip()
    if name != line and not name.endswith((":", "：")):
        return ""
    name = re.split(r"[:：]\s", name.rstrip(":： "))[-1]
    name = _NUMBERING.sub("", name).rstrip(" \"'`*:：=-")
    is_code = "\\" in name or name.endswith(("(", "[", "{"))
    return name if is_name(name) and not is_code and not _SENTENCE_END.search(name) else ""


def name_after(text: str, end: int) -> str:
    """The rest of the line after a box of plain text, which names it: ``1,2,3,4 red car``.

    Args:
        text: the whole answer.
        end: index after the box.

    Example:
        >>> name_after("1,2,3,4 red car<|im_end|>", 7)
        'red car'
    """
    line = re.split(r"[\r\n<]", text[end : end + _LONGEST_NAME], maxsplit=1)[0]
    return line.strip(" \t:：.\"'`*")


def pair_labels(starts: Sequence[int], texts: Sequence[LabelText]) -> list[str]:
    """The label of each box of one object.

    An object may repeat its keys (``{"name": "a", "bbox": […], "name": "b", "bbox": […]}``). If a label
    comes first, each box takes the last label before it; else the first one after it.

    Args:
        starts: positions of the object's boxes, ascending.
        texts: the object's texts, in order.

    Returns:
        One label a box; empty strings if no text is under a key that holds labels.

    Example:
        >>> texts = [LabelText(1, "name", "a"), LabelText(20, "name", "b")]
        >>> pair_labels([10, 30], texts), pair_labels([0, 10], texts)
        (['a', 'b'], ['a', 'b'])
    """
    if not starts:
        return []
    ranked = [(_rank(text.key), text) for text in texts]
    best = min((rank for rank, _ in ranked), default=_NO_RANK)
    if best == _NO_RANK:
        return [""] * len(starts)
    labels = [text for rank, text in ranked if rank == best]
    places = [text.start for text in labels]
    if len(labels) == len(starts) and (places[-1] < starts[0] or places[0] > starts[-1]):
        return [text.value for text in labels]  # a list of names beside a list of boxes
    label_first = places[0] < starts[0]
    indices = [bisect_left(places, start) - label_first for start in starts]
    return [labels[min(index, len(labels) - 1)].value for index in indices]


_NO_RANK = (len(_LABEL_KEYS), True)


def _rank(key: str) -> tuple[int, bool]:
    lowered = key.lower()
    for index, name in enumerate(_LABEL_KEYS):
        if name in lowered:
            return index, lowered != name
    return _NO_RANK
