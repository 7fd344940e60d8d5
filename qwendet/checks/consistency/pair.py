"""The two builds that are compared: as training has it after an update, and as inference loads what it saved.

    subject.bundle ─► copy, every parameter perturbed ─► trained
                                                                │ save_checkpoint, Predictor.from_checkpoint
                                                                └► served

Perturbed, because an untrained head is built from the seed: one that inference built anew would look the
same. A large model is compared as it stands, name by name and byte by byte: its weights are handed to the
loader instead of written and read. Numbers are compared on its first layers, which are perturbed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qwendet.checks.runner import Verdict
from qwendet.checks.shortened import Shortened, exact
from qwendet.checks.subject import Subject, once
from qwendet.files import atomic_folder
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.checkpoint import base_weights, save_checkpoint, stored_parameters
from qwendet.model.attention import exact_attention
from qwendet.model.detector import Qwen25VLWithDetection

MOVE = 0.02
"""Standard deviation of what is added to each parameter."""


@dataclass(frozen=True)
class Pair:
    """The two builds."""

    trained: Bundle
    served: Bundle
    folder: Path


@once
def pair(subject: Subject) -> Pair:
    """Both builds, in the config's own type of number."""
    trained, folder = subject.bundle, subject.folder / "saved"
    if subject.is_small:
        trained = replace(trained, detector=perturbed(_own(subject, trained.detector)))
    with atomic_folder(folder) as staging:
        save_checkpoint(
            staging,
            trained.detector,
            trained.processor,
            trained.config,
            step=0,
            with_vlm=subject.is_small,
        )
    if not subject.is_small:
        return Pair(trained, _served_from_memory(trained, folder), folder)
    device = f"model.device={trained.config.model.device}"
    return Pair(trained, Predictor.from_checkpoint(folder, overrides=[device]).bundle, folder)


def _served_from_memory(trained: Bundle, folder: Path) -> Bundle:
    """The inference build of weights in memory, by the names of their files; of 4 bits, of the files."""
    config = config_of_checkpoint(folder)
    model = config.model.model_copy(update={"device": trained.config.model.device})
    in_4bit = model.lora is not None and model.lora.load_in_4bit
    weights = None if in_4bit else base_weights(trained.detector)
    return load(config.model_copy(update={"model": model}), for_inference=True, weights=weights)


def _own(subject: Subject, detector: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """A detector that may be changed: a copy, but of a shortened one, which nothing else looks at."""
    return detector if isinstance(subject, Shortened) else copy.deepcopy(detector)


def load_both(subject: Subject) -> Verdict:
    """What training saves can be loaded as inference loads it, and the first samples can be read.

    Of a large model the weights of a few layers are written and read.
    """
    pair(subject)
    pair(exact(subject))
    return Verdict(subject.in_words)


@once
def exact_pair(subject: Subject) -> Pair:
    """Both builds in float64, so that rounding hides nothing; of a large model as they are, in its own types.

    Their attention is then sdpa: the plain one masks with numbers that float64 holds and its float32 softmax
    does not, Flash Attention has no float64 at all. In their place it goes by masks and positions as they do.
    The check of attention compares them in narrower types. What both hold alike is held once.
    """
    both = pair(subject)
    if not subject.is_small:
        return both
    trained, served = (
        replace(bundle, detector=_own(subject, bundle.detector)) for bundle in (both.trained, both.served)
    )
    weights = dict(trained.detector.double().named_parameters())
    for name, parameter in served.detector.named_parameters():
        same = weights.get(name)
        parameter.data = parameter.data.double()
        if same is not None and torch.equal(parameter, same):
            parameter.data = same.data
    served.detector.double()
    for bundle in (trained, served):
        bundle.detector.autocast = None
        bundle.detector.vlm.set_attn_implementation(exact_attention(bundle.config.model.attn_implementation))
    return Pair(trained, served, both.folder)


def perturbed(detector: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """Add noise to every parameter that is saved, the same noise each time; returns the detector."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stored_parameters(detector).values():
            noise = torch.randn(parameter.shape, generator=generator) * MOVE
            parameter.add_(noise.to(parameter))
    return detector
