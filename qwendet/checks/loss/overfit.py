"""A few real steps on one batch: losses fall, each trained part changes, and all is put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from qwendet.checks.runner import Table, Verdict
from qwendet.checks.subject import Subject
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.training.arguments import training_arguments
from qwendet.training.param_groups import parts
from qwendet.training.trainer import DetectionTrainer

STEPS = 12
FIX = "raise the learning rate of the parts that are to learn; see loss.gradients and loss.optimizer"


def overfit(subject: Subject) -> Verdict:
    """Teacher, student and detection loss fall together when one batch is trained on again and again."""
    detector = subject.bundle.detector
    trainer = short_trainer(subject.bundle, subject.encoded, STEPS, subject.folder / "overfit")
    with restored(detector) as before:
        trainer.train()
        problems = [*_unmoved(detector, before)]
    curves = {
        name: [row[f"loss/{name}"] for row in trainer.state.log_history if f"loss/{name}" in row]
        for name in ("teacher", "student", "detection")
    }
    wanted = _trained_terms(subject)
    problems += [_still(name, curves[name]) for name in wanted if not falls(curves[name])]
    rows = [
        (name, curve[0], curve[-1], "" if name in wanted else "not trained")
        for name, curve in curves.items()
        if curve
    ]
    table = Table(f"{STEPS} steps on one batch", ("term", "first", "last", ""), rows)
    fell = ", ".join(f"{name} {curves[name][0]:.3f} → {curves[name][-1]:.3f}" for name in wanted)
    return Verdict(f"{STEPS} steps on one batch: {fell or 'nothing to learn'}", tuple(problems), (table,))


def _trained_terms(subject: Subject) -> list[str]:
    """The terms that must fall: they weigh something, are in the batch, and a part learns them."""
    loss = subject.bundle.config.loss
    owned = parts(subject.bundle.detector)
    is_trained = {part: any(p.requires_grad for p in own.values()) for part, own in owned.items()}
    text_learns = any(learns for part, learns in is_trained.items() if part != "head")
    has_teachers = any(sample.teachers for sample in subject.samples)
    wanted = {
        "teacher": text_learns and loss.lm_loss_weight + loss.teacher_loss_weight > 0 and has_teachers,
        "student": text_learns and loss.lm_loss_weight + loss.student_loss_weight > 0,
        "detection": loss.detection_loss_weight > 0 and is_trained.get("head", False),
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def falls(curve: list[float]) -> bool:
    """Whether the last third lies below the first value, and the last value too.

    Example:
        >>> falls([2.0, 1.9, 1.5, 1.2]), falls([2.0, 2.0, 2.0]), falls([1.0, 1.2, 1.1])
        (True, False, False)
    """
    if len(curve) < 2:
        return False
    end = curve[-max(1, len(curve) // 3) :]
    return max(sum(end) / len(end), curve[-1]) < curve[0]


def _still(name: str, curve: list[float]) -> Problem:
    course = f"{curve[0]:.6g} → {curve[-1]:.6g}" if curve else "nowhere logged"
    return Problem(
        f"the {name} loss does not fall in {STEPS} steps on one batch: {course}", f"loss/{name}", FIX
    )


@contextmanager
def restored(detector: Qwen25VLWithDetection) -> Iterator[dict[str, Tensor]]:
    """Put the trained parameters back at the end of the block, which is given copies of them."""
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    kept = {name: p.detach().cpu().clone() for name, p in trained.items()}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, values in kept.items():
                trained[name].copy_(values)
        detector.zero_grad(set_to_none=True)


def _unmoved(detector: Qwen25VLWithDetection, before: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Trained parts of which nothing has changed."""
    for part, parameters in parts(detector).items():
        trained = {name: p.detach().cpu() for name, p in parameters.items() if p.requires_grad}
        if trained and all(torch.equal(values, before[name]) for name, values in trained.items()):
            what = f"{part}: {len(trained)} parameters are trained, none has changed after {STEPS} steps"
            yield Problem(what, min(trained), FIX)


# The training


class FewSamples(list[EncodedSample]):
    """Encoded samples as a training set, all of them in every epoch."""

    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(sample.input_ids) for sample in self]

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is alike."""


def short_trainer(
    bundle: Bundle, encoded: Sequence[EncodedSample], steps: int, folder: Path
) -> DetectionTrainer:
    """A trainer whose every step is all of the samples, at the config's rates without their course."""
    batch_size = min(bundle.config.train.batch_size, len(encoded))
    train = {
        "output_dir": str(folder),
        "max_steps": steps,
        "batch_size": batch_size,
        "gradient_accumulation_steps": -(-len(encoded) // batch_size),
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "report_to": (),
    }
    config = bundle.config.model_copy(
        update={
            "train": bundle.config.train.model_copy(update=train),
            "data": bundle.config.data.model_copy(update={"num_workers": 0}),
        }
    )
    arguments = training_arguments(config)
    arguments.save_strategy = "no"
    own = Bundle(bundle.processor, config, detector=bundle.detector)
    return DetectionTrainer(own, FewSamples(encoded), arguments, [])  # type: ignore[arg-type]
