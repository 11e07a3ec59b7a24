"""Hydra plugins. Every Hydra application here imports this package at its start: nothing heavy at the top."""
