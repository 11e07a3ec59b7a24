"""Studies of how the best learning rate moves with the size of a network, and with the strength of feature learning."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from blocks.arrays import Array
from blocks.optimizers import OPTIMIZERS
from experiments.pictures.figures import DIVERGED
from experiments.pictures.studies.study import Observed, Study, Verdict, grouped, require
from experiments.run.config import Config
from experiments.run.measure import best_rate

# The best rates of one key's values are within this factor of each other where the rate transfers.
TRANSFERS = 2.0
# Up to here gamma is small, and from here on large; the exponents found may be so far from theory's.
LAZY, RICH, OFF = 0.01, 10.0, 0.2
# Where the colours of a loss end: that of the best constant prediction of digits is 0.45.
HIGHEST = 0.45


def transfer(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The last epoch's training loss against the rate, a line for every width and for every depth, by parametrization."""
    by_name = grouped(runs, "network.parametrization")
    figure = Figure(figsize=(9, 1 + 3.2 * len(by_name)), layout="constrained")
    all_axes = figure.subplots(len(by_name), 2, sharex=True, sharey=True, squeeze=False)
    told, holds = [], True
    for row, ((name,), alike) in zip(all_axes[::-1], by_name.items(), strict=True):
        drifts = []
        for axes, key, other in zip(row, ("width", "depth"), ("depth", "width"), strict=True):
            series = max(grouped(alike, f"network.{other}").values(), key=lambda same: len(grouped(same, f"network.{key}")))
            best = _draw_losses(axes, series, key)
            fixed = getattr(series[0].config.network, other)
            axes.set_title(f"{name}: every {key} at {other} {fixed}", fontsize=10)
            drifts.append(max(best) / min(best))
            told.append(f"{name}, by {key} {min(best):.2g} to {max(best):.2g} ({drifts[-1]:.1f} times)")
        holds &= (max(drifts) <= TRANSFERS) if name == "mup" else (min(drifts) > TRANSFERS)
    for axes in all_axes[-1]:
        axes.set_xlabel("learning rate")
    for axes in all_axes[:, 0]:
        axes.set_ylabel("training loss, last epoch")
    text = f"the best rate stays within a factor of {TRANSFERS:g} with mup, and does not with standard: "
    return figure, Verdict(text + "; ".join(told), holds and len(by_name) > 1)


def _draw_losses(axes: Axes, runs: Sequence[Observed], key: str) -> list[float]:
    """A line for each of the key's values, its best rate marked; the best rates."""
    groups, best = grouped(runs, f"network.{key}"), []
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    for colour, ((value,), alike) in zip(colours, groups.items(), strict=True):
        rates, losses = _by_rate(alike)
        axes.plot(rates, losses, color=colour, linewidth=1, label=str(value))
        best.append(best_rate(rates, losses))
        axes.plot(best[-1], np.nanmin(losses), "o", color=colour)
    axes.set(xscale="log", yscale="log")
    axes.legend(title=key, fontsize=7, title_fontsize=8, frameon=False)
    return best


def _by_rate(runs: Sequence[Observed]) -> tuple[Array, Array]:
    """The rates, and the last epoch's training loss at each: its geometric mean over seeds, nan where one diverged."""
    groups = grouped(runs, "optimizer.learning_rate")
    losses = [np.exp(np.mean([np.log(run.history.epoch_loss()[-1]) for run in alike])) for alike in groups.values()]
    return np.array([rate for (rate,) in groups]), np.array(losses)


def feature_learning(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The last epoch's training loss by gamma and rate, a map a depth, the best rates with lines of gamma^2 and gamma^(2 / L)."""
    by_depth = grouped(runs, "network.depth")
    figure = Figure(figsize=(1.5 + 4 * len(by_depth), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(by_depth), sharex=True, sharey=True, squeeze=False)[0]
    told, holds = [], True
    for axes, ((depth,), alike) in zip(all_axes, by_depth.items(), strict=True):
        gammas, best, image = _draw_map(axes, alike)
        axes.set_title(f"depth L = {depth}")
        for word, name, which, exponent, style in (
            ("small", r"$\gamma^2$", gammas <= LAZY, 2.0, "-"),
            ("large", r"$\gamma^{2/L}$", gammas >= RICH, 2 / depth, "--"),
        ):
            found = _draw_power(axes, gammas[which], best[which], exponent, color=DIVERGED, linestyle=style, label=name)
            told.append(f"depth {depth}, {word} gamma {found:.2f} ({exponent:.2f})")
            holds &= abs(found - exponent) <= OFF
        axes.legend(fontsize=8, loc="lower right", framealpha=1)
    all_axes[0].set_ylabel("learning rate")
    figure.colorbar(image, ax=list(all_axes), label="training loss, last epoch (grey: diverged)", extend="max")
    text = f"the best rate's exponent of gamma, up to {LAZY:g} and from {RICH:g} on (in theory): "
    return figure, Verdict(text + "; ".join(told), holds)


def _draw_map(axes: Axes, runs: Sequence[Observed]) -> tuple[Array, Array, QuadMesh]:
    """Losses as colours by gamma and rate, the best rate of every gamma marked; the gammas, these rates, and the map."""
    columns = {gamma: _by_rate(alike) for (gamma,), alike in grouped(runs, "network.gamma").items()}
    gammas, best = np.array(list(columns)), np.array([best_rate(*column) for column in columns.values()])
    (rates, _), *_ = columns.values()
    losses = np.array([losses for _, losses in columns.values()]).T
    scale = LogNorm(float(np.nanmin(losses)), HIGHEST)
    image = axes.pcolormesh(gammas, rates, losses, cmap="viridis_r", norm=scale, shading="nearest")
    axes.plot(gammas, best, "o", color="white", markeredgecolor="black", label="best rate")
    axes.set(xscale="log", yscale="log", facecolor="0.85", xlabel=r"strength of feature learning $\gamma$")
    return gammas, best, image


def _draw_power(axes: Axes, x: Array, y: Array, exponent: float, **look: Any) -> float:
    """A line of x^exponent through the middle of (x, y); the exponent that y has, nan of fewer than two."""
    if len(x) < 2:
        return np.nan
    log_x, log_y = np.log(x), np.log(y)
    axes.plot(x, np.exp(log_y.mean() + exponent * (log_x - log_x.mean())), linewidth=2, **look)
    return float(np.polyfit(log_x, log_y, 1)[0])


def _one_rate(study: str) -> Callable[[Config], None]:
    def needs(config: Config) -> None:
        require(study, config, ("optimizer.block_rates", config.optimizer.block_rates is None, "null"))

    return needs


def _feature_learning(config: Config) -> None:
    _one_rate("feature_learning")(config)
    rules = "gradient_descent, momentum, nesterov"
    require(
        "feature_learning",
        config,
        ("network.gamma", config.network.gamma is not None, "a number"),
        ("optimizer.name", not OPTIMIZERS[config.optimizer.name].scale_free, rules),
    )


STUDIES = {
    "transfer": Study(transfer, _one_rate("transfer")),
    "feature_learning": Study(feature_learning, _feature_learning),
}
