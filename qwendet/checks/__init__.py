"""Checks that prove, before GPU hours are spent, that what will be trained is what is meant.

Files:

    result.py   what a check says             samples.py    rules that every turn of a sample is held against
    runner.py   runs a check, come what may   scan.py       the pass over sample files, by worker processes
    summary.py  the data in figures           survey.py     samples, labels and settings together
    settings.py settings and the machine      overlap.py    images where they must not be
    frames.py   boxes that are no pixels      lookalikes.py labels that a person reads as one
    census.py   what that pass saw            config.py     all of them: validate-config
    tokens.py   tokens against the limits
    subject.py  both builds, a few samples    loss_*.py     checks of the loss
    step.py     the trainer's step, watched   loss.py       all of them: validate-loss
"""
