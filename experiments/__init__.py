"""Experiments on how deep a network trains: what a user types or imports is at this folder's top."""

from experiments.run.machine import start_portable

# Before any other import: NumPy's.
start_portable()
