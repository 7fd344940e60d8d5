"""Training and inference build one model: classes, settings, parameters, types, tied weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from qwendet.checks.consistency.build import WEIGHTS_FIX, tensor_difference
from qwendet.checks.consistency.pair import pair
from qwendet.checks.subject import Subject
from qwendet.config.section import flat
from qwendet.errors import Problem
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from qwendet.training.param_groups import parts

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
