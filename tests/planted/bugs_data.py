"""Bugs of images, boxes and labels; each was made somewhere by somebody."""

from __future__ import annotations

from pathlib import Path

from tests.planted.planting import HEIGHT, WIDTH, Bug
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

IMAGE_BUGS = [
    Bug("image absent", spoilt_image(Path.unlink), "config.images.open", "is absent"),
    Bug("wrong root", wrong_root, "config.images.root", "none of the 12 images is there"),
    Bug("path leads out", leading_out, "config.images.open", "leaves the data root"),
    Bug("JPEG cut", spoilt_image(cut_to(0.8)), "config.images.open", "truncated or broken"),
    Bug("JPEG cut behind its thumbnail", spoilt_image(cut_behind_thumbnail), "config.images.open", "broken"),
    Bug("PNG cut", spoilt_image(cut_to(0.9), "spoilt.png"), "config.images.open", "truncated or broken"),
    Bug("WebP cut", spoilt_image(cut_to(0.7), "spoilt.webp"), "config.images.open", "truncated or broken"),
    Bug("BMP cut", spoilt_image(cut_to(0.7), "spoilt.bmp"), "config.images.open", "truncated or broken"),
    Bug(
        "web page as image",
        spoilt_image(lambda path: path.write_text("<html>")),
        "config.images.open",
        "is not an image",
    ),
    Bug(
        "empty image", spoilt_image(lambda path: path.write_bytes(b"")), "config.images.open", "an empty file"
    ),
    Bug("placeholder", spoilt_image(lambda path: None, size=(1, 1)), "config.images.open", "too small"),
    Bug(
        "size of another image",
        lambda p: p.at(1).update(width=99, height=77),
        "config.images.size",
        "declared 99×77",
    ),
    Bug("size before EXIF", exif_size, "config.images.size", "EXIF orientation"),
    Bug("boxes before EXIF", exif_boxes, "config.images.orientation", "'turned.jpg' is displayed 120×160"),
]

BOX_BUGS = [
    Bug("box off the image", in_object("bbox_2d", [10, 10, 161, 40]), "config.boxes.inside", "train.jsonl:3"),
    Bug(
        "box far off", in_object("bbox_2d", [-50, 10, 99999, 20]), "config.boxes.inside", "objects[1].bbox_2d"
    ),
    Bug("box in 0-1", in_object("bbox_2d", [0.1, 0.2, 0.6, 0.9]), "config.boxes.pixels", "first pixel"),
    Bug(
        "x and y of one box",
        in_object("bbox_2d", [5, 130, 60, 150]),
        "config.boxes.inside",
        "x and y swapped",
    ),
    Bug("box repeated", repeated_box, "config.boxes.duplicate", "repeats objects[0]"),
    Bug(
        "all boxes xywh",
        all_boxes(lambda a, b, c, d: [a, b, c - a, d - b]),
        "config.boxes.format",
        "[x, y, width, height] pixels",
    ),
    Bug(
        "all boxes cxcywh",
        all_boxes(lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b]),
        "config.boxes.format",
        "center",
    ),
    Bug(
        "all boxes 0-1",
        all_boxes(lambda a, b, c, d: [a / WIDTH, b / HEIGHT, c / WIDTH, d / HEIGHT]),
        "config.boxes.format",
        "[x1, y1, x2, y2] in 0-1",
    ),
    Bug(
        "all boxes YOLO",
        all_boxes(
            lambda a, b, c, d: [(a + c) / 2 / WIDTH, (b + d) / 2 / HEIGHT, (c - a) / WIDTH, (d - b) / HEIGHT]
        ),
        "config.boxes.format",
        "(YOLO)",
    ),
    Bug(
        "all boxes 0-1000",
        all_boxes(
            lambda a, b, c, d: [a * 1000 // WIDTH, b * 1000 // HEIGHT, c * 1000 // WIDTH, d * 1000 // HEIGHT]
        ),
        "config.boxes.format",
        "0-1000",
    ),
    Bug(
        "all boxes 0-1000, large images",
        large_images((2400, 1800), lambda a, b, c, d: [round(1000 * n) for n in (a, b, c, d)]),
        "config.boxes.format",
        "0-1000 coordinates",
    ),
    Bug(
        "all boxes percentages",
        large_images((640, 480), lambda a, b, c, d: [100 * n for n in (a, b, c, d)]),
        "config.boxes.format",
        "percentages",
    ),
    Bug(
        "all boxes of images half as large",
        large_images((320, 240), lambda a, b, c, d: [a * 160, b * 120, c * 160, d * 120]),
        "config.boxes.format",
        "boxes of smaller images",
    ),
    Bug(
        "all boxes with x and y swapped",
        all_boxes(lambda a, b, c, d: [b, a, d, c]),
        "config.boxes.format",
        "[y1, x1, y2, x2] pixels",
    ),
]

LABEL_BUGS = [
    Bug(
        "label in validation only",
        relabel("platelet", split="val"),
        "config.labels.only_in_validation",
        "'platelet'",
    ),
    Bug("case", relabel("Red cell"), "config.labels.lookalike", "'Red cell'"),
    Bug("underscore", relabel("red_cell"), "config.labels.lookalike", "'red_cell'"),
    Bug("trailing dot", relabel("red cell."), "config.labels.lookalike", "'red cell.'"),
    Bug("full-width letters", relabel("ｒed cell"), "config.labels.lookalike", "\\uff52ed cell"),
    Bug("Cyrillic letter", relabel("rеd cell"), "config.labels.lookalike", "r\\u0435d cell"),
    Bug("no-break blank", relabel("red\u202fcell"), "config.data.samples", "control characters"),
    Bug("trailing blank", relabel("red cell "), "config.labels.blanks", "write 'red cell'"),
    Bug("special token", relabel("red<|im_end|>"), "config.data.samples", "special-token text"),
    Bug("line break", relabel("red\ncell"), "config.data.samples", "control characters"),
    Bug("empty label", relabel("  "), "config.data.samples", "expected a label text"),
    Bug(
        "label not listed",
        setting("data.labels", ["white cell", "Red Cell"]),
        "config.labels.unknown",
        "write 'Red Cell'",
    ),
    Bug(
        "listed label unusable",
        setting("data.labels", ["red cell", "white cell", "<|box_end|>"]),
        "config.labels.text",
        "special-token",
    ),
    Bug(
        "label with a comma",
        relabel("red cell, white cell"),
        "config.labels.lookalike",
        "separates labels by commas",
    ),
]
