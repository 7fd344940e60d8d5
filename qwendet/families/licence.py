"""The licence of a base model, as its own folder says it, else its publisher."""

from __future__ import annotations

from pathlib import Path

import yaml

from qwendet.config.schema import EMBEDDED_MODELS
from qwendet.families.family import Family

APACHE = "Apache-2.0"
"""Of this package, so of the embedded models; of published ones where a family names no other."""
LONGEST = 80


def licence_of(path: str, folder: Path | None, family: Family) -> str:
    """The licence of a model in a few words; empty if nothing tells."""
    if path in EMBEDDED_MODELS:
        return APACHE
    own = "" if folder is None else _in_card(folder / "README.md") or _in_text(folder / "LICENSE")
    special = (licence for size, licence in family.licences.items() if f"-{size}" in path)
    return own or (next(special, APACHE) if path.startswith("Qwen/") else "")


def _in_card(card: Path) -> str:
    """``license_name`` or ``license`` of a model card's front matter."""
    front = _text_of(card).partition("\n---")[0]
    try:
        facts = yaml.safe_load(front) if front.startswith("---") else None
    except yaml.YAMLError:
        return ""
    found = (facts.get("license_name") or facts.get("license")) if isinstance(facts, dict) else None
    return _in_words(found) if isinstance(found, str) else ""


def _in_text(file: Path) -> str:
    """The heading of a licence: its first line that is not empty."""
    return next(filter(None, map(_in_words, _text_of(file).splitlines())), "")


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _in_words(text: str) -> str:
    """On one line, without what a terminal or a comment could not hold."""
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))[:LONGEST]
