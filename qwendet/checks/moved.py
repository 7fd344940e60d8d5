"""Ids of checks that are tests of the project now: nothing that a user has can make them fail."""

from __future__ import annotations

_MOVED = {
    "loss": (
        *("padding", "prompt", "image", "backward", "formula", "detection", "weights"),
        *("accumulation", "empty", "nan"),
    ),
    "consistency.build": ("classes", "settings", "parameters", "dtypes", "tied"),
    "consistency.prompt": ("prefix", "template", "tokenizer", "labels", "loader"),
    "consistency.images": ("same", "answers", "targets", "text_boxes", "head_boxes"),
    "consistency.compute": ("positions", "padding", "causal", "packed"),
    "consistency.head": ("answer", "mates", "order", "cells", "labels", "scores"),
}
MOVED = frozenset(f"{group}.{name}" for group, names in _MOVED.items() for name in names)
