"""The study of the largest learning rate that trains by depth, width and kind of block, and of how much of it is rounding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blocks.arrays import Array
from experiments.pictures.figures import COLOURS, MARKERS
from experiments.pictures.studies.study import ObservedRun, Study, Verdict, group_runs, largest_rate, require
from experiments.run.config import Config
from experiments.run.data import load_task
from experiments.run.stack import plan, train_stack
from experiments.run.tile import MAX_LANES, OTHER_DTYPE


def boundary(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the largest rate that trains against depth, by width and kind: its mean logarithm over seeds and a 95 % interval.

    C L^p n^q is fitted to the rates of each seed by least squares of the logarithm. An exponent is the mean over the seeds. The
    prediction from before any measurement: the rate of plain blocks falls with depth, and that of the other kinds falls less.
    """
    kinds, seeds = group_runs(runs, "network.kind"), len(group_runs(runs, "seed"))
    other = OTHER_DTYPE[runs[0].config.dtype]
    figure = Figure(figsize=(1 + 2.8 * len(kinds), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    exponents: dict[str, tuple[Array, Array]] = {}
    laws, n_outside, counts = [], 0, np.zeros(2, int)
    for axes, ((kind,), cell_runs) in zip(all_axes, kinds.items(), strict=True):
        depths, widths, rates = _rates(cell_runs)
        n_outside += int(np.isnan(rates).sum())
        (p, q), (p_half, q_half) = exponents[kind] = _interval(_exponents(depths, widths, rates))
        n_flips, n_runs = _count_flips(cell_runs)
        counts += n_flips, n_runs
        _draw(axes, depths, widths, rates)
        law = rf"$L^{{\,{p:.2f} \pm {p_half:.2f}}}\; n^{{\,{q:.2f} \pm {q_half:.2f}}}$"
        axes.set_title(f"{kind}\n{law}\nrounding: {n_flips} of {n_runs}", fontsize=10)
        laws.append(f"{kind} L^({p:.2f} +- {p_half:.2f}) n^({q:.2f} +- {q_half:.2f})")
    all_axes[0].set_ylabel("largest learning rate that trains")
    all_axes[-1].legend(fontsize=8, frameon=False)
    all_rates = [rate for (rate,) in group_runs(runs, "optimizer.learning_rate")]
    rate_factor = max(np.divide(all_rates[1:], all_rates[:-1]), default=1.0)
    what = f"mean and 95 % interval of {seeds} seeds, rates a factor of {rate_factor:.2g} apart"
    figure.suptitle(f"{what}; rounding: runs beside the boundary that flip in {other}", fontsize=11)
    text = "the largest rate that trains falls with depth L in plain blocks, and less in others; with L and width n it goes as "
    text += f"{'; '.join(laws)} (95 %, {seeds} seeds); of "
    text += f"{counts[1]} runs beside this boundary {counts[0]} ({counts[0] / max(counts[1], 1):.1%}) flip in {other}"
    if n_outside:
        text += f"; warning: {n_outside} boundaries are not between two of the rates and are left out"
    return figure, Verdict(text, _as_predicted(exponents))


def _rates(runs: Sequence[ObservedRun]) -> tuple[Array, Array, Array]:
    """Return depths, widths, and the logarithm of the largest rate that trains, (seeds, depths, widths).

    It is nan where no rate trains, and where every rate does.
    """
    cells = group_runs(runs, "seed", "network.depth", "network.width")
    seeds, depths, widths = (sorted({place[axis] for place in cells}) for axis in range(3))
    rates = np.full((len(seeds), len(depths), len(widths)), np.nan)
    for (seed, depth, width), cell_runs in cells.items():
        if len(_boundary_runs(cell_runs)) == 2:
            rates[seeds.index(seed), depths.index(depth), widths.index(width)] = np.log(largest_rate(cell_runs))
    return np.array(depths), np.array(widths), rates


def _boundary_runs(runs: Sequence[ObservedRun]) -> list[ObservedRun]:
    """Return the run of the largest rate that trains and the run of the next rate, without those that do not exist.

    runs: one run for each rate.
    """
    ordered = sorted(runs, key=lambda run: run.config.optimizer.learning_rate)
    trained = sum(run.config.optimizer.learning_rate <= largest_rate(runs) for run in ordered)
    return ordered[max(trained - 1, 0) : trained + 1] if trained else []


def _count_flips(runs: Sequence[ObservedRun]) -> tuple[int, int]:
    """Return how many runs beside the boundary train in exactly one of the two precisions, and the number of all these runs."""
    cells = group_runs(runs, "seed", "network.depth", "network.width").values()
    boundary_runs = [run for cell_runs in cells for run in _boundary_runs(cell_runs)]
    configs = [replace(run.config, dtype=OTHER_DTYPE[run.config.dtype]) for run in boundary_runs]
    tasks = [load_task(config) for config in configs]
    n_flips = 0
    for stack in plan(configs, tasks, MAX_LANES):
        for index, run in zip(stack, train_stack([configs[k] for k in stack], tasks[stack[0]]), strict=True):
            n_flips += (run.outcome == "trained") != (boundary_runs[index].outcome == "trained")
    return n_flips, len(boundary_runs)


def _exponents(depths: Array, widths: Array, rates: Array) -> Array:
    """Return the exponents of depth and width, (seeds, 2), nan where the rates of a seed do not determine them."""
    L, n = np.meshgrid(np.log(depths), np.log(widths), indexing="ij")
    exponents = np.full((len(rates), 2), np.nan)
    for fit, log_rate in zip(exponents, rates, strict=True):
        is_finite = np.isfinite(log_rate)
        terms = np.stack([L[is_finite], n[is_finite], np.ones(is_finite.sum())], axis=-1)
        if np.linalg.matrix_rank(terms) == 3:
            fit[:] = np.linalg.lstsq(terms, log_rate[is_finite], rcond=None)[0][:2]
    return exponents


def _interval(values: Array) -> tuple[Array, Array]:
    """Return the mean (...) of values (n, ...) and half of its 95 % interval, Student's t times s / sqrt(n).

    Values of nan are left out. The mean of none is nan, and so is the interval of fewer than 2.
    """
    from scipy.stats import t

    seen = np.ma.masked_invalid(values)
    n = seen.count(axis=0)
    half = t.ppf(0.975, np.maximum(n - 1, 1)) * seen.std(axis=0, ddof=1) / np.sqrt(np.maximum(n, 1))
    return np.ma.filled(seen.mean(axis=0), np.nan), np.ma.filled(np.ma.masked_where(n < 2, half), np.nan)


def _draw(axes: Axes, depths: Array, widths: Array, rates: Array) -> None:
    """Draw one line per width, with its interval as a band."""
    mean, half = _interval(rates)
    for k, width in enumerate(widths):
        color, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        axes.plot(depths, np.exp(mean[:, k]), marker=marker, markersize=5, color=color, label=f"width {width}")
        axes.fill_between(
            depths, *np.exp([mean[:, k] - half[:, k], mean[:, k] + half[:, k]]), color=color, alpha=0.25, linewidth=0
        )
    axes.set(xlabel="depth L (blocks)", xscale="log", yscale="log")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()


def _as_predicted(exponents: Mapping[str, tuple[Array, Array]]) -> bool | None:
    """Return whether the exponent of depth is below 0 for plain blocks and larger for the others, with intervals that are apart.

    Return None where plain blocks or all others are missing, or where an exponent or its interval is not known.
    """
    by_kind = {kind: (mean[0], half[0]) for kind, (mean, half) in exponents.items()}
    if "plain" not in by_kind or len(by_kind) < 2 or not np.isfinite(list(by_kind.values())).all():
        return None
    mean, half = by_kind.pop("plain")
    return bool(mean + half < 0 and all(other - its_half > mean + half for other, its_half in by_kind.values()))


def _check(config: Config) -> None:
    require("boundary", config, ("optimizer.block_rates", config.optimizer.block_rates is None, "null, one rate"))


STUDIES = {"boundary": Study(boundary, _check)}
