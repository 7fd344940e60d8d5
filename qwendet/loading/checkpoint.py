"""Checkpoints: a plain Hugging Face directory, the head beside it, and a manifest that proves both.

    config.json, generation_config.json, model*.safetensors, tokenizer and processor files
    adapter_config.json, adapter_model.safetensors      with LoRA, in place of config and model
    head/detection_head.safetensors     only with the head; vLLM reads every *.safetensors beside config.json
    qwendet.json                        the manifest: what was trained, and the hash of every byte of it

Nothing is unpickled; a checkpoint that differs from its manifest in anything is refused.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from qwendet.config.schema import Config, Frame
from qwendet.errors import CheckpointError, Problem
from qwendet.families.choose import FIRST_FAMILY, family_of
from qwendet.files import find_folder, sha256_of_file
from qwendet.loading.lora import has_adapter, is_adapter, save_adapter
from qwendet.loading.processor import RESIZER, ImageTextProcessor, save_processor
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadShape
from qwendet.model.losses import LOSS_VERSION
from qwendet.model.spread import fill, whole

FORMAT_VERSION = 1
MANIFEST = "qwendet.json"
HEAD_WEIGHTS = "head/detection_head.safetensors"
COORDINATES: dict[Frame, str] = {
    "pixels": "xyxy integers, pixels of the model's image",
    "thousandths": "xyxy integers, thousandths of the image's width and height",
}
VERSIONED = ("torch", "transformers", "safetensors", "pillow", "numpy")
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

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set, in the order of request and class logits."""
        return self.config.data.labels or ()


def save_checkpoint(
    folder: Path,
    detector: Qwen25VLWithDetection,
    processor: ImageTextProcessor,
    config: Config,
    *,
    step: int,
    attn_implementation: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
    with_vlm: bool = True,
) -> None:
    """Write a model into an existing, empty folder (see :func:`qwendet.files.atomic_folder`).

    Args:
        folder: where to write.
        detector: the model.
        processor: its processor.
        config: the resolved config, labels included.
        step: optimizer steps done.
        attn_implementation: attention that it was trained with; ``None`` is the config's.
        weights: all tensors by name, gathered from the processes that share the model, if they do.
        max_shard_size: most bytes of a weight file, as in ``5GB``.
        with_vlm: ``False`` leaves out the base model's weights, for a reader who has them in memory.
    """
    lora = config.model.lora
    state = detector.state_dict() if weights is None else weights
    if lora is not None:
        save_adapter(part_of(state, "vlm."), lora, processor.family, folder)
    elif with_vlm:
        vlm = None if weights is None else part_of(_without_ties(weights, detector), "vlm.")
        detector.vlm.save_pretrained(folder, state_dict=vlm, max_shard_size=max_shard_size)
    else:
        detector.vlm.config.save_pretrained(folder)
        detector.vlm.generation_config.save_pretrained(folder)
    save_processor(processor, folder)
    if detector.head is not None:
        head = part_of(state, "head.") | detector.head.constants()
        stored = {name: tensor.contiguous() for name, tensor in head.items()}
        (folder / HEAD_WEIGHTS).parent.mkdir()
        safetensors.torch.save_file(stored, folder / HEAD_WEIGHTS, metadata={"format": "pt"})
    manifest = Manifest(
        config=config,
        head=None if detector.head is None else detector.head.shape,
        min_pixels=processor.image_processor.size["shortest_edge"],
        max_pixels=processor.image_processor.size["longest_edge"],
        attn_implementation=attn_implementation or config.model.attn_implementation,
        dtype=config.model.dtype,
        parameters=describe_parameters(detector, state),
        files={name: sha256_of_file(folder / name) for name in files_of(folder)},
        versions={"python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        step=step,
        family=processor.family.model_type,
        coordinates=COORDINATES[processor.family.frame],
    )
    record = asdict(manifest) | {"config": config.model_dump(mode="json")}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def base_weights(detector: Qwen25VLWithDetection) -> dict[str, Tensor]:
    """The base model's tensors by the names that its files give them; no copies, no adapters."""
    own = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in detector.vlm.state_dict().items()
        if not is_adapter(name)
    }
    weights: dict[str, Tensor] = revert_weight_conversion(detector.vlm, own)
    return weights


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` as ``float32``."""
    return str(dtype).removeprefix("torch.")


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a part of the detector, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _without_ties(weights: Mapping[str, Tensor], detector: Qwen25VLWithDetection) -> dict[str, Tensor]:
    """Gathered weights without the second name of a tied one, which is a tensor of its own there."""
    names = {name for name, _ in detector.named_parameters(remove_duplicate=False)}
    second_names = names - {name for name, _ in detector.named_parameters()}
    return {name: tensor for name, tensor in weights.items() if name not in second_names}


def describe_parameters(
    detector: Qwen25VLWithDetection, weights: Mapping[str, Tensor] | None = None
) -> dict[str, ParameterRecord]:
    """Shape, dtype and hash of every parameter that a checkpoint holds; tied ones count once."""
    state = detector.state_dict() if weights is None else weights
    whole = {name: state[name] for name in stored_parameters(detector)}
    return {
        name: ParameterRecord(tuple(tensor.shape), dtype_name(tensor.dtype), sha256_of_tensor(tensor))
        for name, tensor in whole.items()
    }


def stored_parameters(detector: Qwen25VLWithDetection) -> dict[str, Tensor]:
    """The parameters that a checkpoint holds: all of them, or of an adapter those beside the base."""
    without_base = has_adapter(detector)
    return {
        name: tensor
        for name, tensor in detector.named_parameters()
        if not without_base or is_adapter(name) or name.startswith("head.")
    }


def sha256_of_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, row by row; of one that is spread, to be called on all its processes."""
    flat = whole(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


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
            " it lost its manifest, copy it again, or retrain, because nothing tells its prompts and limits",
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
    config = Config.model_validate_json(json.dumps(record["config"]))
    parameters = {
        name: ParameterRecord(tuple(entry["shape"]), entry["dtype"], entry["sha256"])
        for name, entry in record["parameters"].items()
    }
    head = None if record["head"] is None else HeadShape(**record["head"])
    files = {str(name): str(digest) for name, digest in record["files"].items()}
    return Manifest(**(record | {"config": config, "parameters": parameters, "head": head, "files": files}))


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


def verify_parameters(detector: Qwen25VLWithDetection, manifest: Manifest, folder: Path) -> None:
    """Compare names, shapes and, unless the type was narrowed, the bytes of all parameters."""
    found = stored_parameters(detector)
    has_head = detector.head is not None
    wanted = {
        name: own for name, own in manifest.parameters.items() if has_head or not name.startswith("head.")
    }
    for name in sorted(set(found) ^ set(wanted)):
        state = "unexpected" if name in found else "missing"
        raise CheckpointError(f"the parameter {name} is {state}", str(folder), "take another checkpoint")
    for name, record in wanted.items():
        tensor = found[name]
        if tuple(tensor.shape) != record.shape:
            what = f"the parameter {name} has shape {tuple(tensor.shape)}, expected {record.shape}"
            raise CheckpointError(what, str(folder), "take another checkpoint")
        if _differs(tensor, record):
            raise CheckpointError(
                f"the parameter {name} is not the one that was saved",
                str(folder),
                "copy the checkpoint again",
            )


def _differs(tensor: Tensor, record: ParameterRecord) -> bool:
    stored = getattr(torch, record.dtype, None)
    if not isinstance(stored, torch.dtype):
        return True
    is_exact = torch.promote_types(tensor.dtype, stored) == tensor.dtype  # same type, or a wider one
    return is_exact and sha256_of_tensor(tensor.to(stored)) != record.sha256


def head_file(folder: Path) -> Path:
    """Where a checkpoint's head is; of one from before it had a folder of its own, beside the model."""
    path = folder / HEAD_WEIGHTS
    return path if path.is_file() else folder / path.name


def load_head_weights(detector: Qwen25VLWithDetection, folder: Path) -> None:
    """Load the head's weights, every one of them and no other."""
    head, path = detector.head, head_file(folder)
    assert head is not None
    fill(dict(head.named_parameters()) | head.constants(), path.parent, path.name, "head")


def load_base_weights(detector: Qwen25VLWithDetection, folder: Path) -> None:
    """Load the base model's weights of a checkpoint into a model that is there, each once."""
    own = revert_weight_conversion(detector.vlm, dict(detector.vlm.named_parameters()))
    fill(own, folder, "model*.safetensors", "model")
