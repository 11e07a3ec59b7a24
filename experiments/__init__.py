"""Experiments on how deep a network trains: what a user types or imports is at this folder's top."""
