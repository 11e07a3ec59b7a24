"""The study of warm-up: which rates train with it, and how the sharpness changes during it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from blocks.arrays import Array
from blocks.schedules import rate_schedule
from experiments.pictures.figures import COLOURS
from experiments.pictures.studies.curvature import curvature_check
from experiments.pictures.studies.study import ObservedRun, Study, Verdict, group_runs, largest_rate, require
from experiments.run.config import Config
from experiments.run.data import load_task
from experiments.run.stack import steps_of

# A sharpness of at most so many times 2 / rate counts as one at the edge of stability.
MAX_EDGE_RATIO = 1.1


def warm_up(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the largest rate that trains, times the first sharpness lambda_0, by warm-up; and the sharpness with 2 / rate_t."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left_axes, right_axes = figure.subplots(1, 2)
    means: dict[float, float] = {}
    is_below: list[bool] = []
    for colour, ((length,), length_runs) in zip(COLOURS, group_runs(runs, "optimizer.warmup").items(), strict=False):
        largest = []
        for (seed,), seed_runs in group_runs(length_runs, "seed").items():
            lambda_0, rate = float(seed_runs[0].history.quantities["sharpness"].values[0, 0]), largest_rate(seed_runs)
            largest.append(rate * lambda_0)
            left_axes.plot(length, largest[-1], "o", color=colour)
            for run in [run for run in seed_runs if run.config.optimizer.learning_rate == rate]:
                steps, sharpness, edge = _sharpness_and_edge(run)
                is_below.append(bool(np.nanmedian((sharpness / edge)[edge == edge.min()]) <= MAX_EDGE_RATIO))
                if seed == runs[0].config.seed:
                    label = f"warm-up {length:g}, rate {largest[-1]:.2g} / $\\lambda_0$"
                    right_axes.plot(steps + 1, sharpness / lambda_0, color=colour, label=label)
                    right_axes.plot(steps + 1, edge / lambda_0, "--", color=colour, linewidth=1)
        means[length] = float(np.exp(np.mean(np.log(largest)))) if min(largest) > 0 else 0.0
    lengths, rates = list(means), np.array(list(means.values()))
    left_axes.plot(lengths, rates, color="0.5", zorder=0, label="mean of the logarithm")
    left_axes.axhline(4, color="0.5", linestyle=":", label="linear networks, no warm-up: 4")
    left_axes.set(
        xlabel="warm-up (updates)",
        ylabel=r"learning rate $\times\ \lambda_0$",
        title="the largest rate that trains, a dot a seed",
    )
    left_axes.set(xscale="log", yscale="log", ylim=(3, None))
    left_axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    left_axes.set_yticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    left_axes.minorticks_off()
    left_axes.legend(fontsize=8, frameon=False)
    title = "its sharpness; dashed: 2 / rate of the update"
    right_axes.set(xlabel="update", ylabel=r"sharpness / $\lambda_0$", title=title, xscale="log", yscale="log", ylim=(0.02, 3))
    right_axes.legend(fontsize=7, frameon=False, loc="lower left")
    by_length = ", ".join(f"{rate:.1f} with {length:g}" for length, rate in means.items())
    text = f"the largest rate that trains is, in units of 1 / lambda_0, {by_length} updates of warm-up; after it the sharpness "
    text += f"is at most {MAX_EDGE_RATIO:g} times 2 / rate in {sum(is_below)} of {len(is_below)} of these runs"
    return figure, Verdict(text, bool((np.diff(rates) >= 0).all() and rates[-1] >= 2 * rates[0] > 0))


def _sharpness_and_edge(run: ObservedRun) -> tuple[Array, Array, Array]:
    """Return the updates at which the sharpness was measured, the sharpness, and 2 / rate_t, the edge at these updates."""
    optimizer, quantity = run.config.optimizer, run.history.quantities["sharpness"]
    factor = rate_schedule(optimizer.schedule, optimizer.warmup, steps_of(run.config, load_task(run.config)))
    rates = optimizer.learning_rate * np.array([factor(int(step)) for step in quantity.at])
    return quantity.at, quantity.values[:, 0], 2 / rates


def _check(config: Config) -> None:
    curvature_check("warm_up")(config)
    require("warm_up", config, ("optimizer.warmup", config.optimizer.warmup >= 1, "updates, 1 for no warm-up"))


STUDIES = {"warm_up": Study(warm_up, _check)}
