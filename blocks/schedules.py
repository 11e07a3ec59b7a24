"""Learning-rate schedules: a table name -> the factor on the learning rate at an update."""

from collections.abc import Callable

import numpy as np

from blocks.arrays import choice

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """1"""
    return 1.0


def inverse_scaling(step: int, steps: int) -> float:
    """1 / sqrt(t + 1), t = step, the updates made (Robbins and Monro 1951).

    scikit-learn's `invscaling` has this form at its power_t of 1/2, but its t counts the examples seen, and its rate changes
    at the end of an epoch.
    """
    return 1 / (step + 1) ** 0.5


def cosine(step: int, steps: int) -> float:
    """(1 + cos(pi t / T)) / 2, t = step, T = steps (Loshchilov and Hutter 2017, no restarts)"""
    return (1 + np.cos(np.pi * step / steps)) / 2


def linear_warm_up(step: int, steps: int) -> float:
    """min(1, (t + 1) / T_w) over the first tenth of the run, T_w = ceil(T / 10) (Goyal et al. 2017)"""
    return min(1.0, (step + 1) / -(-steps // 10))


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (constant, inverse_scaling, cosine, linear_warm_up)}


def schedule_named(name: str) -> Schedule:
    """The schedule of that name, `factor(step, steps)` with step from 0; raises ValueError with the list of names."""
    return choice("schedule", name, SCHEDULES)
