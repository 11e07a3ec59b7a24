"""Runs that differ only in their seed: their histories as one history, and mean and band of what they have measured."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from blocks.arrays import Array
from blocks.history import History, Quantity

# A band shows the standard deviation from this number of seeds on. That of fewer seeds says little.
MIN_SEEDS = 5


def stack_histories(histories: Sequence[History]) -> History:
    """Return n histories of equal shapes as the lanes (n, ...) of one. Its quantities have no reasons."""
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
    """Return mean, lower end and upper end, each (...), of the values of n seeds.

    From 5 seeds on, the ends are mean - s and mean + s, with the standard deviation s^2 = sum (value - mean)^2 / (n - 1).
    With fewer seeds they are the smallest and the largest value.
    A value that is not finite is ignored. Where no value is finite, all three are nan.

    values: (n, ...).
    logarithmic: mean and ends are those of log(value), and are returned as exp of it. Values that are not above 0 are ignored.
    """
    values = np.asarray(values, np.float64)
    if logarithmic:
        values = np.log(np.where(values > 0, values, np.nan))
    finite_values = np.ma.masked_invalid(values)
    mean = finite_values.mean(axis=0)
    if len(values) < MIN_SEEDS:
        ends = mean, finite_values.min(axis=0), finite_values.max(axis=0)
    else:
        deviation = finite_values.std(axis=0, ddof=1)
        ends = mean, mean - deviation, mean + deviation
    mean, lower, upper = (np.ma.filled(end, np.nan) for end in ends)
    return (np.exp(mean), np.exp(lower), np.exp(upper)) if logarithmic else (mean, lower, upper)


def describe_band(counts: Iterable[int], logarithmic: bool = False) -> str:
    """Return in words what `band` shows. counts: the numbers of seeds with which it was called."""
    is_small = {n < MIN_SEEDS for n in counts}
    ends = "range" if all(is_small) else "standard deviation" + (f", range of fewer than {MIN_SEEDS}" if any(is_small) else "")
    return f"{'mean of the logarithm' if logarithmic else 'mean'}, band: {ends}"
