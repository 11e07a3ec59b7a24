"""A run as an animation: its gradient norms, and its distributions where they were measured, by block and step."""

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

# The number of frames, frames per second, and dots per inch.
FRAMES, FRAMES_PER_SECOND, DPI = 48, 8, 80
# The largest height of a block's distribution, in rows.
OVERLAP = 1.6


def write_movie(history: History, title: str, file: Path) -> None:
    """Write a repeating .gif with frames at log-spaced steps. history: of a single lane."""
    by_symbol = distributions(history)
    figure = Figure(figsize=(9.6, 6.4 if by_symbol else 3.4), layout="constrained")
    heading = figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(2 if by_symbol else 1, 4)
    loss_axes, norm_axes = (figure.add_subplot(grid[0, columns]) for columns in (slice(2), slice(2, 4)))
    step_line, norm_line = _draw_loss(loss_axes, history), _draw_norms(norm_axes, history)
    ridges = [
        (distribution, _draw_ridges(figure.add_subplot(grid[1, column]), symbol, distribution))
        for column, (symbol, distribution) in enumerate(by_symbol.items())
    ]
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    with writer.saving(figure, str(file), DPI):
        for step in log_spaced(history.loss.shape[-1], FRAMES):
            heading.set_text(f"{title}: step {step}")
            step_line.set_xdata([step, step])
            norm_line.set_ydata(_positive(history.grad_norm[step]))
            for distribution, patches in ridges:
                index = max(int(np.searchsorted(distribution.steps, step, side="right")) - 1, 0)
                for row, (patch, heights) in enumerate(zip(patches, distribution.heights[index], strict=True)):
                    patch.set_data(row + OVERLAP * heights, baseline=row)
            writer.grab_frame()
            # The first frame's layout serves for all: a layout takes longer than drawing.
            figure.set_layout_engine("none")


def _draw_loss(axes: Axes, history: History) -> Line2D:
    """Draw every batch's loss, and return the vertical line that marks a frame's step."""
    axes.plot(np.arange(history.loss.shape[-1]), history.loss, color=COLOURS[0], linewidth=0.8)
    axes.set(xlabel=STEPS, ylabel="loss of the batch", yscale="log")
    return axes.axvline(0, color="black", linewidth=1)


def _draw_norms(axes: Axes, history: History) -> Line2D:
    """Draw ||dW_l|| by block, with limits for all steps, and return the line whose values change with the frame."""
    norms = _positive(history.grad_norm)
    depth, finite = norms.shape[-1], norms[np.isfinite(norms)]
    (line,) = axes.plot(np.arange(1, depth + 1), norms[0], marker="o", markersize=3, color=COLOURS[1])
    limits = (finite.min() / 1.5, finite.max() * 1.5) if finite.size else (0.1, 1)
    axes.set(xlabel="block l", ylabel=r"$\|dW_l\|$", yscale="log", xlim=(0.5, depth + 0.5), ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return line


def _positive(norms: Array) -> Array:
    """Return the norms for a logarithmic axis: norms of 0 become nan."""
    return np.where(norms > 0, norms, np.nan).astype(np.float64)


def _draw_ridges(axes: Axes, symbol: str, distribution: Distribution) -> list[StepPatch]:
    """Draw a row for each block, the first one lowest and in front, and return the patches that change with the frame."""
    rows, colours = len(distribution.blocks), colormaps["viridis"](np.linspace(0, 0.85, len(distribution.blocks)))
    patches = []
    for row in range(rows):
        top = row + OVERLAP * distribution.heights[0, row]
        patches.append(axes.stairs(top, distribution.edges, baseline=row, fill=True, color=colours[row], alpha=0.85, zorder=-row))
    axes.set_yticks(range(rows), [str(block) for block in distribution.blocks])
    axes.set(
        xlabel=f"|{symbol}|" if distribution.is_logarithmic else symbol,
        xlim=distribution.edges[[0, -1]],
        ylim=(0, rows - 1 + OVERLAP),
    )
    axes.set_xscale("log" if distribution.is_logarithmic else "linear")
    axes.minorticks_off()
    return patches
