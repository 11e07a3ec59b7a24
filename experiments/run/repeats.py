"""Runs that differ in their seed alone: their histories as one, and the mean and the band of what they have measured."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from blocks.arrays import Array
from blocks.history import History, Quantity

# Of fewer seeds a standard deviation says little.
ENOUGH = 5


def stacked(histories: Sequence[History]) -> History:
    """Histories of equal shapes as the lanes (n, ...) of one; of their quantities without the reasons."""
    first = histories[0]
    return replace(
        first,
        loss=np.stack([history.loss for history in histories]),
        grad_norm=np.stack([history.grad_norm for history in histories]),
        grad_norm_b=np.stack([history.grad_norm_b for history in histories]),
        measures={name: np.stack([history.measures[name] for history in histories]) for name in first.measures},
        quantities={
            name: Quantity(quantity.at, np.stack([history.quantities[name].values for history in histories]))
            for name, quantity in first.quantities.items()
        },
        diverged_step=np.stack([history.diverged_step for history in histories]),
        diverged_block=np.stack([history.diverged_block for history in histories]),
    )


def band(values: Array, logarithmic: bool = False) -> tuple[Array, Array, Array]:
    """Mean, lower and upper end (...) of (n, ...) values of n seeds.

    The ends are the smallest and the largest value; of 5 seeds and more mean - s and mean + s, with the standard deviation
    s^2 = sum (value - mean)^2 / (n - 1).
    A value that is not finite is left out; where none is left, there is nan.

    logarithmic: mean and s are those of the logarithm, of values above 0, and all three are powers of it again.
    """
    values = np.asarray(values, np.float64)
    if logarithmic:
        values = np.log(np.where(values > 0, values, np.nan))
    seen = np.ma.masked_invalid(values)
    mean = seen.mean(axis=0)
    if len(values) < ENOUGH:
        ends = mean, seen.min(axis=0), seen.max(axis=0)
    else:
        deviation = seen.std(axis=0, ddof=1)
        ends = mean, mean - deviation, mean + deviation
    mean, lower, upper = (np.ma.filled(end, np.nan) for end in ends)
    return (np.exp(mean), np.exp(lower), np.exp(upper)) if logarithmic else (mean, lower, upper)


def name_of_band(counts: Iterable[int], logarithmic: bool = False) -> str:
    """What `band` gives of so many seeds each, in words."""
    few = {n < ENOUGH for n in counts}
    ends = "range" if all(few) else "standard deviation" + (f", range of fewer than {ENOUGH}" if any(few) else "")
    return f"{'mean of the logarithm' if logarithmic else 'mean'}, band: {ends}"
