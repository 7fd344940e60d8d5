"""``consistency.*``: the model that is trained is the model that is served.

suite.py    every check and its id             pair.py       both builds, after an update
build.py    one model, of the same weights     runs.py       the few runs that the checks share
prompt.py   what is sent before the answer     noise.py      how far apart equal computations come out
images.py   how images are made                compute.py    served and trained, attention
checkpoint.py   a directory of files against what the config would build
"""
