"""The learning-rate schedules, which return the factor on the learning rate at an update, and the warm-up before them."""

from collections.abc import Callable

import numpy as np

from blocks.arrays import check_number, choice

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """Return 1."""
    return 1.0


def inverse_scaling(step: int, steps: int) -> float:
    """1 / sqrt(t + 1), where t = step is the number of updates so far (Robbins and Monro 1951).

    scikit-learn's `invscaling` has this form for its power_t of 1/2. But its t counts examples, and its rate changes only at
    the end of an epoch.
    """
    return 1 / (step + 1) ** 0.5


def cosine(step: int, steps: int) -> float:
    """(1 + cos(pi t / T)) / 2, where t = step and T = steps (Loshchilov and Hutter 2017, without restarts)."""
    return (1 + np.cos(np.pi * step / steps)) / 2


def linear_warm_up(step: int, steps: int) -> float:
    """min(1, (t + 1) / T_w), where T_w = ceil(T / 10) (Goyal et al. 2017). It is kept for the records of version 0.4.0."""
    return min(1.0, (step + 1) / -(-steps // 10))


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (constant, inverse_scaling, cosine, linear_warm_up)}


def rate_schedule(name: str, warmup: float, steps: int) -> Callable[[int], float]:
    """Return the function of t = 0 ... T - 1 that gives the factor on the learning rate at update t, where T = steps:

        (t + 1) / T_w  for t < T_w (Goyal et al. 2017),        schedule(t - T_w, T - T_w)  for t >= T_w

    name: of the schedule that follows the linear warm-up.
    warmup: T_w, rounded; below 1 it is a share of T. 0 is no warm-up.
    Raises ValueError for a warm-up below 0 or longer than T, and for an unknown name.
    """
    schedule = choice("schedule", name, SCHEDULES)
    check_number("warmup", warmup, at_least=0)
    length = round(warmup * steps if warmup < 1 else warmup)
    if length > steps:
        raise ValueError(f"warmup is {warmup:g}, it must be at most {steps}, the updates of the training")
    return lambda step: (step + 1) / length if step < length else schedule(step - length, steps - length)
