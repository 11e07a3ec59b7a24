"""Networks of two blocks without biases, by the thousand, for maps of which learning rates train.

It may import the engine's nouns and the tape, not the training.
"""

from blocks.shallow.cycles import shallow_losses

__all__ = ["shallow_losses"]
