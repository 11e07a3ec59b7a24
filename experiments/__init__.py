"""Experiments on how deep a network trains: what a user types or imports is at this folder's top."""

from experiments.run.machine import begin

# Before any other import: NumPy's.
begin()
