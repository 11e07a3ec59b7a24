"""The study of the gradient noise scale, the batch size above which larger batches save fewer and fewer updates."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from blocks.arrays import Array
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS
from experiments.pictures.studies.study import ObservedRun, Study, Verdict, require
from experiments.run.config import Config
from experiments.run.data import load_task

# The updates are counted until the training loss is this one.
TARGET_LOSS = 0.1


def noise_scale(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the fewest updates to a training loss by batch size, and S_min (1 + B / batch size) with the noise scale B."""
    figure, axes = figures.new_axes(f"updates to a training loss of {TARGET_LOSS:g}, at each batch size's best rate")
    sizes, updates, scales = [], [], []
    for (batch_size, _), size_runs in _group_by_size(runs).items():
        step, run = min(((_updates_to_target(run), run) for run in size_runs), key=lambda pair: pair[0])
        if np.isfinite(step):
            quantity = run.history.quantities["noise_scale"]
            sizes.append(batch_size)
            updates.append(step)
            scales.append(_mean_until(step, quantity.at, quantity.values[:, 0]))
    if len(set(sizes)) < 3:
        return figure, Verdict(f"fewer than three batch sizes reach a training loss of {TARGET_LOSS:g}", None)
    B, S, batch_sizes = float(np.exp(np.nanmean(np.log(scales)))), np.array(updates), np.array(sizes)
    fitted_B, S_min = _fit(batch_sizes, S)
    curve_sizes = np.geomspace(batch_sizes.min(), batch_sizes.max(), 100)
    axes.plot(batch_sizes, S, "o", color=COLOURS[0], label="measured")
    axes.plot(curve_sizes, S_min * (1 + fitted_B / curve_sizes), color=COLOURS[0], linewidth=1, label=f"fit: B = {fitted_B:.0f}")
    predicted_S_min = np.exp(np.mean(np.log(S / (1 + B / batch_sizes))))
    axes.plot(
        curve_sizes,
        predicted_S_min * (1 + B / curve_sizes),
        color=COLOURS[1],
        linestyle="--",
        label=f"noise scale on the way: B = {B:.0f}",
    )
    for scale, colour in ((fitted_B, COLOURS[0]), (B, COLOURS[1])):
        axes.axvline(scale, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="batch size", ylabel="updates", xscale="log", yscale="log")
    axes.set_xticks(sorted(set(sizes)), [str(size) for size in sorted(set(sizes))])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8, frameon=False)
    text = f"the updates fall as 1 + B / batch size with B = {fitted_B:.0f}, beyond which returns diminish; the gradient noise "
    text += f"scale on the way is {B:.0f}, {B / fitted_B:.1f} times it"
    return figure, Verdict(text, bool(1 / 2 <= B / fitted_B <= 2))


def _group_by_size(runs: Sequence[ObservedRun]) -> dict[tuple[int, int], list[ObservedRun]]:
    """Return the runs, one for each rate, by (batch size, seed) in ascending order."""
    groups: dict[tuple[int, int], list[ObservedRun]] = {}
    for run in runs:
        batch_size = run.config.training.batch_size or load_task(run.config).dataset.x.shape[-1]
        groups.setdefault((batch_size, run.config.seed), []).append(run)
    return dict(sorted(groups.items()))


def _updates_to_target(run: ObservedRun) -> float:
    """Return the number of updates until the loss is TARGET_LOSS, inf where it never is.

    The logarithm of the loss is interpolated between the ends of two epochs.
    """
    history = run.history
    loss, steps = history.measures["loss/train"], history.evaluated
    indices_below = np.flatnonzero(loss <= TARGET_LOSS)
    if run.outcome == "diverged" or not indices_below.size or indices_below[0] == 0:
        return np.inf
    neighbours = slice(indices_below[0] - 1, indices_below[0] + 1)
    return float(np.interp(-np.log(TARGET_LOSS), -np.log(loss[neighbours]), steps[neighbours]))


def _mean_until(step: float, steps: Array, values: Array) -> float:
    """Return the geometric mean over the updates before `step`, with the logarithm interpolated between measured steps."""
    is_known = np.isfinite(values) & (values > 0)
    if not is_known.any():
        return np.nan
    return float(np.exp(np.interp(np.arange(max(step, 1)), steps[is_known], np.log(values[is_known])).mean()))


def _fit(sizes: Array, updates: Array) -> tuple[float, float]:
    """Return B and S_min of the least-squares fit of log updates = log S_min + log(1 + B / size)."""
    from scipy.optimize import minimize_scalar

    def residuals(log_B: float) -> Array:
        return np.log(updates / (1 + np.exp(log_B) / sizes))

    log_B = minimize_scalar(lambda log_B: residuals(log_B).var(), bounds=(-3, 12), method="bounded").x
    return float(np.exp(log_B)), float(np.exp(residuals(log_B).mean()))


def _check(config: Config) -> None:
    optimizer, is_measured = config.optimizer, config.instruments.noise_scale is not None
    require(
        "noise_scale",
        config,
        ("instruments.noise_scale", is_measured, "a schedule"),
        ("optimizer.name", optimizer.name == "gradient_descent", "gradient_descent"),
        ("optimizer.schedule", optimizer.schedule == "constant", "constant"),
        ("training.evaluations", config.training.evaluations > config.training.epochs, "more than training.epochs, one an epoch"),
    )


STUDIES = {"noise_scale": Study(noise_scale, _check)}
