"""Bugs in the files of a checkpoint, or of a plain Hugging Face directory trained elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tests.planted.bug import Bug
from tests.planted.bugs_families import OTHER
from tests.planted.start import folder_of

WEIGHTS = "model.safetensors"
HEAD = "head/detection_head.safetensors"


# How a bug is planted. Manifests are signed anew, as somebody would who edits a checkpoint by hand.


def sign(folder: Path, name: str) -> None:
    """Write a file's new hash into the manifest, if there is one."""
    path = folder / "qwendet.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        path.write_text(json.dumps(record), encoding="utf-8")


def in_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
        change(record)
        (folder / name).write_text(json.dumps(record), encoding="utf-8")
        if name != "qwendet.json":
            sign(folder, name)

    return plant


def in_weights(change: Callable[[dict[str, Tensor]], Any], name: str = WEIGHTS) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / name)
        change(tensors)
        safetensors.torch.save_file(tensors, folder / name, metadata={"format": "pt"})
        sign(folder, name)

    return plant


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def slip_in_a_file(folder: Path) -> None:
    (folder / "added_tokens.json").write_text("{}", encoding="utf-8")


def leave_an_older_head(folder: Path) -> None:
    shutil.copy(folder / HEAD, folder / Path(HEAD).name)


def edit_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("assistant\n", "assistant"), encoding="utf-8")
    sign(folder, path.name)


def two_tokens_swapped(record: dict[str, Any]) -> None:
    vocabulary = record["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def named(tensors: dict[str, Tensor], ending: str) -> str:
    """The weight whose name ends so: what it begins with is the family's."""
    return next(name for name in tensors if name.endswith(ending))


def stale(tensors: dict[str, Tensor]) -> None:
    tensors[named(tensors, "blocks.0.norm1.weight")] += 1e-2  # more than bfloat16 rounds away


def rename(tensors: dict[str, Tensor]) -> None:
    name = named(tensors, "blocks.0.norm1.weight")
    tensors[name.replace("norm1", "norm_1")] = tensors.pop(name)


def to_another_type(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(torch.float16 if tensor.dtype is torch.bfloat16 else torch.bfloat16)


def another_lm_head(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors[named(tensors, "embed_tokens.weight")] + 1


def wrong_index(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, WEIGHTS) | {"visual.none": WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def set_rope(record: dict[str, Any]) -> None:
    record["text_config"]["rope_parameters"]["rope_theta"] = 1e6


def set_prompt(record: dict[str, Any]) -> None:
    record["config"]["data"]["system_prompt"] = "You are Qwen."


def reverse_labels(record: dict[str, Any]) -> None:
    record["config"]["data"]["labels"].reverse()


def ended_by_config(folder: Path) -> None:
    """Without generation settings transformers takes the end of answers from config.json (Qwen3.5-0.8B)."""
    (folder / "generation_config.json").unlink()
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    (end,) = (token["id"] for token in added if token["content"] == "<|endoftext|>")
    in_json("config.json", lambda record: record["text_config"].update(eos_token_id=end))(folder)


def of_another_family(name: str) -> Callable[[Path], None]:
    """A file of the small model of another family in place of the own one."""

    def plant(folder: Path) -> None:
        own = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        shutil.copy(folder_of(OTHER[own]) / name, folder / name)

    return plant


FILE_BUGS: list[Bug[Path]] = [
    Bug(
        "weights of another family",
        "consistency.checkpoint.parameters",
        ("the config's model has",),
        of_another_family(WEIGHTS),
        is_plain=True,
    ),
    Bug(
        "config of another family",
        "consistency.checkpoint.architecture",
        ("model_type",),
        of_another_family("config.json"),
        is_plain=True,
    ),
    Bug(
        "tokenizer.json lost",
        "consistency.checkpoint.tokenizer",
        ("entries of the vocabulary differ",),
        lambda folder: (folder / "tokenizer.json").unlink(),
        is_plain=True,
    ),
    Bug(
        "answers end with endoftext by config.json",
        "consistency.checkpoint.generation",
        ("is not in it",),
        ended_by_config,
        is_plain=True,
    ),
    Bug("byte flipped", "consistency.checkpoint.files", ("differs from its hash", WEIGHTS), flip_a_byte),
    Bug(
        "an older head beside",
        "consistency.checkpoint.files",
        ("does not know", "detection_head"),
        leave_an_older_head,
    ),
    Bug(
        "head of another step",
        "consistency.checkpoint.parameters",
        ("hash differs", "head/", "norm.bias"),
        in_weights(lambda tensors: tensors["norm.bias"].add_(1e-3), HEAD),
    ),
    Bug("file slipped in", "consistency.checkpoint.files", ("does not know",), slip_in_a_file),
    Bug(
        "older loss version",
        "consistency.checkpoint.files",
        ("loss_version is 0",),
        in_json("qwendet.json", lambda record: record.update(loss_version=0)),
    ),
    Bug(
        "foreign tokenizer",
        "consistency.checkpoint.tokenizer",
        ("entries of the vocabulary differ",),
        in_json("tokenizer.json", two_tokens_swapped),
    ),
    Bug(
        "rope settings edited",
        "consistency.checkpoint.architecture",
        ("rope_theta", "1000000"),
        in_json("config.json", set_rope),
    ),
    Bug("template edited", "consistency.checkpoint.template", ("chat template",), edit_template),
    Bug(
        "key renamed",
        "consistency.checkpoint.parameters",
        ("key too many", "norm_1"),
        in_weights(rename),
        is_plain=True,
    ),
    Bug(
        "one weight stale", "consistency.checkpoint.parameters", ("hash differs", "norm1"), in_weights(stale)
    ),
    Bug(
        "index of another save",
        "consistency.checkpoint.parameters",
        ("visual.none",),
        wrong_index,
        is_plain=True,
    ),
    Bug(
        "key missing",
        "consistency.checkpoint.parameters",
        ("the weight is missing", "norm2"),
        in_weights(lambda tensors: tensors.pop(named(tensors, "blocks.0.norm2.weight"))),
        is_plain=True,
    ),
    Bug("cast on disk", "consistency.checkpoint.dtypes", ("bfloat16",), in_weights(to_another_type)),
    Bug(
        "tied lm_head with values of its own",
        "consistency.checkpoint.tied",
        ("different tensors",),
        in_weights(another_lm_head),
        is_plain=True,
    ),
    Bug(
        "lm_head untied and lost",
        "consistency.checkpoint.tied",
        ("one of them is missing",),
        in_json("config.json", lambda record: record.update(tie_word_embeddings=False)),
        is_plain=True,
    ),
    Bug(
        "max_pixels edited",
        "consistency.checkpoint.processor",
        ("max_pixels is 12845056",),
        in_json("preprocessor_config.json", lambda record: record.update(max_pixels=12845056)),
        is_plain=True,
    ),
    Bug(
        "padding is the end of turn",
        "consistency.checkpoint.special_tokens",
        ("must differ",),
        in_json("tokenizer_config.json", lambda record: record.update(pad_token="<|im_end|>")),
        is_plain=True,
    ),
    Bug(
        "resized by another filter",
        "consistency.checkpoint.processor",
        ("resample is 2", "bicubic"),
        in_json("preprocessor_config.json", lambda record: record.update(resample=2)),
        is_plain=True,
    ),
    Bug(
        "answers are drawn by lot",
        "consistency.checkpoint.generation",
        ("do_sample is True", "temperature is 1.5"),
        in_json("generation_config.json", lambda record: record.update(do_sample=True, temperature=1.5)),
        is_plain=True,
    ),
    Bug(
        "answers are cut by generation settings",
        "consistency.checkpoint.generation",
        ("max_new_tokens is 16",),
        in_json("generation_config.json", lambda record: record.update(max_new_tokens=16)),
        is_plain=True,
    ),
    Bug(
        "generation does not stop",
        "consistency.checkpoint.generation",
        ("is not in it",),
        in_json("generation_config.json", lambda record: record.update(eos_token_id=[0])),
        is_plain=True,
    ),
    Bug(
        "another system prompt",
        "consistency.checkpoint.settings",
        ("data.system_prompt", "Qwen"),
        in_json("qwendet.json", set_prompt),
    ),
    Bug(
        "labels in another order",
        "consistency.checkpoint.settings",
        ("data.labels",),
        in_json("qwendet.json", reverse_labels),
    ),
]
