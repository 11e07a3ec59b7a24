"""The runs of a search as points: the values that it has drawn span no grid of which a map could be made."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize

from blocks.arrays import Array
from blocks.history import evenly_spaced
from experiments.pictures.report import MOST, Report
from experiments.run.config import shown

# From this ratio of the largest value to the smallest on, an axis is logarithmic.
DECADES = 100


def draw_points(axes: Axes, report: Report, scale: Normalize, missing: str) -> PathCollection:
    """Each run at its values of the keys down and across, in its measure's colour, with a ring around the best.

    missing: the colour of the crosses of runs without a value.
    """
    sides = (("x", report.across), ("y", report.down))
    across, down = (_positions(axes, letter, [values[key] for values in report.places]) for letter, key in sides)
    values = np.array([row.value for row in report.rows])
    finite = np.isfinite(values)
    axes.plot(across[~finite], down[~finite], "x", color=missing)
    colours = np.maximum(values[finite], scale.vmin or 0)
    points = axes.scatter(across[finite], down[finite], s=30, c=colours, norm=scale, cmap="viridis")
    if report.best:
        place = report.rows.index(report.best)
        axes.plot(across[place], down[place], "o", color="black", fillstyle="none", markersize=11)
    return points


def _positions(axes: Axes, letter: str, values: list[Any]) -> Array:
    """Where those values lie on the axis x or y: numbers as they are, others one after the other."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) >= DECADES * min(values):
            axes.set(**{f"{letter}scale": "log"})
        return np.array(values, dtype=np.float64)
    names = list(dict.fromkeys(map(shown, values)))
    labelled = evenly_spaced(len(names), MOST)
    axes.set(**{f"{letter}ticks": labelled, f"{letter}ticklabels": [names[place] for place in labelled]})
    return np.array([names.index(shown(value)) for value in values], dtype=np.float64)
