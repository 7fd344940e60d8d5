"""Checks that prove, before GPU hours are spent, that what will be trained is what is meant.

Files:

    result.py   what a check says          samples.py  rules that every sample is held against
    config.py   the checks of validate-config, and the runner
"""
