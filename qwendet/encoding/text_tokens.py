"""How many tokens a text becomes, without transformers and without a download.

Where the model's ``tokenizer.json`` lies at hand, it counts. Else the text is cut as the published tokenizers
cut it, and each piece is estimated; a test holds the estimate against the published tokenizer of each family.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

CountTokens = Callable[[str], int]

_TOKEN = re.compile(
    r"<\|\w+\|>|[A-Za-z]{1,3}|[^\W\d_]|\d|\n|[ \t]+(?=\d)|(?:(?!<\|\w+\|>)(?:[^\w\s]|_)){1,2}"
)


def token_counter(folder: Path | None) -> tuple[CountTokens, bool]:
    """What counts the tokens of a text, and whether it is the model's own tokenizer and not an estimate.

    ``folder`` is that of the model's settings, if it is on this disk.
    """
    if folder is None or not (folder / "tokenizer.json").is_file():
        return estimate_tokens, False
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), True


def estimate_tokens(text: str) -> int:
    """Tokens of a text for the published tokenizers, by its length: a few too many rather than too few.

    A digit is a token of its own, as is a blank before it; a word of the alphabet has one for every three
    letters, other scripts one for every letter, signs one for every two.

    Example:
        >>> estimate_tokens("red circle"), estimate_tokens('"bbox_2d": [1, 20]')
        (3, 14)
    """
    return len(_TOKEN.findall(text))
