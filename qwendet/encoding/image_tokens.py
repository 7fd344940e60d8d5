"""How many tokens an image becomes, from its size alone: without its pixels, without transformers.

Only what is asked before anything is opened uses this: what a sample really has is always read off
``image_grid_thw``. A test holds it against the published resizer.
"""

from __future__ import annotations

import json
from pathlib import Path

from qwendet.config.schema import EMBEDDED_MODELS, Config, ModelConfig
from qwendet.errors import CheckpointError
from qwendet.families.choose import FAMILIES, embedded_limits, family_by_name, family_in
from qwendet.families.family import Family, PixelLimits

ASSETS = Path(__file__).parent.parent / "assets"


def settings_folder(model: ModelConfig) -> Path | None:
    """Where the settings of a model lie on this disk; None where only a download would tell."""
    if model.path in EMBEDDED_MODELS:  # one of random weights is as the family's that is shipped, if one is
        own = EMBEDDED_MODELS[model.path]
        folders = (ASSETS / name for name, family in EMBEDDED_MODELS.items() if family == own)
        return next(filter(Path.is_dir, folders), None)
    if Path(model.path).is_dir():
        return Path(model.path)
    from huggingface_hub import try_to_load_from_cache  # a hub id alone needs it

    try:
        found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def known_family(model: ModelConfig) -> Family | None:
    """The family of a model, without a download; None where neither a file nor a published name tells."""
    folder = settings_folder(model)
    if folder is None:
        return family_by_name(model.path)
    return family_in(folder) if (folder / "config.json").is_file() else None


def image_limits(config: Config) -> PixelLimits | None:
    """Limits of the config's model; None where neither a file nor a published name tells."""
    if config.model.path in EMBEDDED_MODELS:
        own = embedded_limits(FAMILIES[EMBEDDED_MODELS[config.model.path]])
    elif (folder := settings_folder(config.model)) is None:
        family = family_by_name(config.model.path)
        if family is None:
            return None
        own = family.limits
    else:
        try:
            facts = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
            size = facts.get("size") or {}
            low = facts.get("min_pixels") or size["shortest_edge"]
            high = facts.get("max_pixels") or size["longest_edge"]
            own = PixelLimits(low, high, facts["patch_size"] * facts["merge_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    data = config.data
    return PixelLimits(data.min_pixels or own.min_pixels, data.max_pixels or own.max_pixels, own.unit)


def require_image_limits(config: Config, folder: Path) -> PixelLimits:
    """Limits of the config's model, whose settings lie in ``folder``."""
    model = ModelConfig(path=str(folder))
    limits = image_limits(config.model_copy(update={"model": model}))
    if limits is None:
        where, fix = str(folder / "preprocessor_config.json"), "copy it from the model's origin"
        raise CheckpointError("pixel limits and patch size cannot be read", where, fix)
    return limits


def num_image_tokens(size: tuple[int, int], limits: PixelLimits) -> int:
    """Tokens of an image.

    Example:
        >>> num_image_tokens((640, 480), PixelLimits(3136, 12845056, 28))
        391
    """
    width, height = limits.resized(size)
    return width * height // limits.unit**2
