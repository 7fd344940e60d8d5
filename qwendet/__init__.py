"""Fine-tune Qwen's vision-language models into object detectors that are served as they were trained.

    from qwendet import load_config, load, create_trainer, Predictor

Names are imported when they are first used: ``import qwendet`` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwendet.config.load import load_config
    from qwendet.inference.predictor import Predictor
    from qwendet.loader import load
    from qwendet.training.build import create_trainer

    __version__: str

__all__ = ["Predictor", "__version__", "create_trainer", "load", "load_config"]

_HOMES = {
    "Predictor": "qwendet.inference.predictor",
    "create_trainer": "qwendet.training.build",
    "load": "qwendet.loader",
    "load_config": "qwendet.config.load",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("qwendet")
        except PackageNotFoundError:
            return "0+source"  # run from a checkout that is not installed
    if name not in _HOMES:
        raise AttributeError(f"module 'qwendet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
