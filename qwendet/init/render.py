"""Settings as YAML, with a comment on each line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from qwendet.config.schema import Config
from qwendet.init.values import Setting, Settings

HEADER = "# Every other setting has its default; `qwendet validate-config` says what is wrong here.\n"


def render(sections: Mapping[str, Settings]) -> str:
    """Write settings as YAML; a comment is the setting's own, else the field's description.

    Example:
        >>> print(render({"model": {"path": Setting("tiny", "no download")}}).splitlines()[2])
          path: tiny  # no download
    """
    lines = []
    for section, settings in sections.items():
        fields = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        pairs: list[tuple[str, str]] = []
        for key, setting in settings.items():
            described = " ".join((fields[key].description or "").replace("`", "").split())
            comment = setting.comment or described
            pairs += _lines(key, setting, comment)
        width = max(len(text) for text, _ in pairs)
        lines += [f"{section}:", *(f"{text:<{width}}  # {comment}" for text, comment in pairs)]
    return HEADER + "\n".join(lines) + "\n"


def _lines(key: str, setting: Setting, comment: str) -> list[tuple[str, str]]:
    if not setting.notes:
        return [(f"  {key}: {_as_yaml(setting.value)}", comment)]
    entries = zip(setting.value, setting.notes, strict=True)
    return [(f"  {key}:", comment), *((f"    - {_as_yaml(entry)}", note) for entry, note in entries)]


def _as_yaml(value: Any) -> str:
    """A value that YAML reads back as it is.

    Example:
        >>> _as_yaml("a: b"), _as_yaml(1e-5), _as_yaml(None)
        ("'a: b'", '1.0e-05', 'null')
    """
    dumped: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=2**31)
    return dumped.strip()[1:-1]
