"""``consistency.checkpoint.*``: a directory of files against what the config would build.

It may be a checkpoint with a manifest, or a plain Hugging Face directory that was trained elsewhere, without
hashes to compare. No weights are loaded into a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from qwendet.checks.consistency.inputs import (
    LIMITS,
    STANDARD,
    processor_problems,
    settings_of,
    special_token_problems,
)
from qwendet.checks.runner import NotApplicableError, Table, Verdict
from qwendet.checks.subject import Subject
from qwendet.config.section import flat
from qwendet.errors import CheckpointError, Problem
from qwendet.loading.checkpoint import dtype_name, sha256_of_tensor
from qwendet.loading.manifest import HEAD_WEIGHTS, MANIFEST, read_manifest, verify_files
from qwendet.loading.processor import template_problems

ADAPTER = "adapter_config.json"
PREPROCESSOR = "preprocessor_config.json"
OF_ANSWERS = (
    "do_sample",
    "temperature",
    "top_",
    "min_",
    "max_",
    "repetition_",
    "no_repeat",
    "num_beams",
    "length_",
)
COPY = "copy the checkpoint again, or take another one"
FROM_ORIGIN = "copy the file from the model's origin, or train from this one: set model.path to it"
LM_HEAD = "vlm.lm_head.weight"
EMBEDDING = "vlm.model.language_model.embed_tokens.weight"
MUST_MATCH = ("data.system_prompt", "data.request", "data.frame", "data.labels", "data.min_pixels",
              "data.max_pixels", "detection.enabled", "detection.hidden_size", "detection.num_layers",
              "detection.num_heads", "model.lora.rank", "model.lora.alpha", "model.lora.targets")  # fmt: skip
NOT_ARCHITECTURE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache",
                    "architectures", "_attn_implementation", "_attn_implementation_internal",
                    "attn_implementation", "output_attentions", "output_hidden_states")  # fmt: skip


def files(subject: Subject, folder: Path) -> Verdict:
    """The manifest is of this format and loss, and has the hash of every file that would be read."""
    _require_manifest(folder)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return Verdict(f"{len(manifest.files)} files are those of the manifest")


def parameters(subject: Subject, folder: Path) -> Verdict:
    """Every weight that the config's model has is there, in its shape, and no other; none was changed."""
    if (folder / ADAPTER).is_file():
        raise NotApplicableError("the checkpoint is an adapter: its files are compared")
    detector = subject.bundle.detector
    own = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    if detector.head is not None:
        own |= {f"head.{name}": tuple(tensor.shape) for name, tensor in detector.head.constants().items()}
    if detector.config.tie_word_embeddings:
        own.pop(LM_HEAD)
    recorded = _recorded(folder)
    problems, seen = [], set()
    for place, name, tensor in _weights(folder):
        if name in seen:
            problems.append(Problem("the weight is in two files", place, COPY))
        seen.add(name)
        if name == LM_HEAD and name not in own:
            continue  # a stored copy of the embeddings: consistency.checkpoint.tied compares it
        if name not in own:
            problems.append(Problem("the config's model has no such weight: a key too many", place, COPY))
        elif own[name] != tuple(tensor.shape):
            what = f"the shape is {tuple(tensor.shape)}, the config's model has {own[name]}"
            problems.append(Problem(what, place, COPY))
        elif name in recorded and sha256_of_tensor(tensor) != recorded[name]["sha256"]:
            what = "the weight is not the one that was saved: its hash differs"
            problems.append(Problem(what, place, COPY))
    expected = own if recorded else {name for name in own if not name.startswith("head.")}
    problems += [
        Problem("the weight is missing", f"{folder}: {name}", COPY) for name in sorted(set(expected) - seen)
    ]
    problems += _index_problems(folder)
    how = "named and hashed as in the manifest" if recorded else "the config's model's, by name and shape"
    return Verdict(f"{len(seen)} weights are {how}", tuple(problems))


def _weights(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Place, name in the detector, and tensor of each stored weight."""
    head = folder / HEAD_WEIGHTS
    for path in sorted({*folder.glob("*.safetensors"), *folder.glob(HEAD_WEIGHTS)}):
        try:
            with safe_open(path, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118  # not a mapping
                    name = f"head.{key}" if path.name == head.name else f"vlm.{own_name(key)}"
                    yield f"{path}: {key}", name, weights.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the weights cannot be read: {error}", str(path), COPY) from error


def own_name(published: str) -> str:
    """A published weight's name in the model's own words.

    Example:
        >>> own_name("visual.blocks.0.norm1.weight"), own_name("model.layers.0.mlp.up_proj.weight")
        ('model.visual.blocks.0.norm1.weight', 'model.language_model.layers.0.mlp.up_proj.weight')
    """
    if published.startswith("visual."):
        return f"model.{published}"
    is_old = published.startswith("model.") and not published.startswith(
        ("model.visual.", "model.language_model.")
    )
    return f"model.language_model.{published.removeprefix('model.')}" if is_old else published


def _index_problems(folder: Path) -> Iterator[Problem]:
    """An index says which file holds which weight: each must be there."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    for key, name in _read(path)["weight_map"].items():
        if not (folder / name).is_file():
            yield Problem(f"the index names {name}, which is not there", str(path), COPY)
            return
        with safe_open(folder / name, "pt") as weights:
            if key not in weights.keys():  # noqa: SIM118  # not a mapping
                yield Problem(f"the index says that {name} holds {key}, but it does not", str(path), COPY)


def dtypes(subject: Subject, folder: Path) -> Verdict:
    """Each weight's stored type is the one that the manifest names, and config.json one of them."""
    recorded = _recorded(folder)
    found: dict[str, str] = {}
    problems: dict[str, Problem] = {}
    for place, name, tensor in _weights(folder):
        dtype = dtype_name(tensor.dtype)
        if not name.startswith("head.") and ".lora_" not in name:
            found.setdefault(dtype, place)
        if name in recorded and recorded[name]["dtype"] != dtype:
            what = f"stored as {dtype}, but {MANIFEST} says {recorded[name]['dtype']}"
            problems.setdefault(what, Problem(what, place, COPY))
    record = _read(folder / "config.json") if (folder / "config.json").is_file() else {}
    wanted = record.get("dtype") or record.get("torch_dtype")
    for dtype, place in found.items():
        if wanted is not None and wanted not in ([*found] if recorded else [dtype]):
            what = f"stored as {dtype}, but config.json says {wanted}"
            problems.setdefault(what, Problem(what, place, COPY))
    return Verdict(f"weights are stored as {', '.join(found)}", tuple(problems.values()))


def tied(subject: Subject, folder: Path) -> Verdict:
    """Embeddings and ``lm_head`` are stored as config.json ties them: once, or twice alike; else both."""
    stored = {name: tensor for _, name, tensor in _weights(folder) if name in (LM_HEAD, EMBEDDING)}
    if not stored:
        raise NotApplicableError("the checkpoint holds neither embeddings nor lm_head")
    wanted = bool(subject.bundle.detector.config.tie_word_embeddings)
    problems = []
    record = _read(folder / "config.json")
    text = record.get("text_config") or {}
    is_tied = record.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    if bool(is_tied) != wanted:
        what = f"tie_word_embeddings is {is_tied}, the config's model has {wanted}"
        problems.append(Problem(what, str(folder / "config.json"), FROM_ORIGIN))
    if is_tied and len(stored) == 2 and not torch.equal(stored[LM_HEAD], stored[EMBEDDING]):
        what = "lm_head and embeddings are tied, but two different tensors are stored: one would be dropped"
        problems.append(Problem(what, f"{folder}: lm_head.weight", "store one tensor, or untie them"))
    if not is_tied and len(stored) == 1:
        lacking = LM_HEAD if LM_HEAD not in stored else EMBEDDING
        what = "lm_head and embeddings are not tied, but one of them is missing: it would be random"
        problems.append(Problem(what, f"{folder}: {lacking.removeprefix('vlm.')}", COPY))
    return Verdict(f"embeddings and lm_head are {'tied' if wanted else 'two tensors'}", tuple(problems))


def architecture(subject: Subject, folder: Path) -> Verdict:
    """config.json says the same of sizes, rope, windows and token ids as the config's model."""
    if (folder / ADAPTER).is_file():
        raise NotApplicableError("the checkpoint is an adapter: its base is known by its fingerprint")
    config = type(subject.bundle.detector.config).from_pretrained(folder)
    found, wanted = (_architecture(each) for each in (config, subject.bundle.detector.config))
    found["model_type"] = _read(folder / "config.json").get("model_type")  # whatever class was to read it
    problems = _differences(found, wanted, folder / "config.json")
    return Verdict(f"{len(wanted)} settings of config.json are those of the config's model", tuple(problems))


def _architecture(config: Any) -> dict[str, Any]:
    record = flat(json.loads(config.to_json_string(use_diff=False)))
    return {key: value for key, value in record.items() if key.rpartition(".")[2] not in NOT_ARCHITECTURE}


def tokenizer(subject: Subject, folder: Path) -> Verdict:
    """The tokenizer is the config's: vocabulary, merges, and what it makes of labels and prompts."""
    ours, theirs = subject.bundle.processor.tokenizer, _tokenizer(folder)
    problems, where = [], f"{folder}: tokenizer"
    wanted, found = ours.get_vocab(), theirs.get_vocab()
    differing = sorted(set(wanted.items()) ^ set(found.items()))
    if differing:
        what = f"{len(differing)} entries of the vocabulary differ, such as {differing[0]}"
        problems.append(Problem(what, where, FROM_ORIGIN))
    data = subject.bundle.config.data
    whole = ours.decode(subject.encoded[0].input_ids.tolist())
    texts = [*subject.bundle.labels, data.request, data.system_prompt or "", whole]
    other = [text for text in texts if theirs(text)["input_ids"] != ours(text)["input_ids"]]
    problems += [Problem(f"{text[:60]!r} becomes other tokens", where, FROM_ORIGIN) for text in other[:1]]
    if theirs.padding_side != "left":
        fix = "set it to left in tokenizer_config.json"
        problems.append(Problem(f"padding_side is {theirs.padding_side!r}", where, fix))
    return Verdict(f"{len(found)} tokens are those of the config's model", tuple(problems))


def special_tokens(subject: Subject, folder: Path) -> Verdict:
    """Special tokens are one token each, and the model's own."""
    ours, theirs = subject.bundle.processor.tokenizer, _tokenizer(folder)
    problems = list(special_token_problems(theirs, subject.bundle.detector.config, str(folder)))
    wanted, found = ({"eos_token": each.eos_token, "pad_token": each.pad_token} for each in (ours, theirs))
    problems += _differences(found, wanted, folder)
    return Verdict("special tokens are those of the config's model", tuple(problems))


def template(subject: Subject, folder: Path) -> Verdict:
    """The chat template writes the family's published format."""
    theirs = _tokenizer(folder)
    if not theirs.chat_template:
        raise CheckpointError("there is no chat template", str(folder), FROM_ORIGIN)
    problems = template_problems(theirs, subject.bundle.detector.family, str(folder))
    return Verdict("the chat template is the published format", tuple(problems))


def processor(subject: Subject, folder: Path) -> Verdict:
    """Pixel limits, patch sizes and colour statistics are those of the config's model."""
    record = STANDARD | _read(folder / PREPROCESSOR)
    for name, edge in LIMITS.items():
        record[name] = record.get(name) or record.get("size", {}).get(edge)
    wanted = settings_of(subject.bundle.processor.image_processor)
    fix = "set data.min_pixels and data.max_pixels as in training; else copy the file from the model's origin"
    problems = processor_problems(record, wanted, str(folder / PREPROCESSOR), fix)
    seen = f"{wanted['min_pixels']} to {wanted['max_pixels']} pixels, as the config has it"
    return Verdict(seen, tuple(problems))


def generation(subject: Subject, folder: Path) -> Verdict:
    """Answers end where training ended them, and are chosen as those of the config's model.

    Where there is no generation_config.json, transformers makes one of config.json.
    """
    path, own = folder / "generation_config.json", subject.bundle.processor.tokenizer
    if not path.is_file() and (folder / ADAPTER).is_file():
        raise NotApplicableError("the checkpoint is an adapter: its base says how answers are generated")
    if path.is_file():
        record = _read(path)
    else:
        path = folder / "config.json"
        config = type(subject.bundle.detector.config).from_pretrained(folder)
        record = GenerationConfig.from_model_config(config).to_dict()
    ends = record.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    problems = []
    if ends != [None] and own.eos_token_id not in ends:
        what = f"eos_token_id is {record['eos_token_id']}: {own.eos_token} ({own.eos_token_id}) is not in it"
        fix = "add it, or other servers will not stop at the end of an answer"
        problems.append(Problem(what, str(path), fix))
    pad = record.get("pad_token_id")
    if pad not in (None, own.pad_token_id):
        what = f"pad_token_id is {pad}, the tokenizer pads with {own.pad_token_id}"
        problems.append(Problem(what, str(path), FROM_ORIGIN))
    wanted, found = (
        {name: value for name, value in made.to_diff_dict().items() if name.startswith(OF_ANSWERS)}
        for made in (subject.bundle.detector.vlm.generation_config, GenerationConfig(**record))
    )
    problems += _differences(found, wanted, path, ": other servers would answer otherwise")
    return Verdict("the end of turn ends generation, tokens are chosen as by the model", tuple(problems))


def settings(subject: Subject, folder: Path) -> Verdict:
    """The config that it was trained with asks the same of the model; other differences are listed."""
    _require_manifest(folder)
    trained, own = _read(folder / MANIFEST)["config"], subject.bundle.config.model_dump(mode="json")
    found, wanted = flat(trained), flat(own)
    keys = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    problems = [
        Problem(
            f"{key} was {found.get(key)!r} in training, the config has {wanted.get(key)!r}",
            str(folder / MANIFEST),
            "set it to what the weights were trained with, or retrain",
        )
        for key in keys
        if key in MUST_MATCH
    ]
    others = [(key, found.get(key), wanted.get(key)) for key in keys if key not in MUST_MATCH]
    tables = (
        [Table("Settings that may differ", ("setting", "checkpoint", "config"), others)] if others else []
    )
    seen = f"prompts, labels, limits and head are the same; {len(others)} other settings differ"
    return Verdict(seen, tuple(problems), tuple(tables))


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path, note: str = ""
) -> list[Problem]:
    """Settings that are not those of the config's model."""
    return [
        Problem(
            f"{name} is {found.get(name)!r}, the config's model has {wanted.get(name)!r}{note}",
            str(where),
            FROM_ORIGIN,
        )
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]


def _recorded(folder: Path) -> dict[str, Any]:
    """What the manifest says of each weight; nothing without a manifest."""
    record: dict[str, Any] = _read(folder / MANIFEST)["parameters"] if (folder / MANIFEST).is_file() else {}
    return record


def _require_manifest(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        raise NotApplicableError("a plain Hugging Face directory: there is no manifest to compare with")


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the file cannot be read: {error}", str(path), COPY) from error
    return record


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer cannot be loaded: {error}", str(folder), FROM_ORIGIN) from error
