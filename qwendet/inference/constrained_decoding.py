"""Answers that cannot leave their grammar: at each step only tokens that continue a valid answer are left.

The tokens that the grammar's bytes can spell stand in a trie. What may follow is found by walking trie and
grammar together, so a step looks at the tokens that fit and not at the 151,665 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from qwendet.answers.grammar import MARKS, AnswerGrammar, AnswerState

BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_CLOSING_TOKENS = 2  # the last bracket and the end of turn


@dataclass(slots=True)
class TokenTrie:
    """A node of the trie: the tokens that end here, and where each further byte leads."""

    ids: list[int] = field(default_factory=list)
    children: dict[int, TokenTrie] = field(default_factory=dict)

    def add(self, text: bytes, token: int) -> None:
        """Add a token that spells ``text``."""
        node = self
        for byte in text:
            node = node.children.setdefault(byte, TokenTrie())
        node.ids.append(token)


class AnswerVocabulary:
    """The tokens that an answer can be written with.

    Args:
        tokenizer: a byte-level tokenizer.
        alphabet: the bytes that answers can hold; tokens with any other are left out.
    """

    def __init__(self, tokenizer: Any, alphabet: frozenset[int]) -> None:
        special = set(tokenizer.get_added_vocab().values())
        marks = frozenset(b"".join(MARKS.values()))  # which tokens of these very bytes do not stand for
        self.end_id: int = tokenizer.eos_token_id
        self.bytes_of: dict[int, bytes] = {}
        self.trie = TokenTrie()
        for word, token in tokenizer.get_vocab().items():
            text = MARKS.get(word, b"") if token in special else token_bytes(word)
            usable = alphabet if token in special else alphabet - marks
            if text and all(byte in usable for byte in text):
                self.bytes_of[token] = text
                self.trie.add(text, token)

    def following(self, grammar: AnswerGrammar, state: AnswerState, most_boxes: int) -> list[int]:
        """Ids of the tokens that may follow, the end of turn among them where the answer can end."""
        allowed = [self.end_id] if grammar.may_end(state) else []
        open_nodes = [(self.trie, state)]
        while open_nodes:
            node, reached = open_nodes.pop()
            allowed += node.ids
            for byte, child in node.children.items():
                after = grammar.step(reached, byte, most_boxes)
                if after is not None:
                    open_nodes.append((child, after))
        return allowed


class AnswerConstraint:
    """Takes from each row of a batch the tokens that would leave the grammar.

    An object is begun only if it can be finished within the tokens that are left, so every answer closes.

    Args:
        vocabulary: the tokens.
        grammars: one a row.
        most_boxes: most objects of an answer.
        max_new_tokens: most tokens of an answer; at least 3, which ``[]`` may take.
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
        self.tokens_left = max_new_tokens
        self.states = [AnswerState() for _ in grammars]

    def __call__(self, rows: Sequence[int], scores: Tensor) -> Tensor:
        """Set ``(len(rows), V)`` scores to minus infinity where a token must not be chosen."""
        self.tokens_left -= 1  # after this one
        constrained = torch.full_like(scores, -torch.inf)
        for index, row in enumerate(rows):
            grammar, state = self.grammars[row], self.states[row]
            ids = self.vocabulary.following(grammar, state, self._cap(grammar, state))
            constrained[index, ids] = scores[index, ids]
        return constrained

    def write(self, row: int, token: int) -> None:
        """Take note of the token that was chosen for a row."""
        for byte in self.vocabulary.bytes_of.get(token, b""):  # end and padding write nothing
            after = self.grammars[row].step(self.states[row], byte, self.most_boxes)
            assert after is not None, "a token was chosen that the grammar had taken away"
            self.states[row] = after

    def _cap(self, grammar: AnswerGrammar, state: AnswerState) -> int:
        """Most objects; those already begun where the rest of the tokens might not do for another."""
        could_finish = self.tokens_left >= grammar.longest_object + _CLOSING_TOKENS
        return self.most_boxes if could_finish else min(self.most_boxes, state.boxes)


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
