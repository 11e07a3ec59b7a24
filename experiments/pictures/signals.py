"""Pictures of the instrument `signals`: how z, a, da and dW are distributed, block by block, and how large updates are.

Each function takes a run's history and gives a figure:

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
# Blocks that a legend names.
LABELLED = 9
# Where updates of a thousandth of the weights are: what trains well is often near it (Karpathy).
USUAL = -3.0
# Bins a standard deviation, and how many of those a picture is wide.
FINENESS, DEVIATIONS = 8, 4.0
# How far a ridge reaches into the one above it.
OVERLAP = 1.6


def measured(history: History) -> Quantity:
    """What `instruments.signals` has measured; raises UserError where it was not asked for."""
    if NAME not in history.quantities:
        raise UserError("the run has not measured its signals by block: it must be trained with instruments.signals=log")
    return history.quantities[NAME]


def number(quantity: Quantity, name: str) -> Array:
    """(E, L) one of NUMBERS, of every measured step and block."""
    return quantity.values[:, NUMBERS.index(name)]


def first_and_last(quantity: Quantity) -> list[int]:
    """The places in `at` of the first and the last step at which something was measured, once where they are the same."""
    places = np.flatnonzero(np.isfinite(number(quantity, "z_std")).any(axis=-1))
    return sorted({int(places[0]), int(places[-1])}) if places.size else [0]


def distribution(history: History, symbol: str, saturated: str = "saturated") -> Figure:
    """Density of z or a, or of |da| or |dW| by decade, a line a block, at the first and the last measured step.

    The legend has the standard deviation; of a the share that is saturated; of dW grad:data, std(dW) / std(W).

    symbol: z, a, da or dW. saturated: the word for it, "dead" where the activation is relu.
    """
    quantity = measured(history)
    depth = quantity.values.shape[-1]
    draw = _values if symbol in ("z", "a") else _magnitudes
    figure, all_axes = _panels(quantity, f"{TITLES[symbol]} by block")
    for axes, place in zip(all_axes, first_and_last(quantity), strict=True):
        histogram = quantity.histograms[symbol]
        # Block L's a are the logits, which go far beyond what the others can be.
        count = depth - 1 if symbol == "a" and depth > 1 else depth
        draw(axes, histogram.edges, histogram.counts[place, :count], number(quantity, f"{symbol}_std")[place, :count])
        for block in evenly_spaced(count, LABELLED):
            axes.get_lines()[block].set_label(_label(quantity, symbol, place, block, saturated))
        _legend_of_blocks(axes)
    return figure


def update_to_data(history: History) -> Figure:
    """log10 of std(update) / std(W) by step, a line a block; -3 is a usual place to be."""
    quantity = measured(history)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title("update : data, std(update) / std(W), by block and step", fontsize=10)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log10(number(quantity, "update_data"))
    values[~np.isfinite(values)] = np.nan
    for block, colour in enumerate(_colours(values.shape[-1])):
        axes.plot(quantity.at + 1, values[:, block], color=colour, marker="o", markersize=2.5, linewidth=1.2)
    for block in evenly_spaced(values.shape[-1], LABELLED):
        axes.get_lines()[block].set_label(str(block + 1))
    axes.axhline(USUAL, color="black", linestyle="--", linewidth=1)
    # Where no value is finite, as of weights that are all 0, a log axis would find no limits.
    axes.set(xlabel="update", ylabel=r"$\log_{10}$ update : data", xscale="log", xlim=(0.9, 1.1 * (quantity.at[-1] + 1)))
    _legend_of_blocks(axes)
    return figure


def ridge(history: History, variances: Array | None = None) -> Figure:
    """Density of z, a ridge a block, at the first and the last measured step, each of its own height.

    variances: (L,) q_l of mean-field theory, see `mean_field_variances`: the normal density of that variance is drawn over the
        first step, which must then be the initial network.
    """
    quantity = measured(history)
    places = first_and_last(quantity)
    figure, all_axes = _panels(quantity, "pre-activations z by block", height=max(4.2, 1.5 + 0.28 * quantity.values.shape[-1]))
    for axes, place in zip(all_axes, places, strict=True):
        theory = variances if place == 0 and quantity.at[0] == 0 else None
        _ridges(axes, quantity.histograms["z"], place, _rms(quantity, place), theory)
    return figure


@np.errstate(over="ignore", invalid="ignore")
def mean_field_variances(config: Config, task: Task) -> Array | None:
    """(L,) the variance q_l of z_l in a wide network with initial weights, mean over the examples that are measured.

        q_1 = sigma_w^2 q_0 + sigma_b^2        q_l = V(q_{l-1})        q_0 = |x|^2 / n_0, of every example

    None for kinds and parametrizations other than plain and standard, of which this is the theory, for weights that are all 0,
    and where q_l leaves its range.
    """
    network = config.network
    others = network.kind != "plain" or network.parametrization != "standard" or network.gamma is not None
    if others or weight_variance(network.initializer, network.gain) == 0:
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
    """n_{l-1} Var W_ij of a block of n units with n_prev inputs; see `blocks.initializers`."""
    law = config.network.initializer
    unequal = 2 * n_prev / (n_prev + n) if law.startswith("glorot") else n_prev / max(n, n_prev) if law == "orthogonal" else 1.0
    return unequal * weight_variance(law, config.network.gain)


def _panels(quantity: Quantity, title: str, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with a pair of axes for each of the first and the last step."""
    places = first_and_last(quantity)
    figure = Figure(figsize=(1 + 6 * len(places), height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    all_axes = list(figure.subplots(1, len(places), squeeze=False).flat)
    for axes, place in zip(all_axes, places, strict=True):
        updates = int(quantity.at[place])
        axes.set_title("before training" if updates == 0 else f"after {updates} updates", fontsize=9)
    return figure, all_axes


def _label(quantity: Quantity, symbol: str, place: int, block: int, saturated: str) -> str:
    """A block in a legend."""
    of_block = {name: number(quantity, name)[place, block] for name in (f"{symbol}_std", "saturated", "grad_data")}
    words = [f"{block + 1}", f"std {of_block[f'{symbol}_std']:.2g}"]
    if symbol == "a" and of_block["saturated"] > 0:
        words.append(f"{100 * of_block['saturated']:.0f} % {saturated}")
    if symbol == "dW":
        words.append(f"grad : data {of_block['grad_data']:.1g}")
    return ", ".join(words)


def _rms(quantity: Quantity, place: int) -> Array:
    """(L,) the root mean square of z."""
    return np.hypot(number(quantity, "z_std")[place], number(quantity, "z_mean")[place])


def _legend_of_blocks(axes: Axes) -> None:
    axes.legend(fontsize=7, frameon=False, title="block", title_fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _values(axes: Axes, edges: Array, blocks: Array, deviations: Array) -> None:
    """Lines of the density of v, of which there are a sign and a linear axis. blocks: (L, B) counts."""
    limit, width = _extent(deviations)
    highest = 0.0
    for counts, colour in zip(blocks, _colours(len(blocks)), strict=True):
        inner, density = _density(edges, counts, width)
        middles = (inner[1:] + inner[:-1]) / 2
        axes.plot(middles, density, color=colour, linewidth=1.2)
        # Of a relu the half that is 0 would press all the others flat.
        highest = max(highest, float(density[(np.abs(middles) > 0) & (np.abs(middles) < limit)].max(initial=0.0)))
    axes.set(xlim=(-limit, limit), xlabel="value", ylabel="density")
    if highest > 0:
        axes.set_ylim(0, 1.15 * highest)


def _magnitudes(axes: Axes, edges: Array, blocks: Array, deviations: Array) -> None:
    """Lines of the density of log10 |v|. blocks: (L, B) counts."""
    inner = edges[1:-1]
    decades = np.diff(np.log10(inner))
    seen = blocks[:, 1:-1].any(axis=0)
    for counts, colour in zip(blocks, _colours(len(blocks)), strict=True):
        density = counts[1:-1] / (max(int(counts.sum()), 1) * decades)
        axes.plot(np.sqrt(inner[1:] * inner[:-1]), density, color=colour, linewidth=1.2)
    axes.set(xscale="log", xlabel="size", ylabel="density by decade")
    # The loss's gradient, block L's da, may have a value or two: as high a line would press the others flat.
    heights = [float(np.asarray(line.get_ydata()).max()) for line in axes.get_lines()]
    axes.set_ylim(0, 1.15 * max(heights[:-1] or heights) or None)
    if seen.any():
        axes.set_xlim(inner[:-1][seen][0], inner[1:][seen][-1])


def _ridges(axes: Axes, histogram: Histogram, place: int, rms: Array, variances: Array | None) -> None:
    """A ridge a block, block 1 on top, with the normal density over it."""
    depth = histogram.counts.shape[-2]
    # The logits of a trained network would press all others narrow.
    hidden = slice(max(depth - 1, 1))
    limit, width = _extent(rms[hidden] if variances is None else np.append(rms[hidden], np.sqrt(variances[hidden])))
    at = np.linspace(-limit, limit, 400)
    for block, colour in enumerate(_colours(depth)):
        edges, density = _density(histogram.edges, histogram.counts[place, block], width)
        normal = np.zeros_like(at)
        if variances is not None and variances[block] > 0:
            normal = np.exp(-at * at / (2 * variances[block])) / np.sqrt(2 * np.pi * variances[block])
        height = OVERLAP / max(float(density.max(initial=0.0)), float(normal.max()), np.finfo(float).tiny)
        # What stands lower is in front.
        axes.stairs(height * density - block, edges, baseline=-block, fill=True, color=colour, alpha=0.75, zorder=2 * block)
        if variances is not None:
            label = r"theory: $N(0, q_l)$" if block == 0 else "_"
            axes.plot(at, height * normal - block, color="black", linewidth=1, zorder=2 * block + 1, label=label)
    shown = evenly_spaced(depth, 2 * LABELLED)
    axes.set_yticks(-shown, [str(block + 1) for block in shown])
    axes.set(xlim=(-limit, limit), ylim=(0.4 - depth, OVERLAP + 0.2), xlabel="z", ylabel="block l")
    if variances is not None:
        axes.legend(fontsize=7, frameon=False, loc="upper right")


def _extent(deviations: Array) -> tuple[float, float]:
    """How far a picture of values of those standard deviations reaches, and how wide its bins are at least."""
    finite = deviations[np.isfinite(deviations)]
    largest = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    # A power of two, as the stored bins are.
    return DEVIATIONS * largest, float(2.0 ** np.floor(np.log2(largest / FINENESS)))


def _density(edges: Array, counts: Array, width: float) -> tuple[Array, Array]:
    """Edges and density of bins that are as wide as the stored ones, and at least so wide: those are put together."""
    inner, within = edges[1:-1], counts[1:-1]
    chosen = np.flatnonzero(inner % width == 0)
    if len(chosen) > 1:
        inner, within = inner[chosen], np.add.reduceat(within[: chosen[-1]], chosen[:-1])
    return inner, within / (max(int(counts.sum()), 1) * np.diff(inner))


def _colours(count: int) -> Array:
    """A colour a block, from dark to light."""
    return colormaps["viridis"](np.linspace(0, 0.9, count))
