"""Labels that a person reads as one and a model as two: case, blanks, dots, unicode forms."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from qwendet.data.characters import WITHOUT_JOINERS

# Cyrillic and Greek letters that look like a Latin one; after case folding.
FOREIGN_LETTERS = str.maketrans("аеорсухіјѕԁһαορτυχν", "aeopcyxijsdhaoptuxv")
BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_\-‐‑–—]+(?=\w)")


def normalised_label(label: str) -> str:
    """What a person reads: two labels with the same reading are one.

    A single character stands for itself, as where letters are what is detected.

    Example:
        >>> (
        ...     normalised_label("Red  Cell."),
        ...     normalised_label("red_cell"),
        ...     normalised_label("C++"),
        ...     normalised_label("A"),
        ... )
        ('red cell', 'red cell', 'c++', 'A')
    """
    if len(label) == 1:
        return label
    text = unicodedata.normalize("NFKC", label).casefold().translate(WITHOUT_JOINERS)
    text = BETWEEN_WORDS.sub(" ", " ".join(text.split()))
    text = text.rstrip(" .,;:!。") or text
    is_latin = any(letter.isascii() and letter.isalpha() for letter in text)
    return text.translate(FOREIGN_LETTERS) if is_latin else text


def nearest_lookalike(label: str, others: Iterable[str]) -> str | None:
    """The other label that reads the same, if there is one."""
    wanted = normalised_label(label)
    return next((other for other in others if other != label and normalised_label(other) == wanted), None)


def lookalikes(labels: Iterable[str]) -> list[list[str]]:
    """Groups of two and more labels that read the same, in the order given."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(normalised_label(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]
