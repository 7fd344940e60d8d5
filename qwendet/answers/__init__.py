"""Boxes as answer text, and answer text as boxes."""
