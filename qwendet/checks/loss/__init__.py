"""``loss.*``: what is back-propagated is what is meant, on the config's own model and first samples.

tokens.py     losses of single tokens          optimizer.py  what is trained, and what a step can change
gradients.py  which term trains which part     overfit.py    a few real steps
"""
