"""What is trained, at which rate, and whether an adapter is in every layer."""

from __future__ import annotations

from collections.abc import Iterator

from qwendet.checks.result import Table, Verdict
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.loading.lora import is_adapter
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.training.param_groups import parts

ADAPTER_FIX = (
    "name a part, such as language, or linear layers of every kind of attention, such as in_proj_qkv"
)


def optimizer(subject: Subject) -> Verdict:
    """An adapter that is in the attention (or MLP) of some layers is in that of all; the rest is a table."""
    config, rows = subject.bundle.config, []
    rates = config.train.group_learning_rates()
    for part, parameters in parts(subject.bundle.detector).items():
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        size = sum(parameter.numel() for parameter in trained)
        rows.append((part, len(parameters), len(trained), size, f"{rates[part]:g}"))
    table = Table("Parameters", ("part", "tensors", "trained", "trainable parameters", "learning rate"), rows)
    problems = [] if config.model.lora is None else [*_unreached(subject.bundle.detector)]
    seen = f"{sum(row[2] for row in rows)} tensors are trained, the others are frozen"
    return Verdict(seen, tuple(problems), (table,))


def _unreached(detector: Qwen25VLWithDetection) -> Iterator[Problem]:
    """Layers without an adapter in their attention, recurrent or not, or MLP, where others have one."""
    model = detector.vlm.model
    for name, layers in (("decoder layers", model.language_model.layers), ("blocks", model.visual.blocks)):
        reached = [
            {key.startswith("mlp.") for key, _ in layer.named_parameters() if is_adapter(key)}
            for layer in layers
        ]
        for is_mlp in set[bool]().union(*reached):
            lacking = [index for index, own in enumerate(reached) if is_mlp not in own]
            if lacking:
                part = "MLP" if is_mlp else "attention"
                what = f"{len(lacking)} of {len(layers)} {name} have no adapter in their {part}"
                yield Problem(what, f"model.lora.targets: layer {lacking[0]}", ADAPTER_FIX)
