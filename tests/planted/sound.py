"""Sound projects: data and settings on which not one check fails."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from tests.planted.planting import Project

Change = Callable[[Project], object]


def negatives_only(project: Project) -> None:
    for split, records in project.files.items():
        for index in range(len(records)):
            project.at(index, split)["objects"] = []
    project.set("data.labels", ["crack"])
    project.set("detection.enabled", False)


def relabelled(*labels: str) -> Change:
    def change(project: Project) -> None:
        for split in project.files:
            for index, item in enumerate(project.objects(split)):
                item["desc"] = labels[index % len(labels)]

    return change


def sized(*sizes: tuple[int, int]) -> Change:
    def change(project: Project) -> None:
        for split, records in project.files.items():
            project.files[split] = [
                project.record(f"{split}{index}.png", sizes[index % len(sizes)])
                for index in range(len(records))
            ]

    return change


def one_image(project: Project) -> None:
    del project.files["val"]
    project.values = {"data": {"train": "train.jsonl"}}
    project.files["train"] = project.files["train"][:1]


def every_format(project: Project) -> None:
    """Also a photograph turned by its EXIF orientation, and one with a trailer of its camera."""
    exif = Image.Exif()
    exif[0x0112] = 6
    box = {"bbox_2d": [0, 0, 120, 160], "desc": "red cell"}
    for name in ("a.jpg", "b.webp", "c.bmp", "d.gif", "e.tiff", "f.jpg"):
        options = {"exif": exif} if name == "a.jpg" else {}
        path = project.draw(name, **options)
        item = box if name == "a.jpg" else {**box, "bbox_2d": [0, 0, 160, 120]}
        project.files["train"].append({"images": [name], "objects": [item]})
    path.write_bytes(path.read_bytes() + b"SEFT" * 500)


def own_demonstrations(project: Project) -> None:
    """Two for a validation sample, and the same image asked about after different ones."""
    shown, other = project.record("shown.png"), project.record("other.png")
    project.files["val"][0] = {"teachers": [shown, other], "student": project.at(0, "val")}
    student = project.at(0)
    project.files["train"] += [
        {"teachers": [shown], "student": student},
        {"teachers": [other], "student": student},
    ]


def labels_of_their_own(project: Project) -> None:
    """Phrases, and what is not there; an image asked about twice; validation asks what was never trained."""
    for split, records in project.files.items():
        for index in range(0, len(records), 2):
            record = project.at(index, split)
            for item in record["objects"][1:]:
                item["desc"] = f"the cell left of {split} {index}"
            named = dict.fromkeys(item["desc"] for item in record["objects"])
            record["labels"] = [*named, f"a platelet near {split} {index}"]
    again = project.at(0)
    largest = {**again["objects"][0], "desc": "the largest cell"}
    project.files["train"].append({**again, "objects": [largest], "labels": ["the largest cell"]})


def pool_of_training_samples(project: Project) -> None:
    project.files["teachers"] = project.files["train"][:5]
    project.set("data.teachers", "teachers.jsonl")
    project.set("data.teacher_ratio", 1.0)
    project.set("data.num_teachers", 2)


def frozen_tower(project: Project) -> None:
    project.set("train.vision_learning_rate", 0.0)
    project.set("train.merger_learning_rate", 0.0)
    project.set("detection.enabled", True)


def still_camera(project: Project) -> None:
    """Objects that always appear in the same place, away from the edges."""
    sized((1280, 720))(project)
    for split in project.files:
        for index, item in enumerate(project.objects(split)):
            item["bbox_2d"] = [300 + index, 200 + index, 420 + 2 * index, 330 + index]


def crowds_and_borders(project: Project) -> None:
    project.at(0)["objects"] += [
        {"bbox_2d": [0, 0, 160, 120], "desc": "white cell", "crowd": True},
        {"bbox_2d": [159, 119, 160, 120], "desc": "red cell", "difficult": True},
    ]


def setting(key: str, value: object) -> Change:
    return lambda project: project.set(key, value)


def both(*changes: Change) -> Change:
    return lambda project: [change(project) for change in changes]


SOUND: dict[str, Change] = {
    "as it is": lambda project: None,
    "negatives only": negatives_only,
    "Chinese labels": relabelled("红细胞", "白细胞", "血小板"),
    "right-to-left labels": relabelled("خلية", "תא אדום", "می‌خواهم"),
    "Cyrillic and Greek labels": relabelled("стоп", "сор", "μήλο", "cat"),
    "single letters": relabelled("A", "a", "B", "1", "l"),
    "labels that are nearly the same": relabelled("C", "C++", "C#", "type 1", "type 2", "t-shirt", "shirt"),
    "not square": sized((400, 30), (30, 400), (161, 97)),
    "large images": sized((2400, 1800), (1800, 2400)),
    "small images": both(sized((28, 28), (40, 30)), setting("data.min_pixels", 96**2)),
    "one image": one_image,
    "every format": every_format,
    "demonstrations of their own": own_demonstrations,
    "labels of their own": labels_of_their_own,
    "pool of training samples": pool_of_training_samples,
    "frozen vision tower": frozen_tower,
    "still camera": still_camera,
    "crowds and borders": crowds_and_borders,
}


def without_head(project: Project) -> None:
    project.set("detection.enabled", False)
    project.set("data.allow", ["config.detection.off_with_boxes"])


# What a run is built of; of the data sets above, those that the model is built or computes otherwise for.
SOUND_RUNS: dict[str, Change] = {
    "head and text": lambda project: None,
    "text alone": without_head,
    "a new head": both(setting("model.path", "tiny-untrained"), setting("detection.num_layers", 1)),
    "demonstrations of their own": own_demonstrations,
    "labels of their own": both(labels_of_their_own, setting("data.teacher_ratio", 0.5)),
    "labels of their own, augmented and packed": both(
        labels_of_their_own,
        setting("data.augment", "strong"),
        setting("train.packing", True),
        setting(
            "data.augment_flips_labels",
            {f"the cell left of train {n}": f"the cell left of train {n}" for n in range(0, 12, 2)},
        ),
    ),
    "augmented": both(own_demonstrations, setting("data.augment", "strong")),
    "demonstrations from a pool": pool_of_training_samples,
    "demonstrations from the training set": setting("data.teacher_ratio", 0.5),
    "LoRA": setting("model.lora", {"rank": 4, "targets": ["all"]}),
    "LoRA without head": both(without_head, setting("model.lora", {"rank": 4})),
    "LoRA and demonstrations": both(own_demonstrations, setting("model.lora", {"rank": 4, "dropout": 0.1})),
    "frozen vision tower": frozen_tower,
    "head alone": both(
        frozen_tower,
        setting("train.language_learning_rate", 0.0),
        setting("loss.lm_loss_weight", 0.0),
        setting("loss.student_loss_weight", 0.0),
        setting("loss.teacher_loss_weight", 0.0),
    ),
    "half precision": setting("model.dtype", "bfloat16"),
    "half precision with demonstrations": both(own_demonstrations, setting("model.dtype", "bfloat16")),
    "autocast": setting("train.autocast", "bf16"),
    "eager attention": setting("model.attn_implementation", "eager"),
    "gradient checkpointing": setting("model.gradient_checkpointing", True),
    "accumulation": both(setting("train.batch_size", 2), setting("train.gradient_accumulation_steps", 3)),
    "packing": setting("train.packing", True),
    "packing with demonstrations": both(own_demonstrations, setting("train.packing", True)),
    "one image": one_image,
    "negatives only": negatives_only,
    "not square": sized((400, 30), (30, 400), (161, 97)),
    "smaller images": both(sized((640, 480)), setting("data.max_pixels", 112 * 112)),
    "Chinese labels": relabelled("红细胞", "白细胞", "血小板"),
    "right-to-left labels": relabelled("خلية", "תא אדום"),
    "another prompt": both(
        setting("data.system_prompt", "You find blood cells."),
        setting("data.request", "Mark: {labels}"),
    ),
}


# The same of the other families: what each computes in its own way, and all that it is built of.
OF_FAMILIES: dict[str, dict[str, Change]] = {
    "qwen2_vl": {
        "head and text": lambda project: None,
        "text alone, two demonstrations": both(without_head, own_demonstrations),
        "LoRA of every part": setting("model.lora", {"rank": 4, "targets": ["all"]}),
        "packing": setting("train.packing", True),
        "no system prompt": setting("data.system_prompt", ""),
        "negatives only": negatives_only,
        "half precision": setting("model.dtype", "bfloat16"),
    },
    "qwen3_vl": {
        "head and text": lambda project: None,
        "text alone": without_head,
        "pixels instead of thousandths": setting("data.frame", "pixels"),
        "demonstrations from a pool": pool_of_training_samples,
        "LoRA of every part and demonstrations": both(
            own_demonstrations, setting("model.lora", {"rank": 4, "targets": ["all"]})
        ),
        "frozen vision tower and mergers": frozen_tower,
        "packing with demonstrations": both(own_demonstrations, setting("train.packing", True)),
        "gradient checkpointing": setting("model.gradient_checkpointing", True),
        "a system prompt of its own": setting("data.system_prompt", "You find blood cells."),
        "half precision with demonstrations": both(own_demonstrations, setting("model.dtype", "bfloat16")),
        "not square": sized((400, 30), (30, 400), (161, 97)),
        "negatives only": negatives_only,
    },
    "qwen3_5": {
        "head and text": lambda project: None,
        "text alone, two demonstrations": both(without_head, own_demonstrations),
        "demonstrations from the training set": setting("data.teacher_ratio", 0.5),
        "LoRA": setting("model.lora", {"rank": 4}),
        "LoRA of every part without head": both(
            without_head, setting("model.lora", {"rank": 4, "targets": ["all"]})
        ),
        "frozen vision tower": frozen_tower,
        "gradient checkpointing": setting("model.gradient_checkpointing", True),
        "a system prompt of its own": setting("data.system_prompt", "You find blood cells."),
        "eager attention": setting("model.attn_implementation", "eager"),
        "half precision": setting("model.dtype", "bfloat16"),
    },
}
