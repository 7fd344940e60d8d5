"""The config reference as Markdown, generated from the fields."""

from __future__ import annotations

from pydantic.fields import FieldInfo

from qwendet.config import Config, Section, inner_section

HEADER = """\
# Configuration

Generated from the fields of `qwendet/config.py`:
`python -m qwendet.config_reference > docs/configuration.md`.

A config is YAML with the sections below; what it leaves out has its default. Paths are relative to the
file. Every command that takes a config takes `--set key=value`, and a bare name such as `base_flat_v2`
means `examples/base_flat_v2.yaml`. An unknown key is an error that names the nearest known one.
"""


def render_reference() -> str:
    """All sections with keys, defaults and meanings."""
    return "\n".join([HEADER, *(_section(name, field) for name, field in Config.model_fields.items())])


def _section(name: str, field: FieldInfo) -> str:
    section = inner_section(field)
    assert section is not None
    summary = (section.__doc__ or "").strip()
    rows = _rows(name, section)
    return "\n".join(
        [f"## `{name}`", "", summary, "", "| key | default | meaning |", "|---|---|---|", *rows, ""]
    )


def _rows(name: str, section: type[Section]) -> list[str]:
    """A row for each key, and below it those of the section that it holds."""
    rows = []
    for key, field in section.model_fields.items():
        rows.append(f"| `{name}.{key}` | `{_default(field)}` | {field.description} |")
        inner = inner_section(field)
        rows += _rows(f"{name}.{key}", inner) if inner is not None else []
    return rows


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
