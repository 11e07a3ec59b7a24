"""What is measured beside a training: gradient checks, instruments, the curvature. Nothing here changes a bit of a network.

It may import all of the engine but the estimators.
"""
