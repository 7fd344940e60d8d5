"""Settings that a checkpoint's model was trained with, and that nobody may change when it is used."""

from __future__ import annotations

from qwendet.config.schema import Config, LoraConfig
from qwendet.errors import ConfigError

MUST_MATCH = (
    ("model", "path"),
    ("data", "system_prompt"),
    ("data", "request"),
    ("data", "frame"),
    ("data", "min_pixels"),
    ("data", "max_pixels"),
)


def require_same_settings(trained: Config, config: Config, *, is_foreign: bool = False) -> None:
    """Refuse settings that would show a checkpoint's model what it was not trained on."""
    for section, name in MUST_MATCH[:1] if is_foreign else MUST_MATCH:
        wanted, found = (getattr(getattr(source, section), name) for source in (trained, config))
        if found != wanted:
            raise ConfigError(
                f"{section}.{name} is {found!r}, but the checkpoint was trained with {wanted!r}",
                "--set",
                "leave it out: prompts and pixel limits belong to the weights",
            )
    if _adapter(trained) != _adapter(config):
        raise ConfigError(
            "model.lora is not what the checkpoint was trained with",
            "--set",
            "leave it out: only model.lora.base, where the base model is, may be given",
        )


def _adapter(config: Config) -> LoraConfig | None:
    """The adapter, wherever its base is."""
    lora = config.model.lora
    return None if lora is None else lora.model_copy(update={"base": None, "revision": None})
