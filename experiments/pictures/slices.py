"""The picture of runs that span no grid, as a search draws them: what they are judged by against every key that differs."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.pictures.figures import COLOURS, DIVERGED, words
from experiments.pictures.report import Report
from experiments.run.naming import format_value

ABREAST = 4
# Positive numbers of which the largest is so many times the smallest have a logarithmic axis.
DECADES = 100


def slices(report: Report) -> Figure:
    """The measure of every run against each key that differs, a panel a key.

    A star is the best run; runs that diverged or were stopped stand at the end of the axis where the worst are.
    """
    keys = report.varied
    across = min(len(keys), ABREAST)
    down = math.ceil(len(keys) / across)
    figure = Figure(figsize=(1 + 3.6 * across, 0.6 + 3.6 * down), layout="constrained")
    figure.suptitle(f"{report.measure.title}, {len(report.rows)} runs: {report.outcomes}", fontsize=10)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, key in zip(panels.flat, keys, strict=False):
        _draw(axes, report, key)
    for axes in panels.flat[len(keys) :]:
        axes.remove()
    for first in panels[:, 0]:
        first.set_ylabel(report.measure.title)
    panels[0, 0].legend(fontsize=8)
    return figure


def _draw(axes: Axes, report: Report, key: str) -> None:
    places = [values[key] for values in report.places]
    if all(isinstance(place, int | float) for place in places):
        x = np.array(places, np.float64)
        if x.min() > 0 and x.max() >= DECADES * x.min():
            axes.set_xscale("log")
        elif all(isinstance(place, int) for place in places):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        names = list(dict.fromkeys(map(format_value, places)))
        x = np.array([names.index(format_value(place)) for place in places])
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > ABREAST else 0)
    values, outcomes = np.array([row.value for row in report.rows]), np.array([row.outcome for row in report.rows])
    best, finite = np.array([row is report.best for row in report.rows]), np.isfinite(values)
    axes.scatter(x[finite], values[finite], s=14, color=COLOURS[0], alpha=0.6)
    axes.scatter(x[best], values[best], s=140, color=COLOURS[1], marker="*", label="the best")
    for outcome, marker, colour in (("stopped", ".", "0.5"), ("diverged", "x", DIVERGED)):
        if (ended := ~finite & (outcomes == outcome)).any():
            worst = np.full(ended.sum(), 0.98 if report.measure.is_loss else 0.02)
            axes.scatter(x[ended], worst, s=20, color=colour, marker=marker, label=outcome, transform=axes.get_xaxis_transform())
    # What stands at an end of the axis has a place on the other one too.
    axes.dataLim.update_from_data_x(x, ignore=False)
    axes.autoscale_view()
    axes.set(xlabel=words(key), yscale="log" if report.measure.is_loss else "linear")
