"""Studies of how the best learning rate moves with the size of a network."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blocks.arrays import Array
from experiments.pictures.studies.study import Observed, Study, Verdict, grouped, require
from experiments.run.config import Config
from experiments.run.measure import best_rate

# The best rates of one key's values are within this factor of each other where the rate transfers.
TRANSFERS = 2.0


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


def _transfer(config: Config) -> None:
    require("transfer", config, ("optimizer.block_rates", config.optimizer.block_rates is None, "null"))


STUDIES = {"transfer": Study(transfer, _transfer)}
