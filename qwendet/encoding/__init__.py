"""Samples as tensors: prompts, tokens, pixels, boxes, batches."""
