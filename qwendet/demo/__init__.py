"""The embedded model, and the generated shapes that it learns."""
