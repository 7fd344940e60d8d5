"""Answers that cannot leave their grammar: each token is the likeliest of those that continue a valid answer.

    likeliest token ─► allowed? ── yes ─► written
                          └─ no ─► the likeliest of all that are allowed: trie and grammar, walked together
                                   [{"bbox_2d": [1   ─►   0-9  ,  (not: 1, {, a)

The tokens that the grammar's bytes can spell stand in the trie, so a walk looks at the tokens that fit and
not at the 151,665 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from qwendet.answers.grammar import MARKS, AnswerGrammar, AnswerState

BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_CLOSING_TOKENS = 2  # the last bracket and the end of turn


Trie = dict[int | None, Any]
"""A node of the trie: where each further byte leads, and at ``None`` the tokens that end here."""


class AnswerVocabulary:
    """The tokens that an answer can be written with."""

    def __init__(self, tokenizer: Any, alphabet: frozenset[int]) -> None:
        special = set(tokenizer.get_added_vocab().values())
        marks = frozenset(b"".join(MARKS.values()))  # which tokens of these very bytes do not stand for
        self.end_id: int = tokenizer.eos_token_id
        self.bytes_of: dict[int, bytes] = {}
        self.trie: Trie = {}
        for word, token in tokenizer.get_vocab().items():
            text = MARKS.get(word, b"") if token in special else token_bytes(word)
            usable = alphabet if token in special else alphabet - marks
            if text and all(byte in usable for byte in text):
                self.bytes_of[token] = text
                node = self.trie
                for byte in text:
                    node = node.setdefault(byte, {})
                node.setdefault(None, []).append(token)

    def following(self, grammar: AnswerGrammar, state: AnswerState, most_boxes: int) -> list[int]:
        """Ids of the tokens that may follow, the end of turn among them where the answer can end."""
        allowed = [self.end_id] if grammar.may_end(state) else []
        open_nodes = [(self.trie, state)]
        while open_nodes:
            node, reached = open_nodes.pop()
            allowed += node.get(None, ())
            for byte, child in node.items():
                after = None if byte is None else grammar.step(reached, byte, most_boxes)
                if after is not None:
                    open_nodes.append((child, after))
        return allowed


class AnswerConstraint:
    """Tells which tokens keep each answer of a batch inside its grammar, of which there is one a row.

    An object is begun only if it can be finished within the tokens that are left, so every answer closes;
    ``max_new_tokens`` is at least 3, which ``[]`` may take.
    """

    def __init__(
        self,
        vocabulary: AnswerVocabulary,
        grammars: Sequence[AnswerGrammar],
        most_boxes: int,
        max_new_tokens: int,
    ) -> None:
        self.vocabulary = vocabulary
        self.grammars = grammars
        self.most_boxes = most_boxes
        self.states = [AnswerState() for _ in grammars]
        self._tokens_left = [max_new_tokens - 1 for _ in grammars]  # after the next one

    def allows(self, row: int, token: int) -> bool:
        """Whether a token may come next."""
        grammar, state = self.grammars[row], self.states[row]
        if token == self.vocabulary.end_id:
            return grammar.may_end(state)
        text = self.vocabulary.bytes_of.get(token)
        return text is not None and grammar.read(text, self._cap(row), state) is not None

    def allowed(self, row: int) -> list[int]:
        """All tokens that may come next."""
        return self.vocabulary.following(self.grammars[row], self.states[row], self._cap(row))

    def write(self, row: int, token: int) -> None:
        """Take note of the token that was chosen for a row."""
        text = self.vocabulary.bytes_of.get(token, b"")  # end and padding write nothing
        after = self.grammars[row].read(text, self.most_boxes, self.states[row])
        assert after is not None, "a token was chosen that the grammar had taken away"
        self.states[row] = after
        self._tokens_left[row] -= 1

    def _cap(self, row: int) -> int:
        """Most objects; those already begun where the rest of the tokens might not do for another."""
        grammar, begun = self.grammars[row], self.states[row].boxes
        could_finish = self._tokens_left[row] >= grammar.longest_object + _CLOSING_TOKENS
        return self.most_boxes if could_finish else min(self.most_boxes, begun)


def token_bytes(token: str | None) -> bytes:
    """Bytes of a vocabulary entry; special tokens are written out as they are.

    None stands for an id that the model has and the tokenizer lacks: published embeddings have spare rows.
    """
    if token is None:
        return b""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode("utf-8")
