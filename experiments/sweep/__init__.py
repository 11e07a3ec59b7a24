"""A sweep, from its jobs to its record: checks -> jobs -> training -> record -> summary.

It may import everything in `experiments/` but the commands.
"""
