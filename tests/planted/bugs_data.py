"""Bugs of images, boxes and labels; each was made somewhere by somebody."""

from __future__ import annotations

from pathlib import Path

from tests.planted.bug import Bug
from tests.planted.planting import HEIGHT, WIDTH, Project
from tests.planted.spoiling import (
    all_boxes,
    cut_behind_thumbnail,
    cut_to,
    exif_boxes,
    exif_size,
    in_object,
    large_images,
    leading_out,
    relabel,
    repeated_box,
    setting,
    spoilt_image,
    wrong_root,
)

IMAGE_BUGS: list[Bug[Project]] = [
    Bug("image absent", "config.images.open", ("is absent",), spoilt_image(Path.unlink)),
    Bug("wrong root", "config.images.root", ("none of the 12 images is there",), wrong_root),
    Bug("path leads out", "config.images.open", ("leaves the data root",), leading_out),
    Bug("JPEG cut", "config.images.open", ("truncated or broken",), spoilt_image(cut_to(0.8))),
    Bug(
        "JPEG cut behind its thumbnail", "config.images.open", ("broken",), spoilt_image(cut_behind_thumbnail)
    ),
    Bug("PNG cut", "config.images.open", ("truncated or broken",), spoilt_image(cut_to(0.9), "spoilt.png")),
    Bug("WebP cut", "config.images.open", ("truncated or broken",), spoilt_image(cut_to(0.7), "spoilt.webp")),
    Bug("BMP cut", "config.images.open", ("truncated or broken",), spoilt_image(cut_to(0.7), "spoilt.bmp")),
    Bug(
        "web page as image",
        "config.images.open",
        ("is not an image",),
        spoilt_image(lambda path: path.write_text("<html>")),
    ),
    Bug(
        "empty image",
        "config.images.open",
        ("an empty file",),
        spoilt_image(lambda path: path.write_bytes(b"")),
    ),
    Bug("placeholder", "config.images.open", ("too small",), spoilt_image(lambda path: None, size=(1, 1))),
    Bug(
        "size of another image",
        "config.images.size",
        ("declared 99×77",),
        lambda p: p.at(1).update(width=99, height=77),
    ),
    Bug("size before EXIF", "config.images.size", ("EXIF orientation",), exif_size),
    Bug("boxes before EXIF", "config.images.orientation", ("'turned.jpg' is displayed 120×160",), exif_boxes),
]

BOX_BUGS: list[Bug[Project]] = [
    Bug(
        "box off the image",
        "config.boxes.inside",
        ("train.jsonl:3",),
        in_object("bbox_2d", [10, 10, 161, 40]),
    ),
    Bug(
        "box far off",
        "config.boxes.inside",
        ("objects[1].bbox_2d",),
        in_object("bbox_2d", [-50, 10, 99999, 20]),
    ),
    Bug("box in 0-1", "config.boxes.pixels", ("first pixel",), in_object("bbox_2d", [0.1, 0.2, 0.6, 0.9])),
    Bug(
        "x and y of one box",
        "config.boxes.inside",
        ("x and y swapped",),
        in_object("bbox_2d", [5, 130, 60, 150]),
    ),
    Bug("box repeated", "config.boxes.duplicate", ("repeats objects[0]",), repeated_box),
    Bug(
        "all boxes xywh",
        "config.boxes.format",
        ("[x, y, width, height] pixels",),
        all_boxes(lambda a, b, c, d: [a, b, c - a, d - b]),
    ),
    Bug(
        "all boxes cxcywh",
        "config.boxes.format",
        ("center",),
        all_boxes(lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b]),
    ),
    Bug(
        "all boxes 0-1",
        "config.boxes.format",
        ("[x1, y1, x2, y2] in 0-1",),
        all_boxes(lambda a, b, c, d: [a / WIDTH, b / HEIGHT, c / WIDTH, d / HEIGHT]),
    ),
    Bug(
        "all boxes YOLO",
        "config.boxes.format",
        ("(YOLO)",),
        all_boxes(
            lambda a, b, c, d: [(a + c) / 2 / WIDTH, (b + d) / 2 / HEIGHT, (c - a) / WIDTH, (d - b) / HEIGHT]
        ),
    ),
    Bug(
        "all boxes 0-1000",
        "config.boxes.format",
        ("0-1000",),
        all_boxes(
            lambda a, b, c, d: [a * 1000 // WIDTH, b * 1000 // HEIGHT, c * 1000 // WIDTH, d * 1000 // HEIGHT]
        ),
    ),
    Bug(
        "all boxes 0-1000, large images",
        "config.boxes.format",
        ("0-1000 coordinates",),
        large_images((2400, 1800), lambda a, b, c, d: [round(1000 * n) for n in (a, b, c, d)]),
    ),
    Bug(
        "all boxes percentages",
        "config.boxes.format",
        ("percentages",),
        large_images((640, 480), lambda a, b, c, d: [100 * n for n in (a, b, c, d)]),
    ),
    Bug(
        "all boxes of images half as large",
        "config.boxes.format",
        ("boxes of smaller images",),
        large_images((320, 240), lambda a, b, c, d: [a * 160, b * 120, c * 160, d * 120]),
    ),
    Bug(
        "all boxes with x and y swapped",
        "config.boxes.format",
        ("[y1, x1, y2, x2] pixels",),
        all_boxes(lambda a, b, c, d: [b, a, d, c]),
    ),
]

LABEL_BUGS: list[Bug[Project]] = [
    Bug(
        "label in validation only",
        "config.labels.only_in_validation",
        ("'platelet'",),
        relabel("platelet", split="val"),
    ),
    Bug("case", "config.labels.lookalike", ("'Red cell'",), relabel("Red cell")),
    Bug("underscore", "config.labels.lookalike", ("'red_cell'",), relabel("red_cell")),
    Bug("trailing dot", "config.labels.lookalike", ("'red cell.'",), relabel("red cell.")),
    Bug("full-width letters", "config.labels.lookalike", ("\\uff52ed cell",), relabel("ｒed cell")),
    Bug("Cyrillic letter", "config.labels.lookalike", ("r\\u0435d cell",), relabel("rеd cell")),
    Bug("unseen blank", "config.data.samples", ("U+200B ZERO WIDTH SPACE",), relabel("red\u200bcell")),
    Bug("trailing blank", "config.labels.blanks", ("write 'red cell'",), relabel("red cell ")),
    Bug("special token", "config.data.samples", ("special-token text",), relabel("red<|im_end|>")),
    Bug("line break", "config.data.samples", ("control characters",), relabel("red\ncell")),
    Bug("empty label", "config.data.samples", ("expected a label text",), relabel("  ")),
    Bug(
        "label not listed",
        "config.labels.unknown",
        ("write 'Red Cell'",),
        setting("data.labels", ["white cell", "Red Cell"]),
    ),
    Bug(
        "listed label unusable",
        "config.labels.text",
        ("special-token",),
        setting("data.labels", ["red cell", "white cell", "<|box_end|>"]),
    ),
    Bug(
        "label with a comma",
        "config.labels.lookalike",
        ("separates labels by commas",),
        relabel("red cell, white cell"),
    ),
]
