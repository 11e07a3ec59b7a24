"""Studies of how the best learning rate changes with the size of a network, and with the strength of feature learning."""

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
from experiments.pictures.studies.study import ObservedRun, Study, Verdict, group_runs, require
from experiments.run.config import Config
from experiments.run.measure import best_rate

# The rate transfers where the largest of the best rates is at most so many times the smallest.
MAX_DRIFT = 2.0
# The largest gamma that is small, the smallest gamma that is large, and the tolerance of a fitted exponent.
MAX_LAZY_GAMMA, MIN_RICH_GAMMA, EXPONENT_TOLERANCE = 0.01, 10.0, 0.2
# The colours of a map end at this loss, that of the best constant prediction on digits.
MAX_LOSS = 0.45


def transfer(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the last epoch's training loss against the rate, a line for every width and depth, by parametrization."""
    by_name = group_runs(runs, "network.parametrization")
    figure = Figure(figsize=(9, 1 + 3.2 * len(by_name)), layout="constrained")
    all_axes = figure.subplots(len(by_name), 2, sharex=True, sharey=True, squeeze=False)
    results, holds = [], True
    for axes_row, ((name,), named_runs) in zip(all_axes[::-1], by_name.items(), strict=True):
        drifts = []
        for axes, key, fixed_key in zip(axes_row, ("width", "depth"), ("depth", "width"), strict=True):
            series = max(
                group_runs(named_runs, f"network.{fixed_key}").values(),
                key=lambda size_runs: len(group_runs(size_runs, f"network.{key}")),
            )
            best_rates = _draw_losses(axes, series, key)
            fixed_value = getattr(series[0].config.network, fixed_key)
            axes.set_title(f"{name}: every {key} at {fixed_key} {fixed_value}", fontsize=10)
            drifts.append(max(best_rates) / min(best_rates))
            results.append(f"{name}, by {key} {min(best_rates):.2g} to {max(best_rates):.2g} ({drifts[-1]:.1f} times)")
        holds &= (max(drifts) <= MAX_DRIFT) if name == "mup" else (min(drifts) > MAX_DRIFT)
    for axes in all_axes[-1]:
        axes.set_xlabel("learning rate")
    for axes in all_axes[:, 0]:
        axes.set_ylabel("training loss, last epoch")
    text = f"the best rate stays within a factor of {MAX_DRIFT:g} with mup, and does not with standard: "
    return figure, Verdict(text + "; ".join(results), holds and len(by_name) > 1)


def _draw_losses(axes: Axes, runs: Sequence[ObservedRun], key: str) -> list[float]:
    """Draw a line for each of the key's values with its best rate marked, and return the best rates."""
    groups, best_rates = group_runs(runs, f"network.{key}"), []
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    for colour, ((value,), value_runs) in zip(colours, groups.items(), strict=True):
        rates, losses = _losses_by_rate(value_runs)
        axes.plot(rates, losses, color=colour, linewidth=1, label=str(value))
        best_rates.append(best_rate(rates, losses))
        axes.plot(best_rates[-1], np.nanmin(losses), "o", color=colour)
    axes.set(xscale="log", yscale="log")
    axes.legend(title=key, fontsize=7, title_fontsize=8, frameon=False)
    return best_rates


def _losses_by_rate(runs: Sequence[ObservedRun]) -> tuple[Array, Array]:
    """Return the rates and the last epoch's training loss at each: the geometric mean over seeds, nan where one diverged."""
    groups = group_runs(runs, "optimizer.learning_rate")
    losses = [np.exp(np.mean([np.log(run.history.epoch_loss()[-1]) for run in rate_runs])) for rate_runs in groups.values()]
    return np.array([rate for (rate,) in groups]), np.array(losses)


def feature_learning(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the last epoch's training loss by gamma and rate, a map for each depth, with lines of gamma^2 and gamma^(2 / L)."""
    by_depth = group_runs(runs, "network.depth")
    figure = Figure(figsize=(1.5 + 4 * len(by_depth), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(by_depth), sharex=True, sharey=True, squeeze=False)[0]
    results, holds = [], True
    for axes, ((depth,), depth_runs) in zip(all_axes, by_depth.items(), strict=True):
        gammas, best_rates, image = _draw_map(axes, depth_runs)
        axes.set_title(f"depth L = {depth}")
        for word, name, selected, exponent, style in (
            ("small", r"$\gamma^2$", gammas <= MAX_LAZY_GAMMA, 2.0, "-"),
            ("large", r"$\gamma^{2/L}$", gammas >= MIN_RICH_GAMMA, 2 / depth, "--"),
        ):
            fitted = _draw_power(
                axes, gammas[selected], best_rates[selected], exponent, color=DIVERGED, linestyle=style, label=name
            )
            results.append(f"depth {depth}, {word} gamma {fitted:.2f} ({exponent:.2f})")
            holds &= abs(fitted - exponent) <= EXPONENT_TOLERANCE
        axes.legend(fontsize=8, loc="lower right", framealpha=1)
    all_axes[0].set_ylabel("learning rate")
    figure.colorbar(image, ax=list(all_axes), label="training loss, last epoch (grey: diverged)", extend="max")
    text = f"the best rate's exponent of gamma, up to {MAX_LAZY_GAMMA:g} and from {MIN_RICH_GAMMA:g} on (in theory): "
    return figure, Verdict(text + "; ".join(results), holds)


def _draw_map(axes: Axes, runs: Sequence[ObservedRun]) -> tuple[Array, Array, QuadMesh]:
    """Draw the losses as colours by gamma and rate, and the best rates. Returns the gammas, the best rates, and the map."""
    columns = {gamma: _losses_by_rate(gamma_runs) for (gamma,), gamma_runs in group_runs(runs, "network.gamma").items()}
    gammas, best_rates = np.array(list(columns)), np.array([best_rate(*column) for column in columns.values()])
    (rates, _), *_ = columns.values()
    losses = np.array([losses for _, losses in columns.values()]).T
    scale = LogNorm(float(np.nanmin(losses)), MAX_LOSS)
    image = axes.pcolormesh(gammas, rates, losses, cmap="viridis_r", norm=scale, shading="nearest")
    axes.plot(gammas, best_rates, "o", color="white", markeredgecolor="black", label="best rate")
    axes.set(xscale="log", yscale="log", facecolor="0.85", xlabel=r"strength of feature learning $\gamma$")
    return gammas, best_rates, image


def _draw_power(axes: Axes, x: Array, y: Array, exponent: float, **style: Any) -> float:
    """Draw x^exponent through the mean of (log x, log y), and return the fitted exponent, nan for fewer than two points."""
    if len(x) < 2:
        return np.nan
    log_x, log_y = np.log(x), np.log(y)
    axes.plot(x, np.exp(log_y.mean() + exponent * (log_x - log_x.mean())), linewidth=2, **style)
    return float(np.polyfit(log_x, log_y, 1)[0])


def _one_rate_check(study: str) -> Callable[[Config], None]:
    def check(config: Config) -> None:
        require(study, config, ("optimizer.block_rates", config.optimizer.block_rates is None, "null"))

    return check


def _check_feature_learning(config: Config) -> None:
    _one_rate_check("feature_learning")(config)
    rules = "gradient_descent, momentum, nesterov"
    require(
        "feature_learning",
        config,
        ("network.gamma", config.network.gamma is not None, "a number"),
        ("optimizer.name", not OPTIMIZERS[config.optimizer.name].scale_free, rules),
    )


STUDIES = {
    "transfer": Study(transfer, _one_rate_check("transfer")),
    "feature_learning": Study(feature_learning, _check_feature_learning),
}
