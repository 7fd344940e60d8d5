"""``loss.*``: what is back-propagated is what is meant, on the config's own model and first samples.

suite.py      every check and its id           optimizer.py  what is trained, at which rate
tokens.py     losses of single tokens          moves.py      what a step at that rate can change
gradients.py  which term trains which part     overfit.py    a few real steps
"""
