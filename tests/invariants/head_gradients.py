"""What the head is given carries a gradient back: patches, hidden states and label embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject
from qwendet.encoding.collate import to_device
from qwendet.errors import Problem
from qwendet.model.losses import step_counts
from qwendet.training.param_groups import parts


def gradients(subject: Subject) -> list[Problem]:
    """What vision tower and language model give the head is trained by its loss, where they are trained."""
    detector, trainer = subject.bundle.detector, subject.trainer
    if detector.head is None:
        raise NotApplicableError("there is no head")
    given: list[Tensor] = []
    handle = detector.head.register_forward_pre_hook(lambda module, args: given.extend(args))
    batch = to_device(subject.collator(subject.encoded), trainer.args.device)
    try:
        _, losses = trainer.losses(detector.train(), batch, step_counts([batch]).to(trainer.args.device))
    finally:
        handle.remove()
    owned = parts(detector)
    trained = {part: [name for name, p in own.items() if p.requires_grad] for part, own in owned.items()}
    patches, context, _, label_embeds, *_ = given
    needed = [
        ("vision patches", patches, bool(trained["vision"])),
        ("language model's hidden states", context, any(map(trained.get, ("vision", "merger", "language")))),
        ("label embeddings", label_embeds, any("embed_tokens" in name for name in trained["language"])),
    ]
    problems = []
    for name, tensor, is_needed in needed:
        gradient = None
        if tensor.requires_grad and losses.terms["class"].requires_grad:
            (gradient,) = torch.autograd.grad(
                losses.terms["class"], [tensor], retain_graph=True, allow_unused=True
            )
        if is_needed and (gradient is None or not gradient.any()):
            what = f"the head gets the {name} cut off from the graph: its loss does not train what made them"
            fix = "look for detach(), .item(), .data or no_grad in Qwen25VLWithDetection._detect"
            problems.append(Problem(what, "DetectionHead.forward", fix))
    return problems
