"""How many tokens a text becomes, without transformers and without a download.

Where the model's ``tokenizer.json`` lies at hand, it counts. Else the text is cut as the published Qwen2.5
tokenizers cut it, and each piece is estimated; a test holds the estimate against the published tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from qwendet.config.schema import EMBEDDED_MODELS
from qwendet.encoding.image_tokens import TINY_ASSETS

CountTokens = Callable[[str], int]

_PIECE = re.compile(r"<\|\w+\|>|(?P<letters>[^\W\d_]+)|\d|\n|(?P<blank>[ \t]+)|(?P<signs>(?:[^\w\s]|_)+)")
_LETTERS_PER_TOKEN = 3
_SIGNS_PER_TOKEN = 2


def token_counter(model_path: str) -> tuple[CountTokens, bool]:
    """What counts the tokens of a text for ``model.path``.

    Returns:
        The counter, and whether it is the model's own tokenizer and not an estimate.
    """
    folder = TINY_ASSETS if model_path in EMBEDDED_MODELS else Path(model_path)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return estimate_tokens, False
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), True


def estimate_tokens(text: str) -> int:
    """Tokens of a text for the published tokenizers, by its length: a few too many rather than too few.

    A digit is a token of its own, as is a blank before it; a word of the alphabet has one for every three
    letters, other scripts one for every letter, signs one for every two.

    Example:
        >>> estimate_tokens("red circle"), estimate_tokens('"bbox_2d": [1, 20]')
        (3, 14)
    """
    total = 0
    for match in _PIECE.finditer(text):
        piece = match.group()
        if match["letters"]:
            total += -(-len(piece) // _LETTERS_PER_TOKEN) if piece.isascii() else len(piece)
        elif match["signs"]:
            total += -(-len(piece) // _SIGNS_PER_TOKEN)
        elif match["blank"]:  # before a word or a sign, it is part of that token
            total += text[match.end() : match.end() + 1].isdigit()
        else:
            total += 1
    return total
