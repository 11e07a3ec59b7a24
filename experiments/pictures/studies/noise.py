"""The study of the gradient noise scale: the batch size from which on larger ones save ever fewer updates."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from blocks.arrays import Array
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS
from experiments.pictures.studies.study import Observed, Study, Verdict, require
from experiments.run.config import Config
from experiments.run.data import load_task

# The training loss to which the updates are counted.
REACHED = 0.1


def noise_scale(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The fewest updates to a training loss by batch size, and S_min (1 + B / batch size), B the noise scale on the way."""
    figure, axes = figures.new_axes(f"updates to a training loss of {REACHED:g}, at each batch size's best rate")
    sizes, updates, scales = [], [], []
    for (batch_size, _), alike in _by_size(runs).items():
        reached, run = min(((_updates(run), run) for run in alike), key=lambda pair: pair[0])
        if np.isfinite(reached):
            measured = run.history.quantities["noise_scale"]
            sizes.append(batch_size)
            updates.append(reached)
            scales.append(_mean_until(reached, measured.at, measured.values[:, 0]))
    if len(set(sizes)) < 3:
        return figure, Verdict(f"fewer than three batch sizes reach a training loss of {REACHED:g}", None)
    B, S, at = float(np.exp(np.nanmean(np.log(scales)))), np.array(updates), np.array(sizes)
    fitted, least = _fit(at, S)
    fine = np.geomspace(at.min(), at.max(), 100)
    axes.plot(at, S, "o", color=COLOURS[0], label="measured")
    axes.plot(fine, least * (1 + fitted / fine), color=COLOURS[0], linewidth=1, label=f"fit: B = {fitted:.0f}")
    predicted = np.exp(np.mean(np.log(S / (1 + B / at))))
    axes.plot(fine, predicted * (1 + B / fine), color=COLOURS[1], linestyle="--", label=f"noise scale on the way: B = {B:.0f}")
    for scale, colour in ((fitted, COLOURS[0]), (B, COLOURS[1])):
        axes.axvline(scale, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="batch size", ylabel="updates", xscale="log", yscale="log")
    axes.set_xticks(sorted(set(sizes)), [str(size) for size in sorted(set(sizes))])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8, frameon=False)
    text = f"the updates fall as 1 + B / batch size with B = {fitted:.0f}, beyond which returns diminish; the gradient noise "
    text += f"scale on the way is {B:.0f}, {B / fitted:.1f} times it"
    return figure, Verdict(text, bool(1 / 2 <= B / fitted <= 2))


def _by_size(runs: Sequence[Observed]) -> dict[tuple[int, int], list[Observed]]:
    """(batch size, seed) -> its runs, one a rate; ascending."""
    groups: dict[tuple[int, int], list[Observed]] = {}
    for run in runs:
        batch_size = run.config.training.batch_size or load_task(run.config).dataset.x.shape[-1]
        groups.setdefault((batch_size, run.config.seed), []).append(run)
    return dict(sorted(groups.items()))


def _updates(run: Observed) -> float:
    """The updates to the loss REACHED, the logarithm of the loss interpolated between two epochs' ends; inf where it is not."""
    history = run.history
    loss, at = history.measures["loss/train"], history.evaluated
    below = np.flatnonzero(loss <= REACHED)
    if run.outcome == "diverged" or not below.size or below[0] == 0:
        return np.inf
    ends = slice(below[0] - 1, below[0] + 1)
    return float(np.interp(-np.log(REACHED), -np.log(loss[ends]), at[ends]))


def _mean_until(step: float, at: Array, values: Array) -> float:
    """The mean of the logarithm over the updates before `step`, raised again; what is missing between two is interpolated."""
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return np.nan
    return float(np.exp(np.interp(np.arange(max(step, 1)), at[known], np.log(values[known])).mean()))


def _fit(sizes: Array, updates: Array) -> tuple[float, float]:
    """B and S_min of log updates = log S_min + log(1 + B / size), least squares."""
    from scipy.optimize import minimize_scalar

    def residuals(log_B: float) -> Array:
        return np.log(updates / (1 + np.exp(log_B) / sizes))

    log_B = minimize_scalar(lambda log_B: residuals(log_B).var(), bounds=(-3, 12), method="bounded").x
    return float(np.exp(log_B)), float(np.exp(residuals(log_B).mean()))


def _needs(config: Config) -> None:
    optimizer, measured = config.optimizer, config.instruments.noise_scale is not None
    require(
        "noise_scale",
        config,
        ("instruments.noise_scale", measured, "a schedule"),
        ("optimizer.name", optimizer.name == "gradient_descent", "gradient_descent"),
        ("optimizer.schedule", optimizer.schedule == "constant", "constant"),
        ("training.evaluations", config.training.evaluations > config.training.epochs, "more than training.epochs, one an epoch"),
    )


STUDIES = {"noise_scale": Study(noise_scale, _needs)}
