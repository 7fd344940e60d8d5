"""The quick part of ``validate``, which stands before training."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from qwendet.checks import preflight
from qwendet.checks.ids import all_ids
from qwendet.checks.preflight import PreflightError, require_preflight
from qwendet.checks.runner import require_known
from qwendet.config.schema import Config
from qwendet.errors import ConfigError, Result
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection


def with_preflight(bundle: Bundle, preflight: str) -> Bundle:
    config: Config = bundle.config
    train = config.train.model_copy(update={"preflight": preflight})
    return replace(bundle, config=config.model_copy(update={"train": train}), manifest=None)


def test_quick__passes_a_sound_model_and_refuses_one_without_a_gradient(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_preflight(with_preflight(bundle, "quick"))
    sound = Qwen25VLWithDetection.encode_images

    def encode_images(self: Qwen25VLWithDetection, *inputs: Tensor) -> tuple[Tensor, Any]:
        patches, images = sound(self, *inputs)
        images.pooler_output = [tokens.detach() for tokens in images.pooler_output]
        return patches, images

    monkeypatch.setattr(Qwen25VLWithDetection, "encode_images", encode_images)
    with pytest.raises(PreflightError) as caught:
        require_preflight(with_preflight(bundle, "quick"))
    assert caught.value.exit_code == 1
    assert {problem.id for problem in caught.value.problems} == {"loss.gradients"}


def test_quick__says_what_was_skipped(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = Result("loss.gradients", "skip", "no sample with demonstrations fits into data.max_tokens")
    monkeypatch.setattr(preflight, "run_loss_checks", lambda *args, **settings: ([skipped], []))
    with caplog.at_level(logging.INFO, logger="qwendet"):
        require_preflight(with_preflight(bundle, "quick"))
    assert "preflight: loss.gradients was skipped: no sample with demonstrations fits" in caplog.text


def test_off__is_printed(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qwendet"):
        require_preflight(with_preflight(bundle, "off"))
    assert "train.preflight is off" in caplog.text


def test_ids__are_unique_and_unknown_ones_refused() -> None:
    ids = all_ids()
    assert len(ids) == len(set(ids))
    with pytest.raises(ConfigError, match=r"did you mean loss\.tokens") as caught:
        require_known(["loss.token"], ids)
    assert caught.value.exit_code == 2
