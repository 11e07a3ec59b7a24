"""Pictures, in matplotlib: colour-blind safe, log scales where the quantity spans decades."""

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
from experiments.pictures.bands import plot_band, span
from experiments.pictures.report import COLUMNS, MOST, REPEATS, Cell, Report
from experiments.run.data import load_task
from experiments.run.naming import format_value
from experiments.run.repeats import describe_band

DIVERGED = "#d55e00"
# Okabe and Ito's colours, for lines that are few.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
STEPS = "step (updates made)"
# Columns of a heat map: more than a screen shows would only cost time.
DRAWN = 500
# Maps side by side that can still be read, and how wide they may be together, in inches.
ABREAST, WIDEST = 3, 24
# What the colours of a map tell apart, in units of the loss of the best constant prediction.
CEILING = 2.0
# r2 is 1 less the loss over that one's; an accuracy is never below.
FLOOR = 1 - CEILING
# Letters of labels side by side that do not touch.
READABLE = 80
# Lines that a legend names.
LABELLED = 40
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")


def save(folder: Path, **figures: Figure) -> None:
    """Each as NAME.png and NAME.svg; the folder is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        # Laid out now: once is enough.
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.svg")


def sweep_map(report: Report) -> Figure:
    """The sweep's tables as maps of its measure, side by side where they can still be read.

    [ ] the best cell; a frame around the largest rate of each row that trains; seeds averaged, +- their standard deviation.
    """
    tables = report.tables()
    rows, columns = (max(len({place[axis] for place in cells}) for cells in tables.values()) for axis in (0, 1))
    lines = 1 if report.seeds == 1 else 3
    width = max(6.0, 1 + 0.62 * min(columns, MOST))
    height = max(4.2, 1.2 + (0.06 + 0.14 * lines) * min(rows, MOST))
    down, across = (1, len(tables)) if len(tables) <= ABREAST and len(tables) * width <= WIDEST else (len(tables), 1)
    figure = Figure(figsize=(1 + width * across, height * down), layout="constrained")
    scale, alike, extend = _scale(report)
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, (name, cells) in zip(places, tables.items(), strict=True):
        image = _draw(axes, report, cells, scale)
        first = name or f"{report.measure.title}, {len(report.rows)} runs: {report.outcomes}"
        frame = "frame: the largest rate that trains" + (", every seed" if report.seeds > 1 else "")
        legend = f"[ ]: the best; {frame}" if report.across == COLUMNS else "[ ]: the best"
        axes.set_title("\n".join(filter(None, [first, report.averaged.replace("; ", "\n"), legend])), fontsize=9)
    label = f"{report.measure.title}{alike}"
    figure.colorbar(image, ax=places, label=label, extend=extend, fraction=0.15 / across, pad=0.05 / across)
    return figure


def _scale(report: Report) -> tuple[Normalize, str, str]:
    """The scale of a map's colours, which values it shows alike, in words, and the end of the colour bar that they have.

    Those far from the best constant prediction's are: a loss of 1e7 would leave one colour for all others.
    """
    values = [row.value for row in report.rows if math.isfinite(row.value)]
    if report.measure.is_loss:
        losses = [value for value in values if value > 0]
        ceiling = CEILING * max(load_task(row.config).constant_loss for row in report.rows)
        logarithmic = LogNorm(max(min([*losses, ceiling / 10]), 1e-8), min(max([*losses, 1e-2]), ceiling))
        above = max(losses, default=0) > ceiling
        return (logarithmic, f" (all above {ceiling:.2g} alike)", "max") if above else (logarithmic, "", "neither")
    linear = Normalize(max(min(values, default=0), FLOOR), max(values, default=1))
    return (linear, f" (all below {FLOOR:g} alike)", "min") if min(values, default=0) < FLOOR else (linear, "", "neither")


def _draw(axes: Axes, report: Report, cells: dict[tuple[Any, Any], Cell], scale: Normalize) -> AxesImage:
    downs, acrosses = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    values = np.full((len(downs), len(acrosses)), np.nan)
    readable = max(len(downs), len(acrosses)) <= MOST
    for (down, across), cell in cells.items():
        place = downs.index(down), acrosses.index(across)
        values[place] = cell.mean
        if readable:
            light = bool(cell.survivors) and scale(values[place]) < 0.5
            best = report.best_cell is not None and cell[0] is report.best_cell[0]
            _write(axes, place, cell, best, "white" if light else "black")
    axes.set_facecolor(DIVERGED)
    image = axes.imshow(np.maximum(values, scale.vmin or 0), norm=scale, cmap="viridis", aspect="auto")
    if report.across == COLUMNS and readable:
        for row, down in enumerate(downs):
            training = [rate for rate in acrosses if (down, rate) in cells and cells[down, rate].all_trained]
            if training:
                corner = acrosses.index(max(training)) - 0.47, row - 0.47
                axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=DIVERGED, linewidth=2))
    for axis, names in ((axes.xaxis, acrosses), (axes.yaxis, downs)):
        labelled = evenly_spaced(len(names), MOST)
        axis.set_ticks(labelled, [format_value(names[place]) for place in labelled])
    if sum(len(format_value(value)) for value in acrosses) > READABLE:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel(words(report.across))
    axes.set_ylabel(words(report.down))
    return image


def _write(axes: Axes, place: tuple[int, int], cell: Cell, best: bool, colour: str) -> None:
    lines = [f"{cell.mean:.2g}" if cell.survivors else cell.missing]
    if cell.deviation is not None:
        lines.append(f"±{cell.deviation:.1g}")
    if cell.survivors and cell.share:
        lines.append(cell.share)
    text = "\n".join(lines)
    weight, size = ("bold", 8.0) if best else ("normal", 8.0 if cell.survivors else 6.5)
    text = f"[{text}]" if best else text
    axes.text(place[1], place[0], text, ha="center", va="center", fontsize=size, fontweight=weight, color=colour)


def best_curves(report: Report, best: Mapping[tuple[Any, str], History]) -> Figure:
    """The measure after whole epochs, of the cells of `Report.best_cells`: a colour a value down, a style of line a category.

    best: the history of a cell's seeds as lanes (n, ...).
    """
    measure = report.measure
    figure, axes = new_axes(_titled(measure.curve, report, map(_seeds, best.values()), measure.is_loss))
    colours, styles = _colours([down for down, _ in best]), _styles([category for _, category in best])
    cells, name = report.best_cells(), report.down.rpartition(".")[2]
    for (down, category), history in best.items():
        rate = f"rate {cells[down, category][0].config.optimizer.learning_rate:g}" if COLUMNS in report.varied else ""
        line, marker = styles[category]
        style = {"color": colours[down], "linestyle": line, "marker": marker, "markersize": 3}
        label = ", ".join(filter(None, [f"{name} {format_value(down)}", category, rate]))
        plot_band(axes, history.evaluated, history.measures[measure.name], label, logarithmic=measure.is_loss, **style)
    axes.set(xlabel=STEPS, ylabel=measure.curve, yscale="log" if measure.is_loss else "linear")
    _legend_beside(figure, axes)
    return figure


def norm_ratios(report: Report, best: Mapping[tuple[Any, str], History]) -> Figure:
    """||dW_1|| / ||dW_L|| against depth L, at the first, a middle and the last step of the cells of `Report.best_cells`.

    A colour a category; where there is one alone, a colour a step. best: as in `best_curves`.
    """
    what = "gradient norm of the first block over the last one's"
    figure, axes = new_axes(_titled(what, report, [max(map(_seeds, best.values()))], True))
    categories = list(dict.fromkeys(category for _, category in best))
    colours = _colours(categories)
    for number, (position, share) in enumerate({"first": 0.0, "middle": 0.5, "last": 1.0}.items()):
        for category in categories:
            histories = {down: history for (down, of), history in best.items() if of == category}
            ratios = _ratios(histories.values(), share)
            colour = COLOURS[number] if len(categories) == 1 else colours[category]
            label = ", ".join(filter(None, [category, f"{position} step"]))
            line, marker = STYLES[number], MARKERS[number]
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
            plot_band(axes, list(histories), ratios, label, logarithmic=True, **style)
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="depth L (blocks)", ylabel=r"$\|dW_1\| \,/\, \|dW_L\|$", yscale="log")
    _legend_beside(figure, axes)
    return figure


def _seeds(history: History) -> int:
    """How many lanes it has."""
    return len(history.loss)


def _titled(what: str, report: Report, counts: Iterable[int], logarithmic: bool) -> str:
    """What is drawn, of which cells, of which rates, and what their seeds, so many each, are drawn as."""
    keys = " and ".join(key.rpartition(".")[2] for key in [report.down, *report.lines_by])
    rates = [row.config.optimizer.learning_rate for row in report.rows]
    chosen = [f"rates {min(rates):g} to {max(rates):g}" if COLUMNS in report.varied else f"rate {rates[0]:g}"]
    chosen += [f"{report.seeds} seeds"] if report.seeds > 1 else []
    chosen += [f"every {key}" for key in report.varied if key not in (report.down, *report.lines_by, COLUMNS, REPEATS)]
    if report.seeds == 1:
        return f"{what}\nthe run of {report.measure.best_title} of each {keys}, of {', '.join(chosen)}"
    drawn = describe_band(counts, logarithmic)
    return f"{what}\nthe cell of {report.measure.best_title} (mean) of each {keys}, of {', '.join(chosen)}\n{drawn}"


def loss_curves(history: History) -> Figure:
    """Every batch's loss, and the whole sets'."""
    figure, axes = new_axes("loss")
    steps = evenly_spaced(history.loss.shape[-1], DRAWN)
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
    """||dW_l|| of every block l and step, on a log scale."""
    figure, axes = new_axes(r"gradient norm $\|dW_l\|$ by block and step")
    steps = evenly_spaced(history.loss.shape[-1], DRAWN)
    norms = history.grad_norm[steps].T.astype(np.float64)
    seen = norms[np.isfinite(norms) & (norms > 0)]
    scale = LogNorm(*(np.quantile(seen, [0.0, 1.0]) if seen.size else (1e-3, 1.0)))
    depth = norms.shape[0]
    axes.set_facecolor(DIVERGED)
    extent = (0.0, float(history.loss.shape[-1]), 0.5, depth + 0.5)
    image = axes.imshow(norms, norm=scale, cmap="viridis", aspect="auto", origin="lower", extent=extent, interpolation="nearest")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=STEPS, ylabel="block l")
    figure.colorbar(image, ax=axes, label=r"$\|dW_l\|$")
    return figure


def norm_profile(history: History, place: str = "") -> Figure:
    """||dW_l|| against block l at the first, a middle and the last step.

    history: of one run, or of seeds as lanes (n, ...), then at `place`.
    """
    figure, axes = new_axes(_of_seeds(r"gradient norm $\|dW_l\|$ from block to block", history, place))
    blocks = np.arange(1, history.grad_norm.shape[-1] + 1)
    for share, colour in ((0.0, 0), (0.5, 1), (1.0, 2)):
        steps, norms = _at(history, share)
        label = f"step {span(steps)}"
        plot_band(axes, blocks, norms, label, logarithmic=True, marker="o", markersize=3, color=COLOURS[colour])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="block l", ylabel=r"$\|dW_l\|$", yscale="log")
    _legend(axes)
    return figure


def norm_curves(history: History, place: str) -> Figure:
    """||dW_l|| against the step, of the first, a middle and the last block; of seeds as lanes (n, ...), at `place`."""
    figure, axes = new_axes(_of_seeds(r"gradient norm $\|dW_l\|$ by step", history, place))
    steps = evenly_spaced(history.loss.shape[-1], DRAWN)
    for number, block in enumerate(evenly_spaced(history.grad_norm.shape[-1], 3)):
        norms = history.grad_norm[:, steps, block]
        plot_band(axes, steps, norms, f"block {block + 1}", logarithmic=True, linewidth=0.8, color=COLOURS[number])
    axes.set(xlabel=STEPS, ylabel=r"$\|dW_l\|$", yscale="log")
    _legend(axes)
    return figure


def _of_seeds(what: str, history: History, place: str) -> str:
    """What is drawn, where, and what the seeds are drawn as; of a run alone nothing more."""
    n = _seeds(history)
    return what if n == 1 else "\n".join(filter(None, [what, place, describe_band([n], logarithmic=True)]))


def _at(history: History, share: float) -> tuple[Array, Array]:
    """The step (n,) of each lane at that share of those with finite norms, and its norms (n, L).

    Those of vanished gradients are left out as nan.
    """
    last = np.where(history.diverged_step < 0, history.loss.shape[-1] - 1, np.maximum(history.diverged_step - 1, 0))
    steps = (share * last).round().astype(int)
    norms = history.grad_norm[np.arange(len(steps)), steps].astype(np.float64)
    return steps, np.where(norms > 0, norms, np.nan)


def _ratios(histories: Iterable[History], share: float) -> Array:
    """(n, histories) ||dW_1|| / ||dW_L|| at that share of the steps; nan where a history has fewer lanes than another."""
    norms = [_at(history, share)[1] for history in histories]
    ratios = np.full((max(map(len, norms)), len(norms)), np.nan)
    for column, lanes in enumerate(norms):
        ratios[: len(lanes), column] = lanes[:, 0] / lanes[:, -1]
    return ratios


def new_axes(title: str) -> tuple[Figure, Axes]:
    """A figure of the usual size with one pair of axes."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _colours(values: Iterable[Any]) -> dict[Any, Any]:
    """value -> colour, each another: Okabe and Ito's for a few words, else from dark to light in the order of the values."""
    values = list(dict.fromkeys(values))
    if len(values) <= len(COLOURS) and any(isinstance(value, str) for value in values):
        return dict(zip(values, COLOURS, strict=False))
    return dict(zip(values, colormaps["viridis"](np.linspace(0, 0.9, len(values))), strict=True))


def _styles(categories: Iterable[str]) -> dict[str, tuple[str, str]]:
    """category -> style of line and marker, each pair another up to twenty."""
    return dict(zip(dict.fromkeys(categories), zip(itertools.cycle(STYLES), itertools.cycle(MARKERS)), strict=False))


def _legend_beside(figure: Figure, axes: Axes) -> None:
    """A legend right of the axes, in columns, of at most LABELLED lines, evenly spaced: those between look alike."""
    lines, labels = axes.get_legend_handles_labels()
    chosen = evenly_spaced(len(lines), LABELLED)
    columns = -(-len(chosen) // 20)
    if columns:
        figure.set_figwidth(figure.get_figwidth() + 2 * columns)
        named = [lines[k] for k in chosen], [labels[k] for k in chosen]
        figure.legend(*named, loc="outside right upper", fontsize=8, ncols=columns, frameon=False)


def _mark_divergence(axes: Axes, history: History) -> None:
    if history.diverged_step >= 0:
        axes.axvline(
            float(history.diverged_step), color=DIVERGED, linestyle="--", label=f"diverged in block {history.diverged_block}"
        )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)


def legend_once(axes: Axes) -> None:
    """A legend with each label once."""
    lines, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, lines, strict=True))
    axes.legend(once.values(), once.keys(), fontsize=8, frameon=False)


def words(key: str) -> str:
    """A config's key as an axis is labelled."""
    if key.startswith("optimizer.block_rates."):
        return f"learning rate of block {key.rpartition('.')[2]}"
    return {"network.depth": "depth L (blocks)", "optimizer.learning_rate": "learning rate"}.get(key, key)
