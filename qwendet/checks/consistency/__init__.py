"""``consistency.*``: the model that is trained is the model that is served.

suite.py    every check and its id             pair.py       both builds, after an update
prompt.py   what is sent before the answer     runs.py       the few runs that the checks share
images.py   how images are made                noise.py      how far apart equal computations come out
compute.py  served and trained, attention
checkpoint.py   a directory of files against what the config would build
"""
