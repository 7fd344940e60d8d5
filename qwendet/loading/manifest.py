"""The manifest of a checkpoint: what was trained, and the hash of every byte of it.

A checkpoint that differs from its manifest in anything is refused, and so is one whose numbers mean something
else to this version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from qwendet.config.schema import Config, Frame
from qwendet.errors import CheckpointError, Problem
from qwendet.families.choose import FIRST_FAMILY, family_of
from qwendet.files import find_folder, sha256_of_file
from qwendet.loading.processor import RESIZER
from qwendet.model.head import HeadShape
from qwendet.model.losses import LOSS_VERSION

FORMAT_VERSION = 1
MANIFEST = "qwendet.json"
HEAD_WEIGHTS = "head/detection_head.safetensors"
COORDINATES: dict[Frame, str] = {
    "pixels": "xyxy integers, pixels of the model's image",
    "thousandths": "xyxy integers, thousandths of the image's width and height",
}
# What transformers would read of its own accord, so that nobody can slip it in beside hashed files.
READ_SUFFIXES = (".safetensors", ".json", ".jinja")
READ_FOLDER = "additional_chat_templates"
TRAINER_STATE = "trainer_state.json"
RESUME = "resume.json"  # hashes of the training state, see qwendet.training.resume
OWN = (MANIFEST, HEAD_WEIGHTS, Path(HEAD_WEIGHTS).name, RESUME)  # files that only this project writes
PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class ParameterRecord:
    """What the manifest says of one parameter."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        config: the resolved config of the run, with the label set filled in.
        head: the head's shape; ``None`` without a head.
        dtype: type of the weights in training, but for those that ``parameters`` has as float32.
        parameters: shape, dtype and hash of each parameter, by name in the detector.
        files: hash of each file but the manifest.
        resizer: of images.
        family: ``model_type`` of the model.
        coordinates: frame of the numbers in answers, in words.
        loss_version: of what the weights were trained for.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    config: Config
    head: HeadShape | None
    min_pixels: int
    max_pixels: int
    attn_implementation: str
    dtype: str
    parameters: dict[str, ParameterRecord]
    files: dict[str, str]
    versions: dict[str, str]
    step: int = 0
    padding_side: str = "left"
    resizer: str = RESIZER
    family: str = FIRST_FAMILY
    coordinates: str = COORDINATES["pixels"]
    format_version: int = FORMAT_VERSION
    loss_version: int = LOSS_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it beside the files that it describes."""
    record = asdict(manifest) | {"config": manifest.config.model_dump(mode="json")}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def files_of(folder: Path) -> list[str]:
    """The files of a checkpoint, by their paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def find_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint; ``None`` for a model that this project did not train."""
    if (folder / PEFT_CONFIG).is_file() and not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"this is an adapter ({PEFT_CONFIG}) without a manifest ({MANIFEST})",
            str(folder),
            "copy it again if train wrote it; else merge it into its base with peft's merge_and_unload, save"
            " that model with its tokenizer and processor files, and give its folder",
        )
    is_foreign = (folder / "config.json").is_file() and not any((folder / name).is_file() for name in OWN)
    return None if is_foreign else read_manifest(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest."""
    path = folder / MANIFEST
    if not find_folder(folder):
        what = (
            "expected a checkpoint's folder, got a file" if folder.exists() else "there is no such checkpoint"
        )
        raise CheckpointError(what, str(folder), "give a folder that train wrote, such as run/final")
    if not path.is_file():
        inner = next((run for run in (folder / "final", folder / "run" / "final") if find_folder(run)), None)
        is_empty = not (folder / "config.json").is_file()
        raise CheckpointError(
            f"the checkpoint has no manifest ({MANIFEST})" + ", nor is there a config.json" * is_empty,
            str(folder),
            f"give {inner}"
            if inner is not None
            else "give a folder that train wrote, such as run/final, or one of a model, with config.json; if"
            " it lost its manifest, copy it again, or retrain, because nobody knows its prompts and limits",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _check_versions(record, path)
        return _parse_manifest(record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the manifest cannot be read ({type(error).__name__}: {error})",
            str(path),
            "take another checkpoint",
        ) from error


def _check_versions(record: dict[str, Any], path: Path) -> None:
    family = family_of(record.get("family", FIRST_FAMILY), str(path))
    family = family.in_frame(record["config"]["data"].get("frame"))
    expected = {
        "format_version": FORMAT_VERSION,
        "loss_version": LOSS_VERSION,
        "padding_side": "left",
        "resizer": RESIZER,
        "coordinates": COORDINATES[family.frame],
    }
    for name, wanted in expected.items():
        if record[name] != wanted:
            raise CheckpointError(
                f"{name} is {record[name]}, expected {wanted}",
                str(path),
                "retrain, because its weights were trained for losses and formats that mean something else",
            )


def _parse_manifest(record: dict[str, Any]) -> Manifest:
    if "weights" not in record["config"]["train"]:  # older ones: autocast was that of training alone
        record["config"]["train"]["autocast"] = "auto"
    for removed in ("image_cache", "image_cache_gigabytes"):  # settings of older ones
        record["config"]["data"].pop(removed, None)
    return TypeAdapter(Manifest).validate_json(json.dumps(record))


def file_problems(folder: Path, files: Mapping[str, str], record: str, fix: str) -> Iterator[Problem]:
    """Files of a checkpoint that are missing, or differ from the hash that ``record`` has of them."""
    there = files_of(folder)
    for name, expected in files.items():
        if name not in there:
            yield Problem("a file of the checkpoint is missing", str(folder / name), fix)
        elif sha256_of_file(folder / name) != expected:
            yield Problem(f"the file differs from its hash in {record}", str(folder / name), fix)


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its hash, and refuse files that would be read without one."""
    problems = [*file_problems(folder, manifest.files, "the manifest", "copy the checkpoint again")]
    read = {p.name for p in folder.iterdir() if p.suffix in READ_SUFFIXES or p.name == READ_FOLDER}
    read |= {HEAD_WEIGHTS} if (folder / HEAD_WEIGHTS).is_file() else set()
    problems += [
        Problem("the manifest does not know this file", str(folder / name), "remove it")
        for name in sorted(read - {*manifest.files, MANIFEST, TRAINER_STATE, RESUME})
    ]
    if problems:
        raise CheckpointError.of(problems)
