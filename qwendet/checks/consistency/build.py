"""``consistency.build.*``: training and inference build one model, of the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from qwendet.checks.consistency.pair import Pair, pair
from qwendet.checks.loss.parts import parts
from qwendet.checks.result import NotApplicableError, Verdict
from qwendet.checks.shortened import exact
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from qwendet.loading.lora import has_adapter
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from qwendet.source import find_source

BUILD_FIX = "build every model with qwendet.loader.load"
WEIGHTS_FIX = "save with save_checkpoint and load with qwendet.loader.load, which refuses missing keys"
PLAIN = (bool, int, float, str, tuple, list)
MAY_BE_OTHER = ("training", "gradient_checkpointing", "name_or_path")
"""Settings of modules that change nothing of what they compute."""
FIRST_ROWS = 16
"""Of each weight of a large model's files, that are held against the model."""
MAY_DIFFER = ("model.path", "model.revision", "model.device", "train.output_dir", "model.lora")
"""Settings in which the two builds may differ; the adapter's base is told by its fingerprint."""


def load_both(subject: Subject) -> Verdict:
    """What training saves can be loaded as inference loads it, and the first samples can be read.

    Of a large model the weights of a few layers are written and read.
    """
    both, tokens = pair(subject), [len(item.input_ids) for item in subject.encoded]
    pair(exact(subject))
    model = both.trained.config.model
    form = f"{model.dtype}, {model.attn_implementation} attention on {model.device}"
    return Verdict(f"{subject.config.model.path} in {form}; samples of {', '.join(map(str, tokens))} tokens")


def classes(subject: Subject) -> Verdict:
    """Both builds are the detector around the published class, alike in each module, head as configured."""
    both, problems = pair(subject), []
    wants_head = subject.config.detection.enabled
    built = [
        ("training", both.trained),
        ("inference", both.served),
        ("Predictor", Predictor(both.served).bundle),
    ]
    for name, bundle in built:
        expected: list[tuple[object, type]] = [(bundle.detector, Qwen25VLWithDetection)]
        expected.append((bundle.detector.vlm, getattr(transformers, bundle.detector.family.model_class)))
        if wants_head and bundle.detector.head is None:
            what = "detection.enabled is true, but there is no head"
            problems.append(Problem(what, f"{name} build", BUILD_FIX))
        elif bundle.detector.head is not None:
            expected.append((bundle.detector.head, DetectionHead))
            if not wants_head:
                what = "detection.enabled is false, but there is a head"
                problems.append(Problem(what, f"{name} build", BUILD_FIX))
        problems += [
            Problem(f"expected the class {wanted.__name__}, got {type(part).__name__}", name, BUILD_FIX)
            for part, wanted in expected
            if type(part) is not wanted
        ]
        problems += _module_differences(both.trained.detector, bundle.detector, name)
    if both.served.detector.training:
        problems.append(Problem("the inference build is in training mode", "inference build", BUILD_FIX))
    head = "a head" if wants_head else "no head"
    return Verdict(f"both builds are Qwen25VLWithDetection with {head}", tuple(problems))


def _module_differences(trained: nn.Module, other: nn.Module, name: str) -> Iterator[Problem]:
    ours, theirs = ({key: type(part) for key, part in m.named_modules()} for m in (trained, other))
    for key in sorted(ours.keys() ^ theirs.keys()):
        yield Problem(f"the module is only in {'training' if key in ours else name}", key, BUILD_FIX)
    for key in ours.keys() & theirs.keys():
        if ours[key] is not theirs[key]:
            yield Problem(
                f"{ours[key].__name__} in training, {theirs[key].__name__} in {name}", key, BUILD_FIX
            )
    yield from _plain_differences(trained, other, name)


def _plain_differences(trained: nn.Module, other: nn.Module, name: str) -> Iterator[Problem]:
    """Numbers, flags and names that modules compute with, such as ``is_causal`` or an epsilon."""
    theirs = dict(other.named_modules())
    for key, part in trained.named_modules():
        for setting, value in vars(part).items():
            if not isinstance(value, PLAIN) or setting.startswith("_") or setting in MAY_BE_OTHER:
                continue
            found = getattr(theirs.get(key, part), setting, None)
            if found != value:
                what = f"{setting} is {value} in training, {found} in {name}"
                yield Problem(what, key or "the detector", BUILD_FIX)


def parameters(subject: Subject) -> Verdict:
    """Saved and loaded, every parameter and buffer keeps its name, shape, type and bytes.

    Of a large model those of a few layers, too, which were moved: a head made anew would be another.
    """
    problems = list(_tensor_problems(pair(subject)))
    if not problems and not subject.is_small:
        problems += _tensor_problems(pair(exact(subject)))
    count = len(_tensors(pair(subject).trained.detector))
    return Verdict(f"{count} tensors are bitwise the same after saving and loading", tuple(problems))


def _tensor_problems(both: Pair) -> Iterator[Problem]:
    ours, theirs = _tensors(both.trained.detector), _tensors(both.served.detector)
    for name in sorted(ours.keys() ^ theirs.keys()):
        what = f"the tensor is only in the {'training' if name in ours else 'inference'} build"
        yield Problem(what, name, WEIGHTS_FIX)
    for name in sorted(ours.keys() & theirs.keys()):
        yield from _tensor_difference(theirs[name], ours[name], name, "inference", "training")


def _tensors(detector: nn.Module) -> dict[str, Tensor]:
    named = [*detector.named_parameters(remove_duplicate=False), *detector.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _tensor_difference(
    found: Tensor, expected: Tensor, name: str, found_in: str, expected_in: str
) -> Iterator[Problem]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        ours, theirs = (f"{tuple(t.shape)} {t.dtype}" for t in (expected, found))
        yield Problem(f"{ours} in {expected_in}, {theirs} in {found_in}", name, WEIGHTS_FIX)
    elif not torch.equal(found.to(expected.device), expected):
        gap = (found.to(expected.device).double() - expected.double()).abs()
        share, most = (gap != 0).double().mean().item(), gap.max().item()
        what = f"{share:.1%} of the values differ between {expected_in} and {found_in}, at most by {most:.3g}"
        yield Problem(what, name, WEIGHTS_FIX)


def tied(subject: Subject) -> Verdict:
    """``lm_head`` is the embedding exactly where config.json ties them, in both builds."""
    both, problems = pair(subject), []
    wanted = bool(subject.bundle.detector.config.tie_word_embeddings)
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        vlm = bundle.detector.vlm
        is_tied = vlm.lm_head.weight is vlm.get_input_embeddings().weight
        if is_tied != wanted:
            state = "are tied" if is_tied else "are two tensors"
            what = f"lm_head and embeddings {state}, but tie_word_embeddings is {wanted}"
            problems.append(Problem(what, f"{name} build", WEIGHTS_FIX))
    return Verdict(f"tie_word_embeddings is {wanted}, and so are the weights", tuple(problems))


def dtypes(subject: Subject) -> Verdict:
    """Frozen weights of both builds have ``model.dtype``, trained ones are float32 or wider."""
    both, problems, config = pair(subject), [], subject.bundle.config
    frozen = getattr(torch, config.model.dtype)
    trained = frozen if config.train.weights == "bfloat16" else torch.promote_types(frozen, torch.float32)
    rates, has_lora = config.train.group_learning_rates(), config.model.lora is not None
    for part, parameters in parts(both.trained.detector).items():
        is_trained = rates[part] > 0 and not has_lora
        wanted = trained if is_trained else frozen
        if part == "head":
            wanted = torch.promote_types(frozen, torch.float32)
        served = dict(both.served.detector.named_parameters())
        for key in parameters:
            allowed = {wanted, torch.float32} if "lora_" in key else {wanted}
            for name, found in (("training", parameters), ("inference", served)):
                if key in found and found[key].dtype not in allowed and found[key].is_floating_point():
                    what = f"{found[key].dtype} in the {name} build, expected {wanted} of the {part} weights"
                    problems.append(Problem(what, key, "load with the types of the config"))
    return Verdict(f"trained weights are {trained}, frozen ones {frozen}", tuple(problems))


def settings(subject: Subject) -> Verdict:
    """Both builds have one config.json (sizes, rope, window attention) and one resolved config."""
    both = pair(subject)
    problems = [
        Problem(f"{found!r} at inference, {wanted!r} in training", f"config.json: {key}", BUILD_FIX)
        for key, wanted, found in _differences(_model_config(both.trained), _model_config(both.served))
    ]
    ours, theirs = (bundle.config.model_dump(mode="json") for bundle in (both.trained, both.served))
    problems += [
        Problem(f"{found!r} at inference, {wanted!r} in training", key, BUILD_FIX)
        for key, wanted, found in _differences(ours, theirs)
        if not key.startswith(MAY_DIFFER)
    ]
    return Verdict(
        "architecture, prompts, labels, limits and types are the same in both builds", tuple(problems)
    )


def _model_config(bundle: Bundle) -> dict[str, Any]:
    return {
        key: value
        for key, value in flat(bundle.detector.config.to_dict()).items()
        if not key.endswith(("name_or_path", "transformers_version", "dtype", "use_cache"))
    }


def flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """A nested record with dotted keys."""
    if not isinstance(record, dict):
        return {prefix: record}
    found: dict[str, Any] = {}
    for key, value in record.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = flat(expected), flat(found)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield key, ours.get(key), theirs.get(key)


def source(subject: Subject) -> Verdict:
    """The training build holds what the files of ``model.path`` hold, name by name.

    Of a large model's weights the first rows are read.
    """
    vlm, model = subject.bundle.detector.vlm, subject.bundle.config.model
    if has_adapter(vlm):
        raise NotApplicableError("the base of an adapter is known by its fingerprint")
    folder = find_source(model.path, model.revision).folder
    own = dict(vlm.named_parameters(remove_duplicate=False))
    problems, seen = [], set()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  # not a mapping
                name = own_name(key)
                seen.add(name)
                if name not in own:
                    problems.append(
                        Problem("the model has no such weight", f"{path.name}: {key}", WEIGHTS_FIX)
                    )
                    continue
                shown = slice(None if subject.is_small else FIRST_ROWS)
                stored = weights.get_slice(key)[shown].to(own[name].dtype)
                built = own[name].detach()[shown].cpu()
                problems += _tensor_difference(built, stored, name, "training", path.name)
    is_tied = vlm.config.tie_word_embeddings
    missing = sorted(set(own) - seen - ({"lm_head.weight"} if is_tied else set()))
    problems += [Problem("no file holds this weight", name, WEIGHTS_FIX) for name in missing]
    return Verdict(f"{len(seen)} weights are those of {folder.name}", tuple(problems))


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
