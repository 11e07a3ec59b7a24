"""A run as an animation: its gradient norms and, where they were measured, its distributions, by block and step."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.ticker import MaxNLocator

from blocks.arrays import Array
from blocks.history import History, log_spaced
from experiments.pictures.distributions import Distribution, distributions
from experiments.pictures.figures import COLOURS, STEPS

# So many frames, so many a second, dots an inch.
FRAMES, A_SECOND, DPI = 48, 8, 80
# How far a block's distribution reaches up, in rows.
OVERLAP = 1.6


def write_movie(history: History, title: str, file: Path) -> None:
    """Write it as a .gif that repeats, at log-spaced steps. history: of a single lane."""
    found = distributions(history)
    figure = Figure(figsize=(9.6, 6.4 if found else 3.4), layout="constrained")
    heading = figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(2 if found else 1, 4)
    left, right = (figure.add_subplot(grid[0, columns]) for columns in (slice(2), slice(2, 4)))
    now, norms = _draw_loss(left, history), _draw_norms(right, history)
    ridges = [
        (distribution, _draw_ridges(figure.add_subplot(grid[1, column]), symbol, distribution))
        for column, (symbol, distribution) in enumerate(found.items())
    ]
    writer = PillowWriter(fps=A_SECOND)
    with writer.saving(figure, str(file), DPI):
        for step in log_spaced(history.loss.shape[-1], FRAMES):
            heading.set_text(f"{title}: step {step}")
            now.set_xdata([step, step])
            norms.set_ydata(_positive(history.grad_norm[step]))
            for distribution, patches in ridges:
                place = max(int(np.searchsorted(distribution.at, step, side="right")) - 1, 0)
                for row, (patch, heights) in enumerate(zip(patches, distribution.heights[place], strict=True)):
                    patch.set_data(row + OVERLAP * heights, baseline=row)
            writer.grab_frame()
            # Laid out once: it takes longer than to draw.
            figure.set_layout_engine("none")


def _draw_loss(axes: Axes, history: History) -> Line2D:
    """Every batch's loss; the line that is moved to a frame's step."""
    axes.plot(np.arange(history.loss.shape[-1]), history.loss, color=COLOURS[0], linewidth=0.8)
    axes.set(xlabel=STEPS, ylabel="loss of the batch", yscale="log")
    return axes.axvline(0, color="black", linewidth=1)


def _draw_norms(axes: Axes, history: History) -> Line2D:
    """||dW_l|| by block, on axes for all steps; the line whose values are a frame's."""
    norms = _positive(history.grad_norm)
    depth, seen = norms.shape[-1], norms[np.isfinite(norms)]
    (line,) = axes.plot(np.arange(1, depth + 1), norms[0], marker="o", markersize=3, color=COLOURS[1])
    limits = (seen.min() / 1.5, seen.max() * 1.5) if seen.size else (0.1, 1)
    axes.set(xlabel="block l", ylabel=r"$\|dW_l\|$", yscale="log", xlim=(0.5, depth + 0.5), ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return line


def _positive(norms: Array) -> Array:
    """What a log axis can show; norms that vanished are nan."""
    return np.where(norms > 0, norms, np.nan).astype(np.float64)


def _draw_ridges(axes: Axes, symbol: str, found: Distribution) -> list[StepPatch]:
    """A row a block, the first one lowest and in front; the patches whose values are a frame's."""
    rows, colours = len(found.blocks), colormaps["viridis"](np.linspace(0, 0.85, len(found.blocks)))
    patches = []
    for row in range(rows):
        top = row + OVERLAP * found.heights[0, row]
        patches.append(axes.stairs(top, found.edges, baseline=row, fill=True, color=colours[row], alpha=0.85, zorder=-row))
    axes.set_yticks(range(rows), [str(block) for block in found.blocks])
    axes.set(xlabel=f"|{symbol}|" if found.is_logarithmic else symbol, xlim=found.edges[[0, -1]], ylim=(0, rows - 1 + OVERLAP))
    axes.set_xscale("log" if found.is_logarithmic else "linear")
    axes.minorticks_off()
    return patches
