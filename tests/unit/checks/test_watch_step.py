"""The trainer's step is watched up to its backward pass, and nothing but this step is held up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.load import override_config
from qwendet.config.schema import Config
from tests.invariants.step import Shallow, Share, UnseenStepError, watch_step

Watch = Callable[[Subject], Share]


@pytest.fixture(params=["none", "bf16"])
def subject(tiny_config: Config, request: pytest.FixtureRequest) -> Iterator[Subject]:
    with temporary_subject(override_config(tiny_config, [f"train.autocast={request.param}"])) as built:
        yield built


def watch(subject: Subject) -> Share:
    collator: Any = subject.trainer.data_collator
    (share,) = watch_step(subject.trainer, [collator(subject.encoded)], Shallow(subject.bundle.detector))
    return share


def test_watch_step__notes_what_reached_backward_and_runs_no_backward(subject: Subject) -> None:
    share = watch(subject)
    assert share.backpropagated.item() == share.losses.total.item() > 0
    assert {p.grad for p in subject.bundle.detector.parameters()} == {None}
    assert share.output.tokens is not None
    (factor,) = torch.autograd.grad(share.backpropagated, [share.losses.total], retain_graph=True)
    assert factor.item() == 1.0


def test_watch_step__sees_what_was_done_to_the_loss(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the planted bugs of ``loss.backpropagated`` do, here by a factor."""
    trainer = subject.trainer
    compute = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda *args, **kwargs: 0.5 * compute(*args, **kwargs))
    share = watch(subject)
    assert share.backpropagated.item() == 0.5 * share.losses.total.item()


def test_watch_step__leaves_backward_alone_on_other_threads_and_afterwards(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, backward, found = subject.trainer, Tensor.backward, []

    def gradient_of_square(weight: Tensor) -> None:
        (weight * weight).backward()
        found.append(None if weight.grad is None else weight.grad.item())

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        assert Tensor.backward is backward
        thread = threading.Thread(target=gradient_of_square, args=[torch.tensor(3.0, requires_grad=True)])
        thread.start()
        thread.join()
        return compute(*args, **kwargs)

    compute = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", elsewhere)
    watch(subject)
    gradient_of_square(torch.tensor(4.0, requires_grad=True))
    assert found == [6.0, 8.0]


def test_watch_step__a_second_backward_pass_is_refused(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(model: Any, batch: Any, counts: Tensor) -> Tensor:
        loss: Tensor = trainer.compute_loss(model, batch, num_items_in_batch=counts)
        loss.backward()
        trainer.accelerator.backward(loss)
        return loss.detach()

    trainer = subject.trainer
    monkeypatch.setattr(trainer, "training_step", step)
    with pytest.raises(UnseenStepError, match="one backward pass a micro-batch, got 1, 1 and 2"):
        watch(subject)
