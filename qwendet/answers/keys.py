"""What a key of an answer says of its value: a box, a corner, a label, points, or the label itself."""

from __future__ import annotations

import re

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
# Words that a key, or what introduces a box, is made of when it does not say what is in the box.
_PLAIN_WORDS = frozenset(
    re.findall(
        r"\w+",
        """bbox bboxes box boxes boundingbox boundingboxes bounding d x y xy xyxy coord coords coordinate
        coordinates position positions location locations region regions rect rectangle area roi frame
        object objects detection detections detected result results annotation annotations prediction
        predictions answer answers response output outputs json data list items instances arguments args
        parameters image images value values final label labels name class category target targets
        here sure yes note example as for follows following
        坐标 位置 边界框 检测框 目标框 框 区域 目标 物体 对象 结果 检测结果""",
    )
)
_BOX_KEY = re.compile(
    r"(?:^|[\W_])(?:b|bounding[\W_]?)?box(?:es)?(?:[\W_]?(?:2d|xyxy|coord\w*))?$|框$", re.IGNORECASE
)
_NO_BOX_KEY = re.compile(r"(?<![a-z])(?:key|way)?points?(?![a-z])|3d", re.IGNORECASE)
# Keys that name a coordinate, and those that name a corner, by the index in a box of their (first) number.
_COORDINATES = {
    "x1": 0, "x0": 0, "xmin": 0, "xtl": 0, "left": 0,
    "y1": 1, "y0": 1, "ymin": 1, "ytl": 1, "top": 1,
    "x2": 2, "xmax": 2, "xbr": 2, "right": 2,
    "y2": 3, "ymax": 3, "ybr": 3, "bottom": 3,
}  # fmt: skip
_CORNERS = {
    "topleft": 0, "lefttop": 0, "upperleft": 0, "左上": 0,
    "bottomright": 2, "rightbottom": 2, "lowerright": 2, "右下": 2,
}  # fmt: skip


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


def is_points_name(name: str) -> bool:
    """Whether the name before a list says that it holds points.

    Example:
        >>> [is_points_name(name) for name in ("Points", "point_2d", "power point")]
        [True, True, False]
    """
    return re.fullmatch(r"(?:key|way)?points?(?:_[23]d)?", name, re.IGNORECASE) is not None


def is_label_key(key: str) -> bool:
    """Whether a key is the very name of those that hold labels.

    Example:
        >>> [is_label_key(key) for key in ("label", "sub_label", "cat")]
        [True, False, False]
    """
    return key in _LABEL_KEYS


def label_rank(key: str) -> int | None:
    """How well a key serves as that of a label, 0 best; None if it cannot hold one.

    Example:
        >>> [label_rank(key) for key in ("label", "sub_label", "name", "position")]
        [0, 1, 2, None]
    """
    lowered = key.lower()
    for index, name in enumerate(_LABEL_KEYS):
        if name in lowered:
            return 2 * index + (lowered != name)
    return None


def is_name(key: str) -> bool:
    """Whether a key names what its box shows, as in ``{"red car": [1, 2, 3, 4]}``.

    Example:
        >>> [is_name(key) for key in ("red car", "mailbox", "bbox_2d", "")]
        [True, True, False, False]
    """
    words = [word for word in re.split(r"[\W\d_]+", key.lower()) if word]
    return any(word not in _PLAIN_WORDS for word in words)


def coordinate_index(key: str) -> int | None:
    """The place in a box of the coordinate that a key names; None if it names none.

    Example:
        >>> [coordinate_index(key) for key in ("x1", "y_min", "Right", "width")]
        [0, 1, 2, None]
    """
    return _COORDINATES.get(_bare(key))


def corner_index(key: str) -> int | None:
    """The place in a box of the first coordinate of the corner that a key names; None if it names none.

    Example:
        >>> [corner_index(key) for key in ("top_left", "Bottom-right corner", "右下角", "left")]
        [0, 2, 2, None]
    """
    return _CORNERS.get(_bare(key))


def _bare(key: str) -> str:
    return re.sub(r"[_\s-]|corner|角", "", key.lower())
