"""A run as an animation: its gradient norms and, where they were measured, its distributions, by block and step."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from blocks.arrays import Array
from blocks.history import History, log_spaced
from experiments.pictures.distributions import Distribution, distributions
from experiments.pictures.figures import COLOURS, STEPS

# So many frames, so many a second, the last one held for as many; dots an inch.
FRAMES, A_SECOND, HELD, DPI = 48, 8, 8, 80
# How far a block's distribution reaches up, in rows.
OVERLAP = 1.6


def write_movie(history: History, title: str, file: Path) -> None:
    """Write it as a .gif that repeats, at log-spaced steps. history: of a single lane."""
    found = distributions(history)
    figure = Figure(figsize=(9.6, 6.4 if found else 3.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(2 if found else 1, 4)
    losses, norms = (figure.add_subplot(grid[0, columns]) for columns in (slice(2), slice(2, 4)))
    places = {symbol: figure.add_subplot(grid[1, column]) for column, symbol in enumerate(found)}
    now = _draw_loss(losses, history)
    writer = PillowWriter(fps=A_SECOND)
    with writer.saving(figure, str(file), DPI):
        steps = log_spaced(history.loss.shape[-1], FRAMES)
        for step in [*steps, *[steps[-1]] * HELD]:
            now.set_xdata([step, step])
            _draw_norms(norms, history, step)
            for symbol, distribution in found.items():
                _draw_distribution(places[symbol], symbol, distribution, step)
            writer.grab_frame()


def _draw_loss(axes: Axes, history: History) -> Line2D:
    """Every batch's loss, and the line that is moved to the frame's step."""
    axes.plot(np.arange(history.loss.shape[-1]), history.loss, color=COLOURS[0], linewidth=0.8)
    axes.set(xlabel=STEPS, ylabel="loss of the batch", yscale="log")
    return axes.axvline(0, color="black", linewidth=1)


def _draw_norms(axes: Axes, history: History, step: int) -> None:
    axes.clear()
    norms = np.where(history.grad_norm > 0, history.grad_norm, np.nan).astype(np.float64)
    axes.plot(np.arange(1, norms.shape[-1] + 1), norms[step], marker="o", markersize=3, color=COLOURS[1])
    axes.set(xlabel="block l", ylabel=r"$\|dW_l\|$", yscale="log", xlim=(0.5, norms.shape[-1] + 0.5), ylim=_limits(norms))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"step {step}", fontsize=9)


def _limits(norms: Array) -> tuple[float, float]:
    """Of an axis that stays as the step changes."""
    seen = norms[np.isfinite(norms)]
    return (float(seen.min()) / 1.5, float(seen.max()) * 1.5) if seen.size else (0.1, 1.0)


def _draw_distribution(axes: Axes, symbol: str, found: Distribution, step: int) -> None:
    """Of the last measurement at or before that step, a row a block."""
    axes.clear()
    heights = found.heights[max(int(np.searchsorted(found.at, step, side="right")) - 1, 0)]
    rows = len(found.blocks)
    for row in reversed(range(rows)):
        colour = colormaps["viridis"](0.85 * row / max(rows - 1, 1))
        axes.stairs(row + OVERLAP * heights[row], found.edges, baseline=row, fill=True, color=colour, alpha=0.85)
    axes.set_yticks(range(rows), [str(block) for block in found.blocks])
    axes.set(xlabel=f"|{symbol}|" if found.is_logarithmic else symbol, xlim=found.edges[[0, -1]], ylim=(0, rows - 1 + OVERLAP))
    axes.set_xscale("log" if found.is_logarithmic else "linear")
