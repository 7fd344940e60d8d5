"""``consistency.*``: the model that is trained is the model that is served.

inputs.py   chat format, special tokens, images   pair.py   both builds, after an update
compute.py  served and trained, attention         noise.py  runs, and how far apart equal ones come out
checkpoint.py  a directory of files against the config
"""
