"""What ``auto`` comes to with a GPU; tests/unit/loading/test_loader.py has the machine without one."""

from __future__ import annotations

import pytest
import torch

from qwendet.config.schema import Config
from qwendet.errors import EnvironmentLacksError
from qwendet.loading import environment
from qwendet.loading.environment import resolve_environment
from qwendet.training.arguments import require_launcher


@pytest.mark.parametrize(
    ("has_flash", "dtype", "autocast", "attention"),
    [
        (True, "bfloat16", "auto", "flash_attention_2"),
        (True, "float32", "bf16", "flash_attention_2"),
        (True, "float32", "auto", "sdpa"),
        (False, "bfloat16", "auto", "sdpa"),
    ],
)
def test_auto__is_flash_attention_where_version_2_and_the_type_allow_it(
    has_flash: bool, dtype: str, autocast: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions bring a package of the same name; float32 weights are cast under autocast."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "is_flash_attn_2_available", lambda: has_flash)
    model = {"device": "cuda", "dtype": dtype}
    asked = Config.model_validate({"model": model, "train": {"autocast": autocast}})
    assert resolve_environment(asked).model.attn_implementation == attention
    if attention == "sdpa":
        named = Config.model_validate({"model": model | {"attn_implementation": "flash_attention_2"}})
        with pytest.raises(EnvironmentLacksError, match="flash_attention_2 needs"):
            resolve_environment(named)


@pytest.mark.parametrize(
    ("has_bf16", "asked", "dtype", "autocast"),
    [
        (True, "auto", "bfloat16", "bf16"),
        (True, "bf16", "bfloat16", "bf16"),
        (True, "none", "float32", "none"),
        (True, "fp16", "float32", "fp16"),
        (False, "auto", "float32", "none"),
    ],
)
def test_auto__is_bfloat16_on_a_gpu_that_has_it_unless_other_products_are_asked_for(
    has_bf16: bool, asked: str, dtype: str, autocast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(environment, "is_flash_attn_2_available", lambda: False)
    settled = resolve_environment(Config.model_validate({"train": {"autocast": asked}}))
    assert (settled.model.dtype, settled.train.autocast) == (dtype, autocast)


def test_weights__in_bfloat16_are_refused_where_the_model_is_not() -> None:
    train = {"weights": "bfloat16", "optimizer": "stable_adamw"}
    with pytest.raises(EnvironmentLacksError, match=r"train\.weights is bfloat16, but the type chosen for"):
        resolve_environment(Config.model_validate({"model": {"device": "cpu"}, "train": train}))


def test_weights__in_bfloat16_are_refused_where_they_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    train = {"weights": "bfloat16", "optimizer": "stable_adamw"}
    with pytest.raises(EnvironmentLacksError, match="FSDP spreads trained weights of one type"):
        require_launcher(Config.model_validate({"train": train}))
    require_launcher(Config())
