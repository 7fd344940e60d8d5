"""What ``auto`` comes to with a GPU; tests/checkpoint/test_loader.py has the machine without one."""

from __future__ import annotations

import pytest
import torch

from qwendet.config import ModelConfig
from qwendet.errors import EnvironmentLacksError
from qwendet.model import environment
from qwendet.model.environment import settle


@pytest.mark.parametrize(
    ("has_flash", "dtype", "attention"),
    [(True, "bfloat16", "flash_attention_2"), (True, "float32", "sdpa"), (False, "bfloat16", "sdpa")],
)
def test_auto__is_flash_attention_where_version_2_and_the_type_allow_it(
    has_flash: bool, dtype: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions bring a package of the same name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "is_flash_attn_2_available", lambda: has_flash)
    asked = ModelConfig(path="tiny", device="cuda", dtype=dtype, attn_implementation="auto")
    assert settle(asked).attn_implementation == attention
    if attention == "sdpa":
        with pytest.raises(EnvironmentLacksError, match="flash_attention_2 needs"):
            settle(asked.model_copy(update={"attn_implementation": "flash_attention_2"}))
