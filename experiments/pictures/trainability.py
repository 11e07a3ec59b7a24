"""A map of trainability as pictures: the map, what of its boundary is rounding, the boxes that its dimension is counted from."""

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
from experiments.pictures.figures import COLOURS, words
from experiments.record.tiles import read_bands
from experiments.run.boundary import Dimension
from experiments.run.grid import AxisConfig, MappedConfig, axes, grid
from experiments.run.paper import DIVERGED, TRAINED
from experiments.run.tile import OTHER_DTYPE

# Pixels a side that a picture has at most: a larger map is drawn every second, third, ... pixel.
DRAWN = 1024
FRAME_SECONDS = 0.5
# What the floor's pixels are: not of the boundary; of it and as they were; flipped by precision, by rounding, by both.
FLOOR = ("", "label unchanged", "flipped in {other} alone", "flipped by one rounding alone", "flipped by both")
FLOOR_COLOURS = ("#ffffff", "#b8b8b8", COLOURS[4], COLOURS[5], COLOURS[6])


def map_picture(file: Path, config: MappedConfig, title: str) -> Figure:
    """The map: what trains in blue, the faster the darker; what does not in orange, the sooner it is lost the darker."""
    figure, axis = _figure(title)
    every = -(-max(np.load(file, mmap_mode="r").shape) // DRAWN)
    drawn = np.concatenate([band[::every, ::every] for _, band in read_bands(file, rows=every * 16)])
    by_step = config.map.setup == "config"
    _imshow(axis, _coloured(drawn, by_step), config)
    handles = [
        Patch(color=colormaps["Blues"](0.75), label="trained (dark: fast)"),
        Patch(color=colormaps["Oranges"](0.65), label="not trained (dark: lost early)"),
    ]
    _legend_below(axis, handles)
    return figure


def _coloured(pixels: Array, by_step: bool) -> Array:
    """(rows, columns, 4) colours by rank, so that every shade is equally frequent.

    by_step: what has not trained is ranked by the step at which it diverged, not by its measure.
    """
    trained = pixels["outcome"] == TRAINED
    diverged_at = np.where(pixels["outcome"] == DIVERGED, pixels["step"].astype(float), np.inf)
    lateness = diverged_at if by_step else pixels["measure"]
    image = np.empty((*pixels.shape, 4), np.uint8)
    # minus the sum of losses, or the final loss: fast is a measure near 0.
    image[trained] = colormaps["Blues"](0.95 - 0.8 * _rank(np.abs(pixels["measure"][trained])), bytes=True)
    image[~trained] = colormaps["Oranges"](0.85 - 0.7 * _rank(lateness[~trained]), bytes=True)
    return image


def _rank(values: Array) -> Array:
    """0 to 1 by order, equal for equal values."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = ((ends - counts / 2) / max(len(values), 1))[place]
    return ranks


def floor_picture(file: Path, config: MappedConfig, title: str) -> Figure:
    """The boundary's pixels, and those whose labels are rounding."""
    figure, axis = _figure(title)
    rows, columns = np.load(file, mmap_mode="r").shape
    every = -(-max(rows, columns) // DRAWN)
    drawn = np.concatenate([_pooled(band, every) for _, band in read_bands(file, rows=every * 16)])
    _imshow(axis, ListedColormap(FLOOR_COLOURS)(drawn, bytes=True), config)
    named = zip(FLOOR_COLOURS[1:], FLOOR[1:], strict=True)
    _legend_below(axis, [Patch(color=colour, label=name.format(other=OTHER_DTYPE[config.dtype])) for colour, name in named])
    return figure


def _pooled(band: Array, every: int) -> Array:
    """The largest of every square of pixels: a boundary is too thin to be left out."""
    rows, columns = (-(-count // every) * every for count in band.shape)
    padded = np.zeros((rows, columns), band.dtype)
    padded[: band.shape[0], : band.shape[1]] = band
    pooled: Array = padded.reshape(rows // every, every, columns // every, every).max(axis=(1, 3))
    return pooled


def boxes_picture(found: Dimension) -> Figure:
    """Boxes with a boundary in them against their size, and the fitted slope."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    sizes, counts = np.array(found.sizes), np.array(found.counts)
    axis.plot(sizes, counts, "o", color=COLOURS[0], label="boxes with a boundary in them")
    if np.isfinite(found.value):
        middle = np.exp(np.log(counts).mean() + found.value * np.log(sizes).mean())
        label = f"slope -{found.value:.3f} (95 %: {found.lower:.3f} to {found.upper:.3f})"
        axis.plot(sizes, middle * sizes**-found.value, color=COLOURS[1], label=label)
    axis.set(xlabel="side of a box (pixels)", ylabel="boxes", yscale="log")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_title(f"box counting of the boundary, {found.resolution[1]} x {found.resolution[0]} pixels", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return figure


def save(figure: Figure, file: Path) -> None:
    """As .png: a map's pixels are pixels."""
    figure.savefig(file, dpi=150)


def animation(frames: Sequence[Path], file: Path) -> None:
    """The frames as a .gif that repeats; one of them is in memory at a time."""
    from PIL import Image

    def opened() -> "list[Image.Image]":
        return [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]

    first, *others = opened()
    first.save(file, save_all=True, append_images=others, duration=int(1000 * FRAME_SECONDS), loop=0)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 7.4), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, fontsize=10)
    return figure, axis


def _extent(config: MappedConfig) -> tuple[float, float, float, float]:
    """Outer edges of the first and the last pixels, in decades on a log axis."""
    edges = []
    rows, columns = grid(config).shape
    for axis, count in zip(axes(config).values(), (columns, rows), strict=True):
        lower, upper = (np.log10(end) if axis.scale == "log" else end for end in (axis.lower, axis.upper))
        half = (upper - lower) / (count - 1) / 2
        edges += [float(lower - half), float(upper + half)]
    return edges[0], edges[1], edges[2], edges[3]


def _imshow(axis: Axes, image: Array, config: MappedConfig) -> None:
    axis.imshow(image, origin="lower", extent=_extent(config), aspect="auto", interpolation="nearest")
    for side, of in zip((axis.xaxis, axis.yaxis), axes(config).values(), strict=True):
        _label(side, of)
    axis.set_xlabel(words(config.map.x.key))
    axis.set_ylabel(words(config.map.y.key))


def _label(side: Axis, of: AxisConfig) -> None:
    """Ticks at whole decades, or where the window has too few of them, at values with digits enough to differ."""
    if of.scale != "log":
        return
    low, high = np.log10(of.lower), np.log10(of.upper)
    if high - low >= 2:
        every = max(round((high - low) / 8), 1)
        ticks = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1, every)
        texts = [f"$10^{{{int(tick)}}}$" for tick in ticks]
    else:
        values = np.array(MaxNLocator(5).tick_values(of.lower, of.upper))
        values = values[(values >= of.lower) & (values <= of.upper)]
        ticks = np.log10(values)
        digits = max(int(np.ceil(np.log10(of.upper / (of.upper - of.lower)))) + 2, 3)
        texts = [f"{value:.{digits}g}" for value in values]
    side.set_ticks(ticks.tolist(), texts)


def _legend_below(axis: Axes, handles: list[Patch]) -> None:
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=8, frameon=False)
