"""Learning-rate schedules: a table name -> the factor on the learning rate at an update; and the warm-up ahead of them."""

from collections.abc import Callable

import numpy as np

from blocks.arrays import check_number, choice

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
    """min(1, (t + 1) / T_w) over the first tenth of the run, T_w = ceil(T / 10) (Goyal et al. 2017), of 0.4.0's records."""
    return min(1.0, (step + 1) / -(-steps // 10))


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (constant, inverse_scaling, cosine, linear_warm_up)}


def rate_schedule(name: str, warmup: float, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at update t = 0 ... T - 1, T = steps: a linear warm-up, then the schedule of that name.

        (t + 1) / T_w  for t < T_w (Goyal et al. 2017),        schedule(t - T_w, T - T_w)  from there on

    warmup: T_w, rounded; below 1 a share of T. 0 is no warm-up.
    Raises ValueError for a warm-up below 0 or longer than T, and for an unknown name, with the list of names.
    """
    schedule = choice("schedule", name, SCHEDULES)
    check_number("warmup", warmup, at_least=0)
    length = round(warmup * steps if warmup < 1 else warmup)
    if length > steps:
        raise ValueError(f"warmup is {warmup:g}, it must be at most {steps}, the updates of the training")
    return lambda step: (step + 1) / length if step < length else schedule(step - length, steps - length)
