"""A line with a band around it, for runs that differ only in their seed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from blocks.arrays import Array
from experiments.run.repeats import band


def plot_band(axes: Axes, x: Any, values: Array, label: str, *, logarithmic: bool, **style: Any) -> None:
    """Draw the mean over n seeds as a line, and around it the band that `experiments.run.repeats.band` returns.

    A single seed has no band: the line is drawn through its values.

    x: (points,). values: (n, points), nan where a seed has no value.
    label: the line's text in the legend, to which n is added for several seeds.
    logarithmic: whether mean and band are those of log(values).
    style: matplotlib's properties of the line. One of them must be `color`, which the band has too.
    """
    line = values[0]
    if len(values) > 1:
        line, lower, upper = band(values, logarithmic)
        label = f"{label}, n = {format_range(np.isfinite(values).sum(axis=0))}"
        axes.fill_between(x, lower, upper, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, line, label=label, **style)


def format_range(counts: Array) -> str:
    """Return `5` where all counts are 5, and `3 to 5` where the smallest is 3 and the largest 5."""
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
