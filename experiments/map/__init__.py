"""The frames of a trainability map, each of tiles of networks. `experiments.trainability` uses them.

It may import record and run, and nothing of pictures, sweep or the commands.
"""
