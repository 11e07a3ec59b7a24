"""A line with a band around it, for runs that differ in their seed alone."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from blocks.arrays import Array
from experiments.run.repeats import band


def plot_band(axes: Axes, x: Any, values: Array, label: str, *, logarithmic: bool, **style: Any) -> None:
    """The mean over n seeds as a line against x, with their band, see `experiments.run.repeats.band`, and n in the legend.

    values: (n, points), nan where a seed has none; of one seed they are the line. style: of the line.
    """
    line = values[0]
    if len(values) > 1:
        line, lower, upper = band(values, logarithmic)
        label = f"{label}, n = {span(np.isfinite(values).sum(axis=0))}"
        axes.fill_between(x, lower, upper, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, line, label=label, **style)


def span(counts: Array) -> str:
    """`5`, or `3 to 5` of numbers that differ."""
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
