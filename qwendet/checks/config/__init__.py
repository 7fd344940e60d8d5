"""``config.*``: config and data checked without a model, in seconds.

suite.py     every check and its id            samples.py     rules that every turn is held against
scan.py      the pass over sample files        dataset.py     samples, labels and settings together
stats.py     what that pass saw                overlap.py     images where they must not be
settings.py  settings and the machine          frames.py      boxes that are no pixels
memory.py    does a training step fit?         lookalikes.py  labels that a person reads as one
tokens.py    tokens against the limits         summary.py, plots.py   the data in figures and pictures
"""
