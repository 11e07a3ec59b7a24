"""Pictures, in matplotlib: colour-blind safe, log scales where the quantity spans decades."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from blocks.arrays import Array
from blocks.history import History, evenly_spaced
from experiments.pictures.report import COLUMNS, MOST, Report, Row, shown

DIVERGED = "#d55e00"
# Okabe and Ito's colours, for lines that are few.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
STEPS = "step (updates made)"
# Columns of a heat map: more than a screen shows would only cost time.
DRAWN = 500
# Maps side by side that can still be read.
ABREAST = 3


def save(folder: Path, **figures: Figure) -> None:
    """Each as NAME.png and NAME.svg; the folder is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        # Laid out now: once is enough.
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.svg")


def sweep_map(report: Report) -> Figure:
    """The sweep's tables as maps of the final training loss, up to three of them side by side.

    [ ] the best run; a frame around the largest stable learning rate of each row; seeds averaged, +- their standard deviation.
    """
    tables = report.tables()
    down, across = (1, len(tables)) if len(tables) <= ABREAST else (len(tables), 1)
    figure = Figure(figsize=(1 + 6 * across, 4.2 * down), layout="constrained")
    losses = [row.loss for row in report.rows if math.isfinite(row.loss) and row.loss > 0]
    scale = LogNorm(max(min(losses, default=1e-3), 1e-8), max([*losses, 1e-2]))
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, (name, cells) in zip(places, tables.items(), strict=True):
        image = _draw(axes, report, cells, scale)
        first = name or f"final training loss, {len(report.rows)} runs: {report.outcomes}"
        axes.set_title(f"{first}\n[ ]: the best; frame: the largest rate at which no seed diverged", fontsize=9)
    figure.colorbar(image, ax=places, label="final training loss", fraction=0.15 / across, pad=0.05 / across)
    return figure


def _draw(axes: Axes, report: Report, cells: dict[tuple[Any, Any], list[Row]], scale: LogNorm) -> AxesImage:
    downs, acrosses = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    losses = np.full((len(downs), len(acrosses)), np.nan)
    readable = max(len(downs), len(acrosses)) <= MOST
    for (down, across), runs in cells.items():
        place = downs.index(down), acrosses.index(across)
        finite = [row.loss for row in runs if math.isfinite(row.loss)]
        losses[place] = np.mean(finite) if finite else np.nan
        if readable:
            light = bool(finite) and scale(losses[place]) < 0.5
            _write(axes, place, finite, any(row is report.best for row in runs), "white" if light else "black")
    axes.set_facecolor(DIVERGED)
    image = axes.imshow(np.maximum(losses, scale.vmin or 0), norm=scale, cmap="viridis", aspect="auto")
    if report.across == COLUMNS and readable:
        for row, down in enumerate(downs):
            stable = [rate for rate in acrosses if all(run.outcome != "diverged" for run in cells.get((down, rate), []))]
            if stable:
                corner = acrosses.index(max(stable)) - 0.47, row - 0.47
                axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=DIVERGED, linewidth=2))
    for axis, values in ((axes.xaxis, acrosses), (axes.yaxis, downs)):
        labelled = evenly_spaced(len(values), MOST)
        axis.set_ticks(labelled, [shown(values[place]) for place in labelled])
    axes.set_xlabel(_words(report.across))
    axes.set_ylabel(_words(report.down))
    return image


def _write(axes: Axes, place: tuple[int, int], finite: list[float], best: bool, colour: str) -> None:
    text = f"{np.mean(finite):.2g}" if finite else "diverged"
    if len(finite) > 1:
        text += f"\n±{np.std(finite):.1g}"
    weight, size = ("bold", 8.0) if best else ("normal", 8.0 if finite else 6.5)
    text = f"[{text}]" if best else text
    axes.text(place[1], place[0], text, ha="center", va="center", fontsize=size, fontweight=weight, color=colour)


def best_curves(best: Mapping[str, History]) -> Figure:
    """Training loss of the best run of each row of the map, after whole epochs."""
    figure, axes = new_axes("training loss of the best runs")
    for (name, history), colour in zip(best.items(), _colours(len(best)), strict=True):
        axes.plot(history.evaluated, history.measures["loss/train"], marker="o", markersize=3, color=colour, label=name)
    axes.set(xlabel=STEPS, ylabel="training loss", yscale="log")
    _legend(axes)
    return figure


def norm_ratios(best: Mapping[int, History]) -> Figure:
    """||dW_1|| / ||dW_L|| against depth L, at the first, a middle and the last step of the best run of each depth."""
    figure, axes = new_axes("gradient norm of the first block over the last one's")
    for position, (share, colour) in {"first": (0.0, 0), "middle": (0.5, 1), "last": (1.0, 2)}.items():
        ratios = [_at(history, share)[1] for history in best.values()]
        values = [norms[0] / norms[-1] if norms[-1] > 0 else np.nan for norms in ratios]
        axes.plot(list(best), values, marker="o", color=COLOURS[colour], label=f"{position} step")
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="depth L (blocks)", ylabel=r"$\|dW_1\| \,/\, \|dW_L\|$", yscale="log")
    _legend(axes)
    return figure


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


def norm_profile(history: History) -> Figure:
    """||dW_l|| against block l at the first, a middle and the last step."""
    figure, axes = new_axes(r"gradient norm $\|dW_l\|$ from block to block")
    blocks = np.arange(1, history.grad_norm.shape[-1] + 1)
    for share, colour in ((0.0, 0), (0.5, 1), (1.0, 2)):
        step, norms = _at(history, share)
        axes.plot(blocks, norms, marker="o", markersize=3, color=COLOURS[colour], label=f"step {step}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="block l", ylabel=r"$\|dW_l\|$", yscale="log")
    _legend(axes)
    return figure


def _at(history: History, share: float) -> tuple[int, Array]:
    """The step at that share of those with finite norms, and its norms; those of vanished gradients are left out as nan."""
    last = history.loss.shape[-1] - 1 if history.diverged_step < 0 else max(int(history.diverged_step) - 1, 0)
    step = round(share * last)
    norms = history.grad_norm[step].astype(np.float64)
    return step, np.where(norms > 0, norms, np.nan)


def new_axes(title: str) -> tuple[Figure, Axes]:
    """A figure of the usual size with one pair of axes."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


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


def _words(key: str) -> str:
    return {"network.depth": "depth L (blocks)", "optimizer.learning_rate": "learning rate"}.get(key, key)
