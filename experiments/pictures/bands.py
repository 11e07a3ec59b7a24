"""A line with a band around it, for runs that differ only in their seed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from blocks.arrays import Array
from experiments.run.repeats import band


def plot_band(axes: Axes, x: Any, values: Array, label: str, *, logarithmic: bool, **style: Any) -> None:
    """Draw the mean over n seeds as a line against x, with the band of `experiments.run.repeats.band`, and n in the legend.

    values: (n, points), nan where a seed has no value. The values of a single seed are the line, and there is no band.
    style: matplotlib's properties of the line, with its color.
    """
    line = values[0]
    if len(values) > 1:
        line, lower, upper = band(values, logarithmic)
        label = f"{label}, n = {format_range(np.isfinite(values).sum(axis=0))}"
        axes.fill_between(x, lower, upper, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, line, label=label, **style)


def format_range(counts: Array) -> str:
    """Return `5` for equal numbers, and `3 to 5` for numbers that differ."""
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
