"""What a key of an answer, or the text before a box, says: a box, no box, a label, or what is in the box."""

from __future__ import annotations

import re

# Keys that hold a label, best first. A key equal to one beats a key that contains it.
_LABEL_KEYS = re.findall(
    r"\w+",
    """label name object class categ desc 标签 名称 类别 caption phrase text title instance entity element
    item 物体 物品 对象 名字 target 目标 type""",
)
# Words that do not say what is in the box.
_PLAIN_WORDS = re.findall(
    r"\w+",
    """bbox bboxes box boxes boundingbox boundingboxes bounding d x y xy xyxy coord coords coordinate
    coordinates position positions location locations region regions rect area roi object objects detection
    detections detected result results annotation annotations prediction predictions answer answers response
    output json data list item items arguments parameters image images label labels name class category
    target targets here sure yes note example as for follows following the is
    坐标 位置 边界框 检测框 目标框 框 区域 目标 物体 对象 结果 检测结果""",
)
BOX_NAME = r"(?:(?:bounding[\ _-]?)?b?box(?:es)?(?:[\ _-]?(?:2d|xyxy))?(?!\w))"
_BOX_KEY = re.compile(rf"(?:^|[\W_]){BOX_NAME}$|框$", re.IGNORECASE)
_NO_BOX_KEY = re.compile(
    r"(?<![a-z])(?:key|way)?points?(?![a-z])|3d|^num(?:ber)?_|(?:^|[\W_])(?:scores?|conf\w*|prob\w*|colou?rs?)$",
    re.IGNORECASE,
)
_SENTENCE = re.compile(
    r"\b(?:is|are|at|in|from|to|and|or|with|box|boxes|coordinates)\W*$|(?:[是为在于]|坐标|位置|边界框)\W*$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:\d{1,3}[.)]\s)?[\s\"'`*#•,;.，、。；！？(\[{-]*(?:(?:and|or)\s|[和及])?")


def promises_box(key: str) -> bool | None:
    """Whether other numbers than four under a key are a failed box; ``None`` if even four are none.

    Example:
        >>> [promises_box(key) for key in ("bbox_2d", "bounding boxes", "mailbox", "point_2d", "scores")]
        [True, True, False, None, None]
    """
    return None if _NO_BOX_KEY.search(key) else _BOX_KEY.search(key) is not None


def label_rank(key: str) -> int | None:
    """How well a key serves as that of a label, 0 best; None if it cannot hold one.

    Example:
        >>> [label_rank(key) for key in ("label", "sub_label", "name", "position")]
        [0, 1, 2, None]
    """
    lowered = key.lower()
    ranks = (2 * index + (lowered != name) for index, name in enumerate(_LABEL_KEYS) if name in lowered)
    return next(ranks, None)


def as_name(key: str) -> str:
    """The key if it names what its box shows, as in ``{"red car": [1, 2, 3, 4]}``; else the empty string.

    Example:
        >>> [as_name(key) for key in ("red car", "mailbox", "bbox_2d", "")]
        ['red car', 'mailbox', '', '']
    """
    words = re.findall(r"[^\W\d_]+", key.lower())
    return "" if set(words).issubset(_PLAIN_WORDS) else key


def name_before(line: str) -> str:
    """The name that ends a line before a box: it touches the box or has a colon; empty for a sentence.

    Example:
        >>> [name_before(line) for line in ("1. **Red car**: ", "so: car", "The box is ", "它的坐标是")]
        ['Red car', 'car', '', '']
    """
    name = line.rstrip("([{\"'` ")
    if name != line.rstrip("([{\"'`") and not name.endswith((":", "：", "*")):
        return ""
    name = re.split(r"[:：]\s", name)[-1]
    name = _BULLET.sub("", name, count=1).replace("**", "").strip(" \"'`*:：")
    return "" if _SENTENCE.search(name) else as_name(name)
