"""``loss.*``: what is back-propagated is what is meant, on the config's own model and first samples.

suite.py      every check and its id           watched.py    what the checks look at, made once
tokens.py     labels and their losses          step.py       the trainer's step, watched
backward.py   what token losses send back      formula.py    the loss computed a second time
terms.py      terms, weights, derivatives      published.py  the transformers class's own answer
gradients.py  which term trains which part     optimizer.py  what is trained, at which rate
sharing.py    micro-batches                    overfit.py, nan.py   a few real steps
prompt.py     request and answers              image.py      the head looks at the student's image
"""
