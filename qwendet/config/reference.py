"""The config reference as Markdown, generated from the fields."""

from __future__ import annotations

import re
from typing import Any

from pydantic.fields import FieldInfo

from qwendet.config.schema import Config, inner_section
from qwendet.config.section import Section

HEADER = """\
# Configuration

Generated from the fields of [`qwendet/config/schema.py`](../qwendet/config/schema.py):
`python -m qwendet.config.reference > docs/configuration.md`.

A config is YAML with the sections below; what it leaves out has its default. Paths are relative to the
file. Every command that takes a config takes `--set key=value`, and a bare name such as `base_flat_v2`
means `examples/base_flat_v2.yaml`. An unknown key is an error that names the nearest known one.
"""
KINDS = {
    "string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`",
    "object": "pairs of texts",
}  # fmt: skip


def render_reference() -> str:
    """All sections with keys, values, defaults and meanings."""
    return "\n".join([HEADER, *(_section(name, field) for name, field in Config.model_fields.items())])


def _section(name: str, field: FieldInfo) -> str:
    section = inner_section(field)
    assert section is not None
    rows = _rows(name, section)
    heads = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## `{name}`", "", _one_line(section.__doc__), "", *heads, *rows, ""])


def _rows(name: str, section: type[Section]) -> list[str]:
    """A row for each key, and below it those of the section that it holds."""
    rows = []
    schemas = section.model_json_schema()["properties"]
    for key, field in section.model_fields.items():
        meaning, value = _one_line(field.description), _value(schemas[key])
        rows.append(f"| `{name}.{key}` | {value} | `{_default(field)}` | {meaning} |")
        inner = inner_section(field)
        rows += _rows(f"{name}.{key}", inner) if inner is not None else []
    return rows


def _one_line(text: str | None) -> str:
    """Docstring markup as Markdown, on one line: a line break would end a table."""
    line = " ".join((text or "").split()).replace("``", "`")
    return re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", line)


def _value(schema: dict[str, Any]) -> str:
    """What a key may hold, from its JSON schema.

    Example:
        >>> _value({"type": "integer", "minimum": 1}), _value({"enum": ["head", "text"], "type": "string"})
        ('whole number ≥ 1', '`head`, `text`')
        >>> _value({"type": "array", "items": {"enum": ["tensorboard", "wandb"]}})
        'list of `tensorboard`, `wandb`'
    """
    if either := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_value, either))
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "null":
        return "`null`"
    if schema["type"] == "array":
        items = schema["items"]
        kind = "sections" if "$ref" in items else "texts"
        return f"list of {_value(items) if 'enum' in items else kind}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:.10g}" for name, sign in signs.items() if name in schema]
    return " ".join([KINDS[schema["type"]], ", ".join(limits)]).strip()


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    import sys

    sys.stdout.write(render_reference())
