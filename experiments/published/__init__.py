"""Results of the field beside this engine's: sections of `python -m experiments.verify`, which alone may import them."""
