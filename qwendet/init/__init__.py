"""``init``: a new project, whose settings are computed from its data.

project.py    data generated, converted or found where it lies; the config written last
facts.py      what the samples hold: labels, sizes of boxes and images, tokens
values.py     from these numbers to settings, each with the words that tell where it comes from
render.py     settings as YAML with a comment on each line
"""
