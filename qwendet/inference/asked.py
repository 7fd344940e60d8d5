"""How a model is asked: the config that it is loaded with, and who answers, the head or the text."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from qwendet.config.load import override_config
from qwendet.config.same_settings import require_same_settings
from qwendet.config.schema import EMBEDDED_MODELS, Config
from qwendet.errors import ConfigError
from qwendet.inference.detections import Source
from qwendet.loader import config_of_model

logger = logging.getLogger("qwendet")


class Asked(TypedDict, total=False):
    """What a user may say of it.

    Attributes:
        labels: other labels to look for; one that is nearly a trained one gives a warning.
        overrides: ``key=value``, such as ``infer.batch_size=16``.
        given: how a model without a manifest was trained.
        mode: that will be asked for, so that a missing head is an error before weights are read.
        labels_of_data: to look for where nothing else names any.
        check: refuses a config before weights are read.
    """

    labels: Sequence[str] | None
    overrides: Sequence[str]
    given: Config | None
    mode: str | None
    labels_of_data: Sequence[str]
    check: Callable[[Config], None]


def config_to_ask(folder: str | Path, **asked: Unpack[Asked]) -> tuple[Config, bool]:
    """The config that a model is asked with, and whether this project did not train it.

    Raises:
        CheckpointError: for a model that cannot be used.
        ConfigError: for an override that would show the model what it was not trained on; without labels.
    """
    overrides, labels = asked.get("overrides", ()), asked.get("labels")
    revision = dict(item.partition("=")[::2] for item in overrides).get("model.revision")
    trained, is_foreign = config_of_model(str(folder), revision=revision, given=asked.get("given"))
    if any(override.startswith("model.dtype=") for override in overrides):
        overrides = ["train.autocast=auto", *overrides]  # the products are of the type that is asked for
    config = override_config(trained, overrides)
    require_same_settings(trained, config, is_foreign=is_foreign)
    if "check" in asked:
        asked["check"](config)
    sources_of(asked.get("mode") or config.infer.mode, has_head=config.detection.enabled)
    if labels is None and config.data.labels is None and config.data.train is None:
        labels = asked.get("labels_of_data")
        if not labels:
            fix = "infer: --labels cat,dog; eval: --set data.labels=[cat,dog]"
            raise ConfigError("nothing says what to look for in the images", "--labels", fix)
    if labels is not None:
        tell_near_misses(labels, trained.data.labels or ())
        config = config.model_copy(update={"data": config.data.model_copy(update={"labels": tuple(labels)})})
    return config, is_foreign


def require_settings(model: Path, overrides: Sequence[str]) -> None:
    """Find mistakes in ``--set`` before images are read, where the model's config is on this disk."""
    if model.is_dir() or str(model) in EMBEDDED_MODELS:
        override_config(config_of_model(str(model))[0], overrides)


def sources_of(mode: str, *, has_head: bool) -> tuple[Source, ...]:
    """What answers in a mode."""
    if mode == "auto":
        return ("head",) if has_head else ("text",)
    if mode in ("head", "both") and not has_head:
        raise ConfigError(f"mode is {mode}, but the model has no head", "--mode", "use --mode text")
    return {"head": ("head",), "text": ("text",), "both": ("head", "text")}[mode]  # type: ignore[return-value]


def in_words(origin: Mapping[str, object]) -> str:
    """Who trained a model and how it is asked, as it is printed.

    Example:
        >>> in_words({"trained_by": "unknown", "prompt": "Locate every {labels}."})
        'trained by: unknown; prompt: Locate every {labels}.'
    """
    return "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in origin.items())


def tell_near_misses(labels: Sequence[str], trained: Sequence[str]) -> None:
    """Warn of labels that are nearly trained ones: any label may be looked for, a misspelt one too."""
    for label in labels:
        close = difflib.get_close_matches(label, trained, n=1, cutoff=0.85)
        if close and label not in trained:
            logger.warning("the label %r was not trained; did you mean %r?", label, close[0])
