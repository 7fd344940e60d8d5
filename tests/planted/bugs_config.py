"""Bugs of config and sample files; each was made somewhere by somebody."""

from __future__ import annotations

import os
import shutil

from tests.planted.bug import Bug
from tests.planted.bugs_data import BOX_BUGS, IMAGE_BUGS, LABEL_BUGS
from tests.planted.planting import Project
from tests.planted.sound import sized
from tests.planted.spoiling import (
    also_in_train,
    asked_twice,
    blocked_output,
    copied,
    copied_image,
    cut_file,
    in_object,
    line,
    long_answer,
    long_drawn,
    many_boxes,
    no_boxes,
    no_labels,
    one_box_a_sample,
    pool,
    relabel,
    same_files,
    setting,
    shown_before,
    twice,
)

TOKENS = (("tokens", True),)

CONFIG_BUGS: list[Bug[Project]] = [
    Bug("misspelt key", "config", ("did you mean train.learning_rate?",), setting("train.learning_rat", 0.1)),
    Bug("right padding", "config", ("padding is always left",), setting("data.padding_side", "right")),
    Bug("right padding of the model", "config", ("Flash Attention",), setting("model.padding_side", "right")),
    Bug(
        "text for a number", "config", ("expected a valid number",), setting("train.learning_rate", "1,0e-4")
    ),
    Bug("request without labels", "config", ("must contain {labels}",), setting("data.request", "Find it.")),
    Bug(
        "limits crossed",
        "config",
        ("data.min_pixels (9000) is above data.max_pixels (5000)",),
        lambda p: (p.set("data.min_pixels", 9000), p.set("data.max_pixels", 5000)),
    ),
    Bug(
        "all weights zero",
        "config",
        ("every loss weight is 0",),
        lambda p: [
            p.set(f"loss.{name}_loss_weight", 0.0) for name in ("teacher", "student", "lm", "detection")
        ],
    ),
    Bug(
        "head asked for, none there",
        "config",
        ("there is no head",),
        lambda p: (p.set("infer.mode", "head"), p.set("detection.enabled", False)),
    ),
    Bug(
        "old flat key",
        "config",
        ("detection.enabled",),
        lambda p: p.values.update({"detection_enabled": False}),
    ),
    Bug(
        "learning rate of 1",
        "config.train.learning_rate",
        ("train.language_learning_rate",),
        setting("train.language_learning_rate", 1.0),
    ),
    Bug(
        "packed recurrent layers",
        "config.train.packing",
        ("Qwen3.5 cannot be packed",),
        lambda p: (p.set("model.path", "Qwen/Qwen3.5-0.8B"), p.set("train.packing", True)),
    ),
    Bug(
        "head frozen",
        "config.train.head_frozen",
        ("stays as it was",),
        setting("train.head_learning_rate", 0.0),
    ),
    Bug(
        "warm-up without end",
        "config.train.warmup",
        ("until the last step",),
        setting("train.warmup_ratio", 1.0),
    ),
    Bug(
        "text asked for, untrained",
        "config.loss.text_untrained",
        ("infer.mode is text",),
        lambda p: (
            [p.set("infer.mode", "text")]
            + [p.set(f"loss.{name}_loss_weight", 0.0) for name in ("teacher", "student", "lm")]
        ),
    ),
    Bug(
        "student left out",
        "config.loss.teachers_only",
        ("student_loss_weight and lm_loss_weight are 0",),
        lambda p: [p.set("loss.student_loss_weight", 0.0), p.set("loss.lm_loss_weight", 0.0)],
    ),
    Bug(
        "no demonstration given",
        "config.teachers.none_given",
        ("none is ever given",),
        lambda p: (p.set("data.teacher_ratio", 0.5), p.set("data.num_teachers", 0)),
    ),
    Bug(
        "too few demonstrations",
        "config.teachers.pool",
        ("only 1 samples",),
        lambda p: (pool("t1.png")(p), p.set("data.num_teachers", 3)),
    ),
    Bug("idle pool", "config.teachers.unused", ("data.teacher_ratio is 0",), pool("t1.png", ratio=0.0)),
    Bug(
        "detection off over boxes",
        "config.detection.off_with_boxes",
        ("36 boxes",),
        setting("detection.enabled", False),
    ),
    Bug(
        "detection on without boxes",
        "config.detection.on_without_boxes",
        ("has no box",),
        no_boxes("train", "val"),
    ),
    Bug(
        "validation without boxes",
        "config.data.val_without_boxes",
        ("val.jsonl has no box",),
        no_boxes("val"),
    ),
    Bug(
        "too few queries",
        "config.detection.queries",
        ("165 boxes, but detection.num_queries is 100",),
        many_boxes,
    ),
    Bug(
        "best metric of large objects, all are small",
        "config.train.best_metric",
        ("val.jsonl has no large box", "set it to head/AP"),
        lambda p: (
            [item.update(bbox_2d=[at, at, at + 40, at + 40]) for at, item in enumerate(p.objects("val"))],
            p.set("train.best_metric", "head/AP_large"),
            p.set("train.eval_steps", 2),
        ),
    ),
    Bug(
        "flipped left and right",
        "config.augment.directions",
        ("a flipped image no longer shows 'left hand'", "augment_flips_labels: {left hand: OTHER LABEL}"),
        lambda p: (relabel("left hand")(p), p.set("data.augment", "light")),
    ),
    Bug(
        "augmented crowds",
        "config.augment.crowds",
        ("has a crowd of", "set data.augment to off"),
        lambda p: (in_object("crowd", True)(p), p.set("data.augment", "strong")),
    ),
    Bug(
        "small objects in large images",
        "config.images.small_objects",
        ("the median box of train.jsonl", "--set data.max_pixels=", "--tiles", "infer.tiles="),
        lambda p: (
            sized((2048, 1536))(p),
            [item.update(bbox_2d=[at, at, at + 40, at + 40]) for at, item in enumerate(p.objects())],
        ),
    ),
    Bug(
        "small objects in small images",
        "config.images.small_objects",
        ("the median box of val.jsonl has a side of 1", "--set data.min_pixels="),
        lambda p: [
            item.update(bbox_2d=[at, at, at + 12, at + 12]) for at, item in enumerate(p.objects("val"))
        ],
    ),
    Bug("output folder is a file", "config.train.output_dir", ("occupied: Not a directory",), blocked_output),
    Bug("no such model", "config.model.path", ("no folder",), setting("model.path", "./nowhere")),
    Bug(
        "unknown allowance",
        "config.data.allow",
        ("did you mean config.boxes.duplicate?",),
        setting("data.allow", ["config.boxes.duplicates"]),
    ),
    Bug("image beyond the limit", "config.tokens.images", ("train.jsonl:1",), setting("data.max_tokens", 15)),
    Bug("sample beyond the limit", "config.tokens.limit", ("train.jsonl:1",), long_answer, how=TOKENS),
    Bug(
        "drawn demonstrations beyond the limit",
        "config.tokens.limit",
        ("shown first",),
        long_drawn,
        how=TOKENS,
    ),
    Bug(
        "answer cut at inference",
        "config.tokens.answer",
        ("infer.max_new_tokens is 40",),
        lambda p: [p.set("infer.max_new_tokens", 40), p.set("infer.mode", "text")],
        how=TOKENS,
    ),
]

LINE_BUGS: list[Bug[Project]] = [
    Bug("no training file", "config.data.train", ("data.train",), setting("data.train", None)),
    Bug("no labels anywhere", "config.labels.none", ("no label to look for",), no_labels),
    Bug("no such file", "config.data.files", ("no such sample file",), setting("data.train", "absent.jsonl")),
    Bug(
        "folder given as file",
        "config.data.files",
        ("name a .jsonl file in it: train.jsonl",),
        setting("data.train", "."),
    ),
    Bug("empty file", "config.data.empty", ("holds no samples",), lambda p: p.files.update(train=[])),
    Bug("file cut in mid-line", "config.data.cut", ("train.jsonl:13",), cut_file),
    Bug("line that is no JSON", "config.data.samples", ("train.jsonl:13",), line("images: a.png")),
    Bug(
        "line in Latin-1",
        "config.data.samples",
        ("not UTF-8",),
        line('{"images": ["é.png"], "objects": []}'.encode("latin-1")),
    ),
    Bug(
        "unknown key",
        "config.data.samples",
        ("unknown key boxs",),
        line('{"images": ["a.png"], "objects": [], "boxs": []}'),
    ),
    Bug(
        "key written twice",
        "config.data.samples",
        ("written twice",),
        line('{"images": ["a.png"], "images": ["b.png"], "objects": []}'),
    ),
    Bug(
        "box without area", "config.data.samples", ("objects[1].bbox_2d",), in_object("bbox_2d", [5, 5, 5, 9])
    ),
    Bug("box with NaN", "config.data.samples", ("finite",), in_object("bbox_2d", [1, 2, float("nan"), 9])),
    Bug(
        "box of three numbers", "config.data.samples", ("[x1, y1, x2, y2]",), in_object("bbox_2d", [1, 2, 3])
    ),
    Bug(
        "an object whose label the sample does not ask",
        "config.data.samples",
        ("objects[0].desc: 'red cell' is not among the labels of the sample (white cell, platelet)",),
        lambda project: project.at(2).update(labels=["white cell", "platelet"]),
    ),
    Bug(
        "two answers to one question",
        "config.data.contradiction",
        ("with other objects than in ", ":1: each answer"),
        asked_twice,
    ),
    Bug("sample repeated", "config.data.repeated", ("repeats that of ", "train.jsonl:3"), twice),
    Bug("file under two names", "config.data.repeated", ("the file is a copy of ", "train.jsonl"), copied),
    Bug(
        "one box a sample",
        "config.data.contradiction",
        ("with other objects than in ", ":12: each answer"),
        one_box_a_sample,
    ),
    Bug(
        "one picture under two names",
        "config.data.contradiction",
        ("'train_1.png', the same as 'train_0.png', is asked about with other objects",),
        copied_image,
    ),
    Bug("validation is training", "config.data.same_file", ("train.jsonl",), same_files),
    Bug(
        "validation image trained on",
        "config.data.train_val_overlap",
        ("train.jsonl:1",),
        lambda p: p.at(0).update(images=["val_0.png"]),
    ),
    Bug(
        "… by another path",
        "config.data.train_val_overlap",
        ("'./val_0.png'",),
        lambda p: p.at(0).update(images=["./val_0.png"]),
    ),
    Bug(
        "… by a symbolic link",
        "config.data.train_val_overlap",
        ("'val_0.png'",),
        also_in_train(lambda a, b: b.symlink_to(a)),
    ),
    Bug(
        "… by a hard link",
        "config.data.train_val_overlap",
        ("'val_0.png'",),
        also_in_train(lambda a, b: os.link(a, b)),
    ),
    Bug(
        "… as a copy",
        "config.data.train_val_overlap",
        ("the same as 'val_0.png'",),
        also_in_train(shutil.copyfile),
    ),
    Bug(
        "pool overlaps validation", "config.teachers.leak", ("teachers.jsonl:1",), pool("val_0.png", "t1.png")
    ),
    Bug(
        "demonstration from validation",
        "config.teachers.leak",
        ("also in validation",),
        shown_before("val_1.png"),
    ),
    Bug("its own demonstration", "config.teachers.leak", ("the very image",), shown_before("train_0.png")),
    Bug(
        "its own demonstration, as a copy",
        "config.teachers.leak",
        ("the very image",),
        shown_before("copy.png", "val_0.png", "val"),
    ),
]

BUGS: list[Bug[Project]] = [*CONFIG_BUGS, *LINE_BUGS, *IMAGE_BUGS, *BOX_BUGS, *LABEL_BUGS]
