"""Published results of the field with this engine's: the sections of `python -m experiments.verify`.

Only `experiments.verify` and tests may import this package, and it may not import commands.
"""
