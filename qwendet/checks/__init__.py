"""Checks that prove, before GPU hours are spent, that what will be trained is what is meant.

A check is a function that returns what it saw and what is wrong; its id begins with the folder it is in:

    config/       config.*       settings and data, without a model                validate-config
    loss/         loss.*         what is back-propagated is what is meant          validate-loss
    consistency/  consistency.*  the model that is trained is the one served       check-consistency
    served/       served.*       a running server answers as the checkpoint does   check-served

    runner.py     what a check says; runs it, come what may    subject.py    training build, a few samples
    preflight.py  all of them, and those of each kind          shortened.py  a few layers of a large model
    ids.py        every check and its function
"""
