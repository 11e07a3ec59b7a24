"""The picture of a search, whose runs are no grid: the measure against every key that differs."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.pictures.figures import COLOURS, DIVERGED, axis_label
from experiments.pictures.report import Report
from experiments.run.naming import format_value

MAX_PANELS_PER_ROW = 4
# An axis is logarithmic where all numbers are positive and the largest is at least so many times the smallest.
MIN_LOG_RATIO = 100


def slices(report: Report) -> Figure:
    """Draw the measure of every run against each key that differs, in one panel for each key.

    A star marks the best run. Runs that diverged or were stopped are drawn at the worst end of the axis.
    """
    keys = report.varied_keys
    columns = min(len(keys), MAX_PANELS_PER_ROW)
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.6 + 3.6 * rows), layout="constrained")
    figure.suptitle(f"{report.measure.title}, {len(report.rows)} runs: {report.outcomes}", fontsize=10)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, key in zip(panels.flat, keys, strict=False):
        _draw(axes, report, key)
    for axes in panels.flat[len(keys) :]:
        axes.remove()
    for left_axes in panels[:, 0]:
        left_axes.set_ylabel(report.measure.title)
    panels[0, 0].legend(fontsize=8)
    return figure


def _draw(axes: Axes, report: Report, key: str) -> None:
    key_values = [values[key] for values in report.swept_values]
    if all(isinstance(value, int | float) for value in key_values):
        x = np.array(key_values, np.float64)
        if x.min() > 0 and x.max() >= MIN_LOG_RATIO * x.min():
            axes.set_xscale("log")
        elif all(isinstance(value, int) for value in key_values):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        names = list(dict.fromkeys(map(format_value, key_values)))
        x = np.array([names.index(format_value(value)) for value in key_values])
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > MAX_PANELS_PER_ROW else 0)
    values, outcomes = np.array([row.value for row in report.rows]), np.array([row.outcome for row in report.rows])
    is_best, is_finite = np.array([row is report.best_run for row in report.rows]), np.isfinite(values)
    axes.scatter(x[is_finite], values[is_finite], s=14, color=COLOURS[0], alpha=0.6)
    axes.scatter(x[is_best], values[is_best], s=140, color=COLOURS[1], marker="*", label="the best")
    for outcome, marker, colour in (("stopped", ".", "0.5"), ("diverged", "x", DIVERGED)):
        if (is_marked := ~is_finite & (outcomes == outcome)).any():
            heights = np.full(is_marked.sum(), 0.98 if report.measure.is_loss else 0.02)
            transform = axes.get_xaxis_transform()
            axes.scatter(x[is_marked], heights, s=20, color=colour, marker=marker, label=outcome, transform=transform)
    # The runs at the end of the y axis count for the limits of the x axis, too.
    axes.dataLim.update_from_data_x(x, ignore=False)
    axes.autoscale_view()
    axes.set(xlabel=axis_label(key), yscale="log" if report.measure.is_loss else "linear")
