"""Checks that prove, before GPU hours are spent, that what will be trained is what is meant.

A check is a function that returns what it saw and what is wrong; its id begins with the folder it is in:

    config/       config.*       settings and data, without a model                validate-config
    loss/         loss.*         what is back-propagated is what is meant          validate-loss
    consistency/  consistency.*  the model that is trained is the one served       check-consistency
    served/       served.*       a running server answers as the checkpoint does   check-served

    result.py     what a check says                subject.py    the training build and a few samples
    runner.py     runs a check, come what may      shortened.py  a few layers of a large model
    suites.py     the checks of a model            ids.py        every check and its function
    preflight.py  all of them: validate
"""
