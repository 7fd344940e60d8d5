"""Bugs of config and sample files; each was made somewhere by somebody."""

from __future__ import annotations

import os
import shutil

from tests.planted.bugs_data import BOX_BUGS, IMAGE_BUGS, LABEL_BUGS
from tests.planted.planting import Bug
from tests.planted.spoiling import (
    also_in_train,
    blocked_output,
    cut_file,
    in_object,
    line,
    long_answer,
    long_drawn,
    many_boxes,
    no_boxes,
    one_box_a_sample,
    pool,
    same_files,
    setting,
    shown_before,
    twice,
)

TOKENS = (("tokens", True),)

CONFIG_BUGS = [
    Bug("misspelt key", setting("train.learning_rat", 0.1), "config", "did you mean train.learning_rate?"),
    Bug("right padding", setting("data.padding_side", "right"), "config", "padding is always left"),
    Bug("right padding of the model", setting("model.padding_side", "right"), "config", "Flash Attention"),
    Bug("number as text", setting("train.learning_rate", "1e-4"), "config", "write 1.0e-4"),
    Bug("request without labels", setting("data.request", "Find it."), "config", "must contain {labels}"),
    Bug(
        "limits crossed",
        lambda p: (p.set("data.min_pixels", 9000), p.set("data.max_pixels", 5000)),
        "config",
        "data.min_pixels (9000) is above data.max_pixels (5000)",
    ),
    Bug(
        "all weights zero",
        lambda p: [
            p.set(f"loss.{name}_loss_weight", 0.0) for name in ("teacher", "student", "lm", "detection")
        ],
        "config",
        "every loss weight is 0",
    ),
    Bug(
        "head asked for, none there",
        lambda p: (p.set("infer.mode", "head"), p.set("detection.enabled", False)),
        "config",
        "there is no head",
    ),
    Bug(
        "old flat key", lambda p: p.values.update({"detection_enabled": False}), "config", "detection.enabled"
    ),
    Bug(
        "learning rate of 1",
        setting("train.language_learning_rate", 1.0),
        "config.train.learning_rate",
        "train.language_learning_rate",
    ),
    Bug(
        "head frozen", setting("train.head_learning_rate", 0.0), "config.train.head_frozen", "stays as it was"
    ),
    Bug(
        "warm-up without end",
        setting("train.warmup_ratio", 1.0),
        "config.train.warmup",
        "until the last step",
    ),
    Bug(
        "text asked for, untrained",
        lambda p: (
            [p.set("infer.mode", "text")]
            + [p.set(f"loss.{name}_loss_weight", 0.0) for name in ("teacher", "student", "lm")]
        ),
        "config.loss.text_untrained",
        "infer.mode is text",
    ),
    Bug(
        "student left out",
        lambda p: [p.set("loss.student_loss_weight", 0.0), p.set("loss.lm_loss_weight", 0.0)],
        "config.loss.teachers_only",
        "student_loss_weight and lm_loss_weight are 0",
    ),
    Bug(
        "no demonstration given",
        lambda p: (p.set("data.teacher_ratio", 0.5), p.set("data.num_teachers", 0)),
        "config.teachers.none_given",
        "none is ever given",
    ),
    Bug(
        "too few demonstrations",
        lambda p: (pool("t1.png")(p), p.set("data.num_teachers", 3)),
        "config.teachers.pool",
        "only 1 samples",
    ),
    Bug("idle pool", pool("t1.png", ratio=0.0), "config.teachers.unused", "data.teacher_ratio is 0"),
    Bug(
        "detection off over boxes",
        setting("detection.enabled", False),
        "config.detection.off_with_boxes",
        "36 boxes",
    ),
    Bug(
        "detection on without boxes",
        no_boxes("train", "val"),
        "config.detection.on_without_boxes",
        "has no box",
    ),
    Bug("validation without boxes", no_boxes("val"), "config.data.val_without_boxes", "val.jsonl has no box"),
    Bug(
        "too few queries",
        many_boxes,
        "config.detection.queries",
        "165 boxes, but detection.num_queries is 100",
    ),
    Bug("output folder is a file", blocked_output, "config.train.output_dir", "occupied is a file"),
    Bug("no such model", setting("model.path", "./nowhere"), "config.model.path", "no folder"),
    Bug(
        "unknown allowance",
        setting("data.allow", ["config.boxes.duplicates"]),
        "config.data.allow",
        "did you mean config.boxes.duplicate?",
    ),
    Bug("image beyond the limit", setting("data.max_tokens", 20), "config.tokens.images", "train.jsonl:1"),
    Bug("sample beyond the limit", long_answer, "config.tokens.limit", "train.jsonl:1", TOKENS),
    Bug("drawn demonstrations beyond the limit", long_drawn, "config.tokens.limit", "shown first", TOKENS),
    Bug(
        "answer cut at inference",
        lambda p: [p.set("infer.max_new_tokens", 40), p.set("infer.mode", "text")],
        "config.tokens.answer",
        "infer.max_new_tokens is 40",
        TOKENS,
    ),
]

LINE_BUGS = [
    Bug("no such file", setting("data.train", "absent.jsonl"), "config.data.files", "no such sample file"),
    Bug(
        "folder given as file",
        setting("data.train", "."),
        "config.data.files",
        "name a .jsonl file in it: train.jsonl",
    ),
    Bug("empty file", lambda p: p.files.update(train=[]), "config.data.empty", "holds no samples"),
    Bug("file cut in mid-line", cut_file, "config.data.cut", "train.jsonl:13"),
    Bug("line that is no JSON", line("images: a.png"), "config.data.samples", "train.jsonl:13"),
    Bug(
        "line in Latin-1",
        line('{"images": ["é.png"], "objects": []}'.encode("latin-1")),
        "config.data.samples",
        "not UTF-8",
    ),
    Bug(
        "unknown key",
        line('{"images": ["a.png"], "objects": [], "boxs": []}'),
        "config.data.samples",
        "unknown key boxs",
    ),
    Bug(
        "key written twice",
        line('{"images": ["a.png"], "images": ["b.png"], "objects": []}'),
        "config.data.samples",
        "written twice",
    ),
    Bug("box without area", in_object("bbox_2d", [5, 5, 5, 9]), "config.data.samples", "objects[1].bbox_2d"),
    Bug("box with NaN", in_object("bbox_2d", [1, 2, float("nan"), 9]), "config.data.samples", "finite"),
    Bug("box of three numbers", in_object("bbox_2d", [1, 2, 3]), "config.data.samples", "[x1, y1, x2, y2]"),
    Bug("sample repeated", twice, "config.data.repeated", "repeats that of line 3"),
    Bug(
        "one box a sample",
        one_box_a_sample,
        "config.data.contradiction",
        "with other objects than in line 12",
    ),
    Bug("validation is training", same_files, "config.data.same_file", "train.jsonl"),
    Bug(
        "validation image trained on",
        lambda p: p.at(0).update(images=["val_0.png"]),
        "config.data.train_val_overlap",
        "train.jsonl:1",
    ),
    Bug(
        "… by another path",
        lambda p: p.at(0).update(images=["./val_0.png"]),
        "config.data.train_val_overlap",
        "'./val_0.png'",
    ),
    Bug(
        "… by a symbolic link",
        also_in_train(lambda a, b: b.symlink_to(a)),
        "config.data.train_val_overlap",
        "'val_0.png'",
    ),
    Bug(
        "… by a hard link",
        also_in_train(lambda a, b: os.link(a, b)),
        "config.data.train_val_overlap",
        "'val_0.png'",
    ),
    Bug(
        "… as a copy",
        also_in_train(shutil.copyfile),
        "config.data.train_val_overlap",
        "the same as 'val_0.png'",
    ),
    Bug("pool overlaps validation", pool("val_0.png", "t1.png"), "config.teachers.leak", "teachers.jsonl:1"),
    Bug(
        "demonstration from validation",
        shown_before("val_1.png"),
        "config.teachers.leak",
        "also in validation",
    ),
    Bug("its own demonstration", shown_before("train_0.png"), "config.teachers.leak", "the very image"),
    Bug(
        "its own demonstration, as a copy",
        shown_before("copy.png", "val_0.png", "val"),
        "config.teachers.leak",
        "the very image",
    ),
]

BUGS = [*CONFIG_BUGS, *LINE_BUGS, *IMAGE_BUGS, *BOX_BUGS, *LABEL_BUGS]
