"""Training and inference build one model: classes, settings, parameters, types, tied weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from qwendet.checks.consistency.checkpoint import own_name
from qwendet.checks.consistency.pair import pair
from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject
from qwendet.config.section import flat
from qwendet.errors import Problem
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from qwendet.loading.lora import has_adapter
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from qwendet.source import find_source
from qwendet.training.param_groups import parts

WEIGHTS_FIX = "save with save_checkpoint and load with qwendet.loader.load, which refuses missing keys"
BUILD_FIX = "build every model with qwendet.loader.load"
PLAIN = (bool, int, float, str, tuple, list)
MAY_BE_OTHER = ("training", "gradient_checkpointing", "name_or_path")
"""Settings of modules that change nothing of what they compute."""
MAY_DIFFER = ("model.path", "model.revision", "model.device", "train.output_dir", "model.lora")
"""Settings in which the two builds may differ; the adapter's base is told by its fingerprint."""


def classes(subject: Subject) -> list[Problem]:
    """Both builds are the detector around the transformers class, alike module by module, head as set."""
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
    return problems


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


def parameters(subject: Subject) -> list[Problem]:
    """Saved and loaded, every parameter and buffer keeps its name, shape, type and bytes."""
    ours, theirs = (_tensors(bundle.detector) for bundle in (pair(subject).trained, pair(subject).served))
    problems = []
    for name in sorted(ours.keys() ^ theirs.keys()):
        what = f"the tensor is only in the {'training' if name in ours else 'inference'} build"
        problems.append(Problem(what, name, WEIGHTS_FIX))
    for name in sorted(ours.keys() & theirs.keys()):
        problems += tensor_difference(theirs[name], ours[name], name, "inference", "training")
    return problems


def _tensors(detector: nn.Module) -> dict[str, Tensor]:
    named = [*detector.named_parameters(remove_duplicate=False), *detector.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def source(subject: Subject) -> list[Problem]:
    """The training build holds what the files of ``model.path`` hold, name by name."""
    vlm, model = subject.bundle.detector.vlm, subject.bundle.config.model
    if has_adapter(vlm):
        raise NotApplicableError("the base of an adapter is known by its fingerprint")
    own = dict(vlm.named_parameters(remove_duplicate=False))
    problems, seen = [], set()
    for path in sorted(find_source(model.path, model.revision).folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  # not a mapping
                seen.add(name := own_name(key))
                if name not in own:
                    what = "the model has no such weight"
                    problems.append(Problem(what, f"{path.name}: {key}", WEIGHTS_FIX))
                    continue
                stored = weights.get_tensor(key).to(own[name].dtype)
                problems += tensor_difference(own[name].detach().cpu(), stored, name, "training", path.name)
    is_tied = vlm.config.tie_word_embeddings
    missing = sorted(set(own) - seen - ({"lm_head.weight"} if is_tied else set()))
    return problems + [Problem("no file holds this weight", name, WEIGHTS_FIX) for name in missing]


def tensor_difference(
    found: Tensor, expected: Tensor, name: str, found_in: str, expected_in: str
) -> Iterator[Problem]:
    """Shapes, types or values in which a tensor of one place differs from the same tensor of another."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        ours, theirs = (f"{tuple(t.shape)} {t.dtype}" for t in (expected, found))
        yield Problem(f"{ours} in {expected_in}, {theirs} in {found_in}", name, WEIGHTS_FIX)
    elif not torch.equal(found.to(expected.device), expected):
        gap = (found.to(expected.device).double() - expected.double()).abs()
        share, most = (gap != 0).double().mean().item(), gap.max().item()
        what = f"{share:.1%} of the values differ between {expected_in} and {found_in}, at most by {most:.3g}"
        yield Problem(what, name, WEIGHTS_FIX)


def tied(subject: Subject) -> list[Problem]:
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
    return problems


def dtypes(subject: Subject) -> list[Problem]:
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
    return problems


def settings(subject: Subject) -> list[Problem]:
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
    return problems


def _model_config(bundle: Bundle) -> dict[str, Any]:
    return {
        key: value
        for key, value in flat(bundle.detector.config.to_dict()).items()
        if not key.endswith(("name_or_path", "transformers_version", "dtype", "use_cache"))
    }


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = flat(expected), flat(found)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield key, ours.get(key), theirs.get(key)
