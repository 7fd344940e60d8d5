"""The config: its fields, how a file becomes one, and what is said of mistakes in it."""
