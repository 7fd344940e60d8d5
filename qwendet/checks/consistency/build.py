"""``consistency.build.*``: the model can be built and saved, and holds the weights of its files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import Tensor

from qwendet.checks.consistency.pair import pair
from qwendet.checks.result import NotApplicableError, Verdict
from qwendet.checks.shortened import exact
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.loading.lora import has_adapter
from qwendet.source import find_source

WEIGHTS_FIX = "save with save_checkpoint and load with qwendet.loader.load, which refuses missing keys"
FIRST_ROWS = 16
"""Of each weight of a large model's files, that are held against the model."""


def load_both(subject: Subject) -> Verdict:
    """What training saves can be loaded as inference loads it, and the first samples can be read.

    Of a large model the weights of a few layers are written and read.
    """
    pair(subject)
    pair(exact(subject))
    return Verdict(subject.in_words)


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
                problems += tensor_difference(built, stored, name, "training", path.name)
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
