"""Pictures of a trainability map: the map, its boundary pixels that rounding changes, and the box counts of its dimension."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from blocks.arrays import Array
from experiments.pictures.figures import COLOURS, axis_label
from experiments.record.tiles import read_bands
from experiments.run.boundary import Dimension
from experiments.run.grid import AxisConfig, MappedConfig, axes, grid
from experiments.run.paper import DIVERGED, TRAINED
from experiments.run.tile import OTHER_DTYPE

# A picture has at most so many pixels a side. Of a larger map only every second, third, ... pixel is drawn.
MAX_PIXELS = 1024
FRAME_SECONDS = 0.5
# The codes of the floor's pixels: outside the boundary; on it and unchanged; flipped by precision, by rounding, by both.
FLOOR = ("", "label unchanged", "flipped in {other} alone", "flipped by one rounding alone", "flipped by both")
FLOOR_COLOURS = ("#ffffff", "#b8b8b8", COLOURS[4], COLOURS[5], COLOURS[6])


def map_picture(file: Path, config: MappedConfig, title: str) -> Figure:
    """Draw the map: pixels that train are blue, darker when faster; the others are orange, darker when they diverge earlier."""
    figure, axis = _new_axes(title)
    stride = -(-max(np.load(file, mmap_mode="r").shape) // MAX_PIXELS)
    pixels = np.concatenate([band[::stride, ::stride] for _, band in read_bands(file, rows=stride * 16)])
    by_step = config.map.setup == "config"
    _imshow(axis, _colour_pixels(pixels, by_step), config)
    handles = [
        Patch(color=colormaps["Blues"](0.75), label="trained (dark: fast)"),
        Patch(color=colormaps["Oranges"](0.65), label="not trained (dark: lost early)"),
    ]
    _draw_legend(axis, handles)
    return figure


def _colour_pixels(pixels: Array, by_step: bool) -> Array:
    """Return colours (rows, columns, 4) by rank, so that every shade is equally frequent.

    by_step: pixels that do not train are ranked by the step at which they diverged, not by their measure.
    """
    has_trained = pixels["outcome"] == TRAINED
    diverged_at = np.where(pixels["outcome"] == DIVERGED, pixels["step"].astype(float), np.inf)
    lateness = diverged_at if by_step else pixels["measure"]
    image = np.empty((*pixels.shape, 4), np.uint8)
    # The measure is minus the sum of losses, or the final loss: near 0 the training is fast.
    image[has_trained] = colormaps["Blues"](0.95 - 0.8 * _rank(np.abs(pixels["measure"][has_trained])), bytes=True)
    image[~has_trained] = colormaps["Oranges"](0.85 - 0.7 * _rank(lateness[~has_trained]), bytes=True)
    return image


def _rank(values: Array) -> Array:
    """Return the ranks of values, from 0 to 1, equal for equal values."""
    _, rank_indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    ranks: Array = ((last_ranks - counts / 2) / max(len(values), 1))[rank_indices]
    return ranks


def floor_picture(file: Path, config: MappedConfig, title: str) -> Figure:
    """Draw the pixels of the boundary, and those whose labels change with rounding or precision."""
    figure, axis = _new_axes(title)
    rows, columns = np.load(file, mmap_mode="r").shape
    stride = -(-max(rows, columns) // MAX_PIXELS)
    pixels = np.concatenate([_max_pool(band, stride) for _, band in read_bands(file, rows=stride * 16)])
    _imshow(axis, ListedColormap(FLOOR_COLOURS)(pixels, bytes=True), config)
    entries = zip(FLOOR_COLOURS[1:], FLOOR[1:], strict=True)
    _draw_legend(axis, [Patch(color=colour, label=name.format(other=OTHER_DTYPE[config.dtype])) for colour, name in entries])
    return figure


def _max_pool(band: Array, size: int) -> Array:
    """Return the maximum of every square of pixels, since a boundary is too thin for every second, third, ... pixel."""
    rows, columns = (-(-count // size) * size for count in band.shape)
    padded = np.zeros((rows, columns), band.dtype)
    padded[: band.shape[0], : band.shape[1]] = band
    pooled: Array = padded.reshape(rows // size, size, columns // size, size).max(axis=(1, 3))
    return pooled


def boxes_picture(dimension: Dimension) -> Figure:
    """Draw the number of boxes that contain a boundary against their size, and the fitted slope."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    sizes, counts = np.array(dimension.sizes), np.array(dimension.counts)
    axis.plot(sizes, counts, "o", color=COLOURS[0], label="boxes with a boundary in them")
    if np.isfinite(dimension.value):
        scale = np.exp(np.log(counts).mean() + dimension.value * np.log(sizes).mean())
        label = f"slope -{dimension.value:.3f} (95 %: {dimension.lower:.3f} to {dimension.upper:.3f})"
        axis.plot(sizes, scale * sizes**-dimension.value, color=COLOURS[1], label=label)
    axis.set(xlabel="side of a box (pixels)", ylabel="boxes", yscale="log")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_title(f"box counting of the boundary, {dimension.resolution[1]} x {dimension.resolution[0]} pixels", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return figure


def save(figure: Figure, file: Path) -> None:
    """Write the figure as a .png file, since a map has pixels of its own."""
    figure.savefig(file, dpi=150)


def animation(frames: Sequence[Path], file: Path) -> None:
    """Write the frames as a repeating .gif, with one frame at a time in memory."""
    from PIL import Image

    def open_frames() -> "list[Image.Image]":
        return [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]

    first_frame, *other_frames = open_frames()
    first_frame.save(file, save_all=True, append_images=other_frames, duration=int(1000 * FRAME_SECONDS), loop=0)


def _new_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 7.4), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, fontsize=10)
    return figure, axis


def _extent(config: MappedConfig) -> tuple[float, float, float, float]:
    """Return the outer edges of the first and the last pixels (x, x, y, y), in decades for a logarithmic axis."""
    edges = []
    rows, columns = grid(config).shape
    for axis, count in zip(axes(config).values(), (columns, rows), strict=True):
        lower, upper = (np.log10(end) if axis.scale == "log" else end for end in (axis.lower, axis.upper))
        half_pixel = (upper - lower) / (count - 1) / 2
        edges += [float(lower - half_pixel), float(upper + half_pixel)]
    return edges[0], edges[1], edges[2], edges[3]


def _imshow(axis: Axes, image: Array, config: MappedConfig) -> None:
    axis.imshow(image, origin="lower", extent=_extent(config), aspect="auto", interpolation="nearest")
    for matplotlib_axis, axis_config in zip((axis.xaxis, axis.yaxis), axes(config).values(), strict=True):
        _set_ticks(matplotlib_axis, axis_config)
    axis.set_xlabel(axis_label(config.map.x.key))
    axis.set_ylabel(axis_label(config.map.y.key))


def _set_ticks(axis: Axis, config: AxisConfig) -> None:
    """Set ticks at whole decades. A window of less than two decades has ticks at values, with enough digits to differ."""
    if config.scale != "log":
        return
    first_decade, last_decade = np.log10(config.lower), np.log10(config.upper)
    if last_decade - first_decade >= 2:
        spacing = max(round((last_decade - first_decade) / 8), 1)
        ticks = np.arange(np.ceil(first_decade - 1e-9), np.floor(last_decade + 1e-9) + 1, spacing)
        texts = [f"$10^{{{int(tick)}}}$" for tick in ticks]
    else:
        values = np.array(MaxNLocator(5).tick_values(config.lower, config.upper))
        values = values[(values >= config.lower) & (values <= config.upper)]
        ticks = np.log10(values)
        digits = max(int(np.ceil(np.log10(config.upper / (config.upper - config.lower)))) + 2, 3)
        texts = [f"{value:.{digits}g}" for value in values]
    axis.set_ticks(ticks.tolist(), texts)


def _draw_legend(axis: Axes, handles: list[Patch]) -> None:
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=8, frameon=False)
