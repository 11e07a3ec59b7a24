"""Figures of runs and sweeps: colours are safe for colour-blind readers, scales logarithmic for values that span decades."""

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from blocks.arrays import Array
from blocks.history import History, evenly_spaced
from experiments.pictures.bands import format_range, plot_band
from experiments.pictures.report import COLUMNS, MAX_CELLS, REPEATS, Cell, Report, axis_values
from experiments.run.data import load_task
from experiments.run.naming import format_value
from experiments.run.repeats import describe_band

DIVERGED = "#d55e00"
# The colours of Okabe and Ito, for a few lines.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
STEPS = "step (updates made)"
# A heat map has at most so many columns: a screen shows no more, and more would only cost time.
MAX_COLUMNS = 500
# So many maps are drawn side by side, and they are together at most so wide, in inches.
MAX_MAPS_PER_ROW, MAX_WIDTH = 3, 24
# A map's colours end at this loss, in units of the loss of the best constant prediction.
CEILING = 2.0
# The r2 of a model with that loss, 1 - loss / constant loss. An accuracy is never below it.
FLOOR = 1 - CEILING
# Labels with so many letters together do not touch each other.
MAX_TICK_LETTERS = 80
# A legend names at most so many lines.
MAX_LEGEND_LINES = 40
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")


def save(folder: Path, **figures: Figure) -> None:
    """Write each figure as NAME.png and NAME.svg into the folder, which is created where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        # The layout of the first file serves for the second, too.
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.svg")


def sweep_map(report: Report) -> Figure:
    """Draw the sweep's tables as maps of its measure, side by side where they can still be read.

    A cell has the mean over its seeds, and +- their standard deviation. Brackets [ ] mark the best cell; a frame marks, in each
    row, the largest rate that trains.
    """
    tables = report.tables()
    rows, columns = (max(len({key[axis] for key in cells}) for cells in tables.values()) for axis in (0, 1))
    lines_per_cell = 1 if report.seeds == 1 else 3
    width = max(6.0, 1 + 0.62 * min(columns, MAX_CELLS))
    height = max(4.2, 1.2 + (0.06 + 0.14 * lines_per_cell) * min(rows, MAX_CELLS))
    in_one_row = len(tables) <= MAX_MAPS_PER_ROW and len(tables) * width <= MAX_WIDTH
    panel_rows, panel_columns = (1, len(tables)) if in_one_row else (len(tables), 1)
    figure = Figure(figsize=(1 + width * panel_columns, height * panel_rows), layout="constrained")
    scale, scale_note, extend = _colour_scale(report)
    all_axes = list(figure.subplots(panel_rows, panel_columns, squeeze=False).flat)
    for axes, (name, cells) in zip(all_axes, tables.items(), strict=True):
        image = _draw_map(axes, report, cells, scale)
        headline = name or f"{report.measure.title}, {len(report.rows)} runs: {report.outcomes}"
        frame = "frame: the largest rate that trains" + (", every seed" if report.seeds > 1 else "")
        legend = f"[ ]: the best; {frame}" if report.column_key == COLUMNS else "[ ]: the best"
        axes.set_title("\n".join(filter(None, [headline, report.averaging_note.replace("; ", "\n"), legend])), fontsize=9)
    label = f"{report.measure.title}{scale_note}"
    figure.colorbar(image, ax=all_axes, label=label, extend=extend, fraction=0.15 / panel_columns, pad=0.05 / panel_columns)
    return figure


def _colour_scale(report: Report) -> tuple[Normalize, str, str]:
    """Return the colour scale of a map, the note on values that share the last colour, and which end of the colour bar is open.

    Values much worse than those of the best constant prediction share one colour: a loss of 1e7 would leave one colour for all
    the others.
    """
    values = [row.value for row in report.rows if math.isfinite(row.value)]
    if report.measure.is_loss:
        losses = [value for value in values if value > 0]
        ceiling = CEILING * max(load_task(row.config).constant_loss for row in report.rows)
        logarithmic = LogNorm(max(min([*losses, ceiling / 10]), 1e-8), min(max([*losses, 1e-2]), ceiling))
        has_larger = max(losses, default=0) > ceiling
        return (logarithmic, f" (all above {ceiling:.2g} alike)", "max") if has_larger else (logarithmic, "", "neither")
    linear = Normalize(max(min(values, default=0), FLOOR), max(values, default=1))
    return (linear, f" (all below {FLOOR:g} alike)", "min") if min(values, default=0) < FLOOR else (linear, "", "neither")


def _draw_map(axes: Axes, report: Report, cells: dict[tuple[Any, Any], Cell], scale: Normalize) -> AxesImage:
    row_values, column_values = axis_values(cells, 0), axis_values(cells, 1)
    values = np.full((len(row_values), len(column_values)), np.nan)
    is_readable = max(len(row_values), len(column_values)) <= MAX_CELLS
    for (row_value, column_value), cell in cells.items():
        index = row_values.index(row_value), column_values.index(column_value)
        values[index] = cell.mean
        if is_readable:
            is_dark = bool(cell.finite_rows) and scale(values[index]) < 0.5
            is_best = report.best_cell is not None and cell[0] is report.best_cell[0]
            _write_cell(axes, index, cell, is_best, "white" if is_dark else "black")
    axes.set_facecolor(DIVERGED)
    image = axes.imshow(np.maximum(values, scale.vmin or 0), norm=scale, cmap="viridis", aspect="auto")
    if report.column_key == COLUMNS and is_readable:
        for row, row_value in enumerate(row_values):
            trained_rates = [rate for rate in column_values if (row_value, rate) in cells and cells[row_value, rate].all_trained]
            if trained_rates:
                corner = column_values.index(max(trained_rates)) - 0.47, row - 0.47
                axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=DIVERGED, linewidth=2))
    for axis, names in ((axes.xaxis, column_values), (axes.yaxis, row_values)):
        labelled_indices = evenly_spaced(len(names), MAX_CELLS)
        axis.set_ticks(labelled_indices, [format_value(names[index]) for index in labelled_indices])
    if sum(len(format_value(value)) for value in column_values) > MAX_TICK_LETTERS:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel(axis_label(report.column_key))
    axes.set_ylabel(axis_label(report.row_key))
    return image


def _write_cell(axes: Axes, index: tuple[int, int], cell: Cell, is_best: bool, colour: str) -> None:
    lines = [f"{cell.mean:.2g}" if cell.finite_rows else cell.missing_reason]
    if cell.deviation is not None:
        lines.append(f"±{cell.deviation:.1g}")
    if cell.finite_rows and cell.trained_share:
        lines.append(cell.trained_share)
    text = "\n".join(lines)
    weight, size = ("bold", 8.0) if is_best else ("normal", 8.0 if cell.finite_rows else 6.5)
    text = f"[{text}]" if is_best else text
    axes.text(index[1], index[0], text, ha="center", va="center", fontsize=size, fontweight=weight, color=colour)


def best_curves(report: Report, best_histories: Mapping[tuple[Any, str], History]) -> Figure:
    """Draw the measure at the ends of epochs, for the cells of `Report.best_cells`.

    Each row of the table has a colour, each category a style of line. best_histories: the history of each cell, with its seeds
    as lanes (n, ...).
    """
    measure = report.measure
    figure, axes = new_axes(_best_title(measure.curve, report, map(_count_seeds, best_histories.values()), measure.is_loss))
    colours = _colours([row_value for row_value, _ in best_histories])
    styles = _styles([category for _, category in best_histories])
    cells, name = report.best_cells(), report.row_key.rpartition(".")[2]
    for (row_value, category), history in best_histories.items():
        rate = f"rate {cells[row_value, category][0].config.optimizer.learning_rate:g}" if COLUMNS in report.varied_keys else ""
        line, marker = styles[category]
        style = {"color": colours[row_value], "linestyle": line, "marker": marker, "markersize": 3}
        label = ", ".join(filter(None, [f"{name} {format_value(row_value)}", category, rate]))
        plot_band(axes, history.evaluated, history.measures[measure.name], label, logarithmic=measure.is_loss, **style)
    axes.set(xlabel=STEPS, ylabel=measure.curve, yscale="log" if measure.is_loss else "linear")
    _legend_beside(figure, axes)
    return figure


def norm_ratios(report: Report, best_histories: Mapping[tuple[Any, str], History]) -> Figure:
    """Draw ||dW_1|| / ||dW_L|| against depth L at the first, a middle and the last step, for the cells of `Report.best_cells`.

    Each category has a colour; where there is only one category, each step has a colour.
    best_histories: as in `best_curves`.
    """
    quantity = "gradient norm of the first block over the last one's"
    figure, axes = new_axes(_best_title(quantity, report, [max(map(_count_seeds, best_histories.values()))], True))
    categories = list(dict.fromkeys(category for _, category in best_histories))
    colours = _colours(categories)
    for index, (position, share) in enumerate({"first": 0.0, "middle": 0.5, "last": 1.0}.items()):
        for category in categories:
            histories = {
                row_value: history for (row_value, line_category), history in best_histories.items() if line_category == category
            }
            ratios = _norm_ratios_at(histories.values(), share)
            colour = COLOURS[index] if len(categories) == 1 else colours[category]
            label = ", ".join(filter(None, [category, f"{position} step"]))
            line, marker = STYLES[index], MARKERS[index]
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
            plot_band(axes, list(histories), ratios, label, logarithmic=True, **style)
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="depth L (blocks)", ylabel=r"$\|dW_1\| \,/\, \|dW_L\|$", yscale="log")
    _legend_beside(figure, axes)
    return figure


def _count_seeds(history: History) -> int:
    """Return the number of the history's lanes, which are seeds."""
    return len(history.loss)


def _best_title(quantity: str, report: Report, counts: Iterable[int], logarithmic: bool) -> str:
    """Return the title of a picture of the best cells. counts: the number of seeds of each cell."""
    keys = " and ".join(key.rpartition(".")[2] for key in [report.row_key, *report.lines_by])
    rates = [row.config.optimizer.learning_rate for row in report.rows]
    selection = [f"rates {min(rates):g} to {max(rates):g}" if COLUMNS in report.varied_keys else f"rate {rates[0]:g}"]
    selection += [f"{report.seeds} seeds"] if report.seeds > 1 else []
    selection += [f"every {key}" for key in report.varied_keys if key not in (report.row_key, *report.lines_by, COLUMNS, REPEATS)]
    if report.seeds == 1:
        return f"{quantity}\nthe run of {report.measure.best_title} of each {keys}, of {', '.join(selection)}"
    band_name = describe_band(counts, logarithmic)
    return f"{quantity}\nthe cell of {report.measure.best_title} (mean) of each {keys}, of {', '.join(selection)}\n{band_name}"


def loss_curves(history: History) -> Figure:
    """Draw the loss of every batch, and the losses on the training and the validation set."""
    figure, axes = new_axes("loss")
    steps = evenly_spaced(history.loss.shape[-1], MAX_COLUMNS)
    axes.plot(steps, history.loss[steps], color="0.75", linewidth=0.7, label="batch")
    for name, colour in (("train", 0), ("validation", 1)):
        if f"loss/{name}" in history.measures:
            values = history.measures[f"loss/{name}"]
            axes.plot(history.evaluated, values, marker="o", markersize=3, color=COLOURS[colour], label=name)
    _mark_divergence(axes, history)
    axes.set(xlabel=STEPS, ylabel="loss", yscale="log")
    _legend(axes)
    return figure


def norm_map(history: History) -> Figure:
    """Draw ||dW_l|| of every block l and step as a map with a logarithmic scale."""
    figure, axes = new_axes(r"gradient norm $\|dW_l\|$ by block and step")
    steps = evenly_spaced(history.loss.shape[-1], MAX_COLUMNS)
    norms = history.grad_norm[steps].T.astype(np.float64)
    positive = norms[np.isfinite(norms) & (norms > 0)]
    scale = LogNorm(*(np.quantile(positive, [0.0, 1.0]) if positive.size else (1e-3, 1.0)))
    depth = norms.shape[0]
    axes.set_facecolor(DIVERGED)
    extent = (0.0, float(history.loss.shape[-1]), 0.5, depth + 0.5)
    image = axes.imshow(norms, norm=scale, cmap="viridis", aspect="auto", origin="lower", extent=extent, interpolation="nearest")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=STEPS, ylabel="block l")
    figure.colorbar(image, ax=axes, label=r"$\|dW_l\|$")
    return figure


def norm_profile(history: History, cell_label: str = "") -> Figure:
    """Draw ||dW_l|| against block l at the first, a middle and the last step.

    history: the seeds of a cell, or a single run, as lanes (n, ...). cell_label: the swept values of the cell.
    """
    figure, axes = new_axes(_seeds_title(r"gradient norm $\|dW_l\|$ from block to block", history, cell_label))
    blocks = np.arange(1, history.grad_norm.shape[-1] + 1)
    for share, colour in ((0.0, 0), (0.5, 1), (1.0, 2)):
        steps, norms = _norms_at(history, share)
        label = f"step {format_range(steps)}"
        plot_band(axes, blocks, norms, label, logarithmic=True, marker="o", markersize=3, color=COLOURS[colour])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="block l", ylabel=r"$\|dW_l\|$", yscale="log")
    _legend(axes)
    return figure


def norm_curves(history: History, cell_label: str) -> Figure:
    """Draw ||dW_l|| of the first, a middle and the last block against the step. Arguments: as in `norm_profile`."""
    figure, axes = new_axes(_seeds_title(r"gradient norm $\|dW_l\|$ by step", history, cell_label))
    steps = evenly_spaced(history.loss.shape[-1], MAX_COLUMNS)
    for index, block in enumerate(evenly_spaced(history.grad_norm.shape[-1], 3)):
        norms = history.grad_norm[:, steps, block]
        plot_band(axes, steps, norms, f"block {block + 1}", logarithmic=True, linewidth=0.8, color=COLOURS[index])
    axes.set(xlabel=STEPS, ylabel=r"$\|dW_l\|$", yscale="log")
    _legend(axes)
    return figure


def _seeds_title(quantity: str, history: History, cell_label: str) -> str:
    """Return the title with the cell and the band of its seeds; for a single run, only the quantity."""
    n = _count_seeds(history)
    return quantity if n == 1 else "\n".join(filter(None, [quantity, cell_label, describe_band([n], logarithmic=True)]))


def _norms_at(history: History, share: float) -> tuple[Array, Array]:
    """Return for each lane the step (n,) at that share of its steps with finite norms, and the norms (n, L) at it.

    The norms of gradients that vanished are nan.
    """
    last_steps = np.where(history.diverged_step < 0, history.loss.shape[-1] - 1, np.maximum(history.diverged_step - 1, 0))
    steps = (share * last_steps).round().astype(int)
    norms = history.grad_norm[np.arange(len(steps)), steps].astype(np.float64)
    return steps, np.where(norms > 0, norms, np.nan)


def _norm_ratios_at(histories: Iterable[History], share: float) -> Array:
    """Return ||dW_1|| / ||dW_L|| (n, histories) at that share of the steps; nan for lanes that a history does not have."""
    norms = [_norms_at(history, share)[1] for history in histories]
    ratios = np.full((max(map(len, norms)), len(norms)), np.nan)
    for column, lanes in enumerate(norms):
        ratios[: len(lanes), column] = lanes[:, 0] / lanes[:, -1]
    return ratios


def new_axes(title: str) -> tuple[Figure, Axes]:
    """Return a figure of the usual size with one pair of axes."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _colours(values: Iterable[Any]) -> dict[Any, Any]:
    """Return a different colour for each value: those of Okabe and Ito for a few names, otherwise from dark to light."""
    values = list(dict.fromkeys(values))
    if len(values) <= len(COLOURS) and any(isinstance(value, str) for value in values):
        return dict(zip(values, COLOURS, strict=False))
    return dict(zip(values, colormaps["viridis"](np.linspace(0, 0.9, len(values))), strict=True))


def _styles(categories: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a style of line and a marker for each category; the first twenty pairs are different."""
    return dict(zip(dict.fromkeys(categories), zip(itertools.cycle(STYLES), itertools.cycle(MARKERS)), strict=False))


def _legend_beside(figure: Figure, axes: Axes) -> None:
    """Draw a legend on the right of the axes, in columns. Of more than MAX_LEGEND_LINES lines, evenly spaced ones are named."""
    lines, labels = axes.get_legend_handles_labels()
    indices = evenly_spaced(len(lines), MAX_LEGEND_LINES)
    columns = -(-len(indices) // 20)
    if columns:
        figure.set_figwidth(figure.get_figwidth() + 2 * columns)
        entries = [lines[k] for k in indices], [labels[k] for k in indices]
        figure.legend(*entries, loc="outside right upper", fontsize=8, ncols=columns, frameon=False)


def _mark_divergence(axes: Axes, history: History) -> None:
    if history.diverged_step >= 0:
        axes.axvline(
            float(history.diverged_step), color=DIVERGED, linestyle="--", label=f"diverged in block {history.diverged_block}"
        )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)


def legend_once(axes: Axes) -> None:
    """Draw a legend that has each label once."""
    lines, labels = axes.get_legend_handles_labels()
    line_by_label = dict(zip(labels, lines, strict=True))
    axes.legend(line_by_label.values(), line_by_label.keys(), fontsize=8, frameon=False)


def axis_label(key: str) -> str:
    """Return the label of an axis for a config's key."""
    if key.startswith("optimizer.block_rates."):
        return f"learning rate of block {key.rpartition('.')[2]}"
    return {"network.depth": "depth L (blocks)", "optimizer.learning_rate": "learning rate"}.get(key, key)
