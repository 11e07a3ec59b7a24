"""A map of which values train: frames of tiles. Used by `experiments.trainability`; it may not import commands or pictures."""
