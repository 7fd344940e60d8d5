"""What is wrong with a config, in words: where it stands, what was expected and got, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from qwendet.config.old_keys import REMOVED, RENAMED
from qwendet.config.schema import Config, inner_section, item_section
from qwendet.config.section import Section
from qwendet.errors import Problem

KeyPath = tuple[str, ...]

EXPECTED = {
    "bool_type": "true or false",
    "int_from_float": "a whole number",
    "tuple_type": "a list",
    "model_type": "a section with keys of its own",
}
"""What pydantic's types of errors ask for; the others say it well enough themselves."""
FORMS = ("one", "many", "preset", "steps")
"""Tags of values that may have either of two forms: no part of a key."""


@dataclass(frozen=True)
class Places:
    """Where the values of a config came from.

    Attributes:
        overridden: key paths that ``--set`` gave.
    """

    source: str
    lines: Mapping[KeyPath, int]
    overridden: Collection[KeyPath] = frozenset()

    def of(self, path: KeyPath) -> str:
        """File, line and key; or the ``--set`` that gave the value."""
        key = ".".join(path)
        if any(path[: len(given)] == given for given in self.overridden):
            return f"--set {key}"
        line = next(
            (self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None
        )
        return ": ".join(part for part in (f"{self.source}:{line}" if line else self.source, key) if part)


def explain(detail: Any, places: Places) -> Problem:
    """One of pydantic's errors as a problem that a user can fix."""
    path = tuple(str(part) for part in detail["loc"] if part not in FORMS)
    where, value, kind = places.of(path), detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return Problem("unknown key", where, _fix_for_unknown(path))
    if kind == "missing":
        return Problem("this key must be given", where, "add it")
    if kind == "value_error":
        what, _, fix = str(detail["ctx"]["error"]).partition("; ")
        return Problem(what, where, fix)
    return Problem(
        f"expected {_expected(detail)}, got {_as_written(value)}", where, _fix_for_value(path, kind, value)
    )


def _expected(detail: Any) -> str:
    said = (detail["msg"][:1].lower() + detail["msg"][1:]).removeprefix("input should be ")
    said = f"a number {said}" if said.startswith(("greater", "less")) else said
    return EXPECTED.get(detail["type"], said)


def _as_written(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _fix_for_value(path: KeyPath, kind: str, value: Any) -> str:
    if kind == "model_type" and (section := _section(path)):
        return f"known here: {', '.join(sorted(section.model_fields))}"
    field = _field(path)
    if field is None:
        return ""
    if kind == "tuple_type" and isinstance(value, str):
        return f"write [{value}]"
    if kind == "literal_error" and isinstance(value, str):
        choices = [str(choice) for choice in getattr(field.annotation, "__args__", ())]
        close = difflib.get_close_matches(value, choices, n=1, cutoff=0.7)
        if close:
            return f"did you mean {close[0]}?"
    default = field.default
    shown = f"{default:.1e}" if isinstance(default, float) and 0 < default < 1e-2 else _as_written(default)
    return f"the default is {shown}" if default is None or isinstance(default, str | int | float) else ""


def _field(path: KeyPath) -> FieldInfo | None:
    """The field of a key path; None if there is none."""
    section = _section(path[:-1])
    return None if section is None else section.model_fields.get(path[-1])


def _section(path: KeyPath) -> type[Section] | None:
    """The section at a key path, or that of a list's item; None if there is none."""
    section: type[Section] | None = Config
    for part in path:
        if section is None or part.isdecimal():
            continue
        field = section.model_fields.get(part)
        section = field and (inner_section(field) or item_section(field.annotation))
    return section


def _fix_for_unknown(path: KeyPath) -> str:
    key = path[-1]
    if key == "padding_side":
        return "remove it: padding is always left, because Flash Attention and generation need it so"
    known = known_keys()
    is_flat = len(path) == 1
    new_name = RENAMED.get(key)
    if new_name is None and is_flat:
        new_name = next((name for name in known if name.split(".")[-1] == key), None)
    origin = "this is a key of the old flat file; " if is_flat else ""
    if new_name is not None:
        return f"{origin}it is now {new_name}"
    if key in REMOVED:
        return f"{origin}{REMOVED[key]}"
    section = _section(path[:-1])
    names = section.model_fields if section else {}
    siblings = {name: ".".join([*path[:-1], name]) for name in names}
    close = [siblings[name] for name in difflib.get_close_matches(key, names, n=1, cutoff=0.5)]
    if not close:
        close = [name for name in known if name.split(".")[-1] == key]
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(siblings.values()))}"


def known_keys() -> list[str]:
    """Every dotted key of the config, sections included."""
    return _keys_of(Config)


def _keys_of(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = inner_section(field)
        if inner is not None:
            keys += _keys_of(inner, f"{prefix}{name}.")
    return keys
