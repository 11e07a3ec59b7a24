"""Pictures of the instrument `signals`: the distributions of z, a, da and dW, block by block, and the sizes of updates.

Each function takes a run's history and returns a figure:

    from experiments import results
    from experiments.pictures import signals

    frame, histories = results.load()
    signals.distribution(histories[0], "a").savefig("activations.png")
"""

from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blocks.arrays import Array
from blocks.history import Histogram, History, Quantity, evenly_spaced
from blocks.measure.signals import NUMBERS
from blocks.theory import MeanField, weight_variance
from experiments.run.config import Config, UserError
from experiments.run.data import Task
from experiments.run.stack import sizes

NAME = "signals"
TITLES = {
    "z": "pre-activations z",
    "a": "activations a",
    "da": r"the gradient $|da|$",
    "dW": r"the weights' gradient $|dW|$",
}
# A legend names at most so many blocks.
MAX_LEGEND_BLOCKS = 9
# log10 of update : data for updates of a thousandth of the weights, a usual value in good training (Karpathy).
USUAL_LOG_RATIO = -3.0
# The number of bins in a standard deviation, and the limit of a picture in standard deviations.
FINENESS, DEVIATIONS = 8, 4.0
# The largest height of a ridge, in distances between two ridges.
OVERLAP = 1.6


def get_signals(history: History) -> Quantity:
    """Return what `instruments.signals` has measured. Raises UserError where the run did not measure it."""
    if NAME not in history.quantities:
        raise UserError("the run has not measured its signals by block: it must be trained with instruments.signals=log")
    return history.quantities[NAME]


def select_number(quantity: Quantity, name: str) -> Array:
    """Return one of NUMBERS at every measured step and block, (E, L)."""
    return quantity.values[:, NUMBERS.index(name)]


def first_and_last_index(quantity: Quantity) -> list[int]:
    """Return the indices in `at` of the first and the last step with finite values; one index where they are the same."""
    indices = np.flatnonzero(np.isfinite(select_number(quantity, "z_std")).any(axis=-1))
    return sorted({int(indices[0]), int(indices[-1])}) if indices.size else [0]


def distribution(history: History, symbol: str, saturated: str = "saturated") -> Figure:
    """Draw the density of z or a, or of |da| or |dW| by decade, with a line for each block, at the first and last measured step.

    The legend has the standard deviation, for a also the saturated share, and for dW also grad : data, std(dW) / std(W).

    symbol: z, a, da or dW. saturated: the word for saturated entries, "dead" where the activation is relu.
    """
    quantity = get_signals(history)
    depth = quantity.values.shape[-1]
    draw = _draw_values if symbol in ("z", "a") else _draw_magnitudes
    figure, all_axes = _new_panels(quantity, f"{TITLES[symbol]} by block")
    for axes, index in zip(all_axes, first_and_last_index(quantity), strict=True):
        histogram = quantity.histograms[symbol]
        # The a of block L are the logits, which are much larger than the other activations.
        count = depth - 1 if symbol == "a" and depth > 1 else depth
        draw(axes, histogram.edges, histogram.counts[index, :count], select_number(quantity, f"{symbol}_std")[index, :count])
        for block in evenly_spaced(count, MAX_LEGEND_BLOCKS):
            axes.get_lines()[block].set_label(_label(quantity, symbol, index, block, saturated))
        _draw_block_legend(axes)
    return figure


def update_to_data(history: History) -> Figure:
    """Draw log10 of std(update) / std(W) by step, with a line for each block, and a dashed line at the usual value -3."""
    quantity = get_signals(history)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title("update : data, std(update) / std(W), by block and step", fontsize=10)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log10(select_number(quantity, "update_data"))
    values[~np.isfinite(values)] = np.nan
    for block, colour in enumerate(_colours(values.shape[-1])):
        axes.plot(quantity.at + 1, values[:, block], color=colour, marker="o", markersize=2.5, linewidth=1.2)
    for block in evenly_spaced(values.shape[-1], MAX_LEGEND_BLOCKS):
        axes.get_lines()[block].set_label(str(block + 1))
    axes.axhline(USUAL_LOG_RATIO, color="black", linestyle="--", linewidth=1)
    # The limits are set here: a logarithmic axis finds none where no value is finite, as for weights that are all 0.
    axes.set(xlabel="update", ylabel=r"$\log_{10}$ update : data", xscale="log", xlim=(0.9, 1.1 * (quantity.at[-1] + 1)))
    _draw_block_legend(axes)
    return figure


def ridge(history: History, variances: Array | None = None) -> Figure:
    """Draw the density of z at the first and the last measured step, with a ridge for each block. All ridges have one height.

    variances: (L,) q_l of mean-field theory, see `mean_field_variances`. The normal density of that variance is drawn over the
        first step if it is the initial network.
    """
    quantity = get_signals(history)
    indices = first_and_last_index(quantity)
    figure, all_axes = _new_panels(
        quantity, "pre-activations z by block", height=max(4.2, 1.5 + 0.28 * quantity.values.shape[-1])
    )
    for axes, index in zip(all_axes, indices, strict=True):
        theory = variances if index == 0 and quantity.at[0] == 0 else None
        _draw_ridges(axes, quantity.histograms["z"], index, _rms_of_z(quantity, index), theory)
    return figure


@np.errstate(over="ignore", invalid="ignore")
def mean_field_variances(config: Config, task: Task) -> Array | None:
    """Return the variances q_l (L,) of z_l in a wide network with initial weights, the mean over the measured examples.

        q_1 = sigma_w^2 q_0 + sigma_b^2        q_l = V(q_{l-1})        q_0 = |x|^2 / n_0, for each example

    The theory is about plain networks in the standard parametrization. Returns None for other kinds and parametrizations, for
    weights that are all 0, and where a q_l is not finite.
    """
    network = config.network
    is_other_kind = network.kind != "plain" or network.parametrization != "standard" or network.gamma is not None
    if is_other_kind or weight_variance(network.initializer, network.gain) == 0:
        return None
    x = task.dataset.x[:, : config.instruments.examples or config.training.batch_size]
    q = (x * x).mean(axis=0)
    means: list[float] = []
    for n_prev, n_l in pairwise(sizes(config, task)):
        field = MeanField(network.activation, _weight_variance(config, n_prev, n_l), network.bias_variance)
        q = field.variance_map(q) if means else field.weight_variance * q + field.bias_variance
        if not np.isfinite(q).all():
            return None
        means.append(float(q.mean()))
    return np.array(means)


def _weight_variance(config: Config, n_prev: int, n: int) -> float:
    """Return n_{l-1} Var W_ij of a block of n units with n_prev inputs; see `blocks.initializers`."""
    initializer = config.network.initializer
    factor = 1.0
    if initializer.startswith("glorot"):
        factor = 2 * n_prev / (n_prev + n)
    elif initializer == "orthogonal":
        factor = n_prev / max(n, n_prev)
    return factor * weight_variance(initializer, config.network.gain)


def _new_panels(quantity: Quantity, title: str, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with one pair of axes for the first step and one for the last step."""
    indices = first_and_last_index(quantity)
    figure = Figure(figsize=(1 + 6 * len(indices), height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    all_axes = list(figure.subplots(1, len(indices), squeeze=False).flat)
    for axes, index in zip(all_axes, indices, strict=True):
        updates = int(quantity.at[index])
        axes.set_title("before training" if updates == 0 else f"after {updates} updates", fontsize=9)
    return figure, all_axes


def _label(quantity: Quantity, symbol: str, index: int, block: int, saturated: str) -> str:
    """Return the text of a block in a legend."""
    numbers = {name: select_number(quantity, name)[index, block] for name in (f"{symbol}_std", "saturated", "grad_data")}
    parts = [f"{block + 1}", f"std {numbers[f'{symbol}_std']:.2g}"]
    if symbol == "a" and numbers["saturated"] > 0:
        parts.append(f"{100 * numbers['saturated']:.0f} % {saturated}")
    if symbol == "dW":
        parts.append(f"grad : data {numbers['grad_data']:.1g}")
    return ", ".join(parts)


def _rms_of_z(quantity: Quantity, index: int) -> Array:
    """Return the root mean square of z, (L,)."""
    return np.hypot(select_number(quantity, "z_std")[index], select_number(quantity, "z_mean")[index])


def _draw_block_legend(axes: Axes) -> None:
    axes.legend(fontsize=7, frameon=False, title="block", title_fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_values(axes: Axes, edges: Array, blocks: Array, deviations: Array) -> None:
    """Draw the density of v on a linear axis, a line for each block. blocks: counts (L, B). deviations: (L,)."""
    limit, width = _limit_and_bin_width(deviations)
    highest = 0.0
    for counts, colour in zip(blocks, _colours(len(blocks)), strict=True):
        inner_edges, density = _density(edges, counts, width)
        centres = (inner_edges[1:] + inner_edges[:-1]) / 2
        axes.plot(centres, density, color=colour, linewidth=1.2)
        # The bin at 0 does not count: half of relu's activations are in it, and the other densities would look flat.
        highest = max(highest, float(density[(np.abs(centres) > 0) & (np.abs(centres) < limit)].max(initial=0.0)))
    axes.set(xlim=(-limit, limit), xlabel="value", ylabel="density")
    if highest > 0:
        axes.set_ylim(0, 1.15 * highest)


def _draw_magnitudes(axes: Axes, edges: Array, blocks: Array, deviations: Array) -> None:
    """Draw the density of log10 |v|, a line for each block. blocks: counts (L, B)."""
    inner_edges = edges[1:-1]
    decades = np.diff(np.log10(inner_edges))
    is_populated = blocks[:, 1:-1].any(axis=0)
    for counts, colour in zip(blocks, _colours(len(blocks)), strict=True):
        density = counts[1:-1] / (max(int(counts.sum()), 1) * decades)
        axes.plot(np.sqrt(inner_edges[1:] * inner_edges[:-1]), density, color=colour, linewidth=1.2)
    axes.set(xscale="log", xlabel="size", ylabel="density by decade")
    # Block L's da is the gradient of the loss, which may have few different values: its line is too high to set the limit.
    heights = [float(np.asarray(line.get_ydata()).max()) for line in axes.get_lines()]
    axes.set_ylim(0, 1.15 * max(heights[:-1] or heights) or None)
    if is_populated.any():
        axes.set_xlim(inner_edges[:-1][is_populated][0], inner_edges[1:][is_populated][-1])


def _draw_ridges(axes: Axes, histogram: Histogram, index: int, rms: Array, variances: Array | None) -> None:
    """Draw a ridge for each block, block 1 on top, with the normal density over it. rms, variances: (L,)."""
    depth = histogram.counts.shape[-2]
    # The logits do not count: those of a trained network are so large that the other ridges would look narrow.
    hidden = slice(max(depth - 1, 1))
    limit, width = _limit_and_bin_width(rms[hidden] if variances is None else np.append(rms[hidden], np.sqrt(variances[hidden])))
    z = np.linspace(-limit, limit, 400)
    for block, colour in enumerate(_colours(depth)):
        edges, density = _density(histogram.edges, histogram.counts[index, block], width)
        normal = np.zeros_like(z)
        if variances is not None and variances[block] > 0:
            normal = np.exp(-z * z / (2 * variances[block])) / np.sqrt(2 * np.pi * variances[block])
        height = OVERLAP / max(float(density.max(initial=0.0)), float(normal.max()), np.finfo(float).tiny)
        # A lower ridge is in front of a higher one.
        axes.stairs(height * density - block, edges, baseline=-block, fill=True, color=colour, alpha=0.75, zorder=2 * block)
        if variances is not None:
            label = r"theory: $N(0, q_l)$" if block == 0 else "_"
            axes.plot(z, height * normal - block, color="black", linewidth=1, zorder=2 * block + 1, label=label)
    labelled_blocks = evenly_spaced(depth, 2 * MAX_LEGEND_BLOCKS)
    axes.set_yticks(-labelled_blocks, [str(block + 1) for block in labelled_blocks])
    axes.set(xlim=(-limit, limit), ylim=(0.4 - depth, OVERLAP + 0.2), xlabel="z", ylabel="block l")
    if variances is not None:
        axes.legend(fontsize=7, frameon=False, loc="upper right")


def _limit_and_bin_width(deviations: Array) -> tuple[float, float]:
    """Return the limit of an axis for values with those standard deviations, and the smallest width of its bins."""
    finite = deviations[np.isfinite(deviations)]
    largest = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    # The width is a power of two, as the widths of the stored bins are.
    return DEVIATIONS * largest, float(2.0 ** np.floor(np.log2(largest / FINENESS)))


def _density(edges: Array, counts: Array, width: float) -> tuple[Array, Array]:
    """Return the edges and the density of the stored bins, merged into bins that are at least `width` wide."""
    inner_edges, inner_counts = edges[1:-1], counts[1:-1]
    coarse_indices = np.flatnonzero(inner_edges % width == 0)
    if len(coarse_indices) > 1:
        inner_counts = np.add.reduceat(inner_counts[: coarse_indices[-1]], coarse_indices[:-1])
        inner_edges = inner_edges[coarse_indices]
    return inner_edges, inner_counts / (max(int(counts.sum()), 1) * np.diff(inner_edges))


def _colours(count: int) -> Array:
    """Return a colour for each block, from dark to light."""
    return colormaps["viridis"](np.linspace(0, 0.9, count))
