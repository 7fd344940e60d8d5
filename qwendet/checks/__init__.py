"""Checks that prove, before GPU hours are spent, that what will be trained is what is meant.

Files:

    result.py   what a check says             samples.py    rules that every sample is held against
    runner.py   runs a check, come what may   settings.py   checks of the config as a whole
                                              config.py     all of them: validate-config
    subject.py  both builds, a few samples    loss_*.py     checks of the loss
    step.py     the trainer's step, watched   loss.py       all of them: validate-loss
"""
