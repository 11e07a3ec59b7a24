"""Studies that compare networks before training, and the depths that train, with mean-field theory."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from blocks.arrays import Array
from blocks.theory import weight_variance
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS
from experiments.pictures.studies.study import (
    ObservedRun,
    Study,
    Verdict,
    group_runs,
    mean_field,
    narrow_warning,
    require,
    require_plain,
)
from experiments.run.config import Config
from experiments.run.data import load_task

# A network has learned where at least this share of its training examples is right.
LEARNED_ACCURACY = 0.5
# The mean loss of an epoch at which a network counts as trained in `isometry`.
TARGET_LOSS = 0.5
# The kinds of block that standardise their input.
STANDARDISED = ("normalized", "batch_normalized")


def _hidden_norms(runs: Sequence[ObservedRun]) -> Array:
    """Return log ||dJ_i/dW_l|| (L - 2,) of blocks 2..L-1 at the first step.

    The norm is the root mean square over examples; its logarithm is the mean over the runs.
    """
    return np.mean([np.log(run.history.quantities["example_norm"].values[0, 1:-1]) for run in runs], axis=0)


def _measured_chi_1(norms: Array) -> float:
    """Return the measured chi_1, the factor of the squared norm from block to block going down.

    The first quarter of the blocks does not count, since the variance of z has not converged there.
    """
    inner_norms = norms[len(norms) // 4 :]
    return float(np.exp(-2 * np.polyfit(np.arange(len(inner_norms)), inner_norms, 1)[0]))


def signal_propagation(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the gradient norms per example by block before training, and chi_1^((L - l) / 2) of mean-field theory."""
    figure, axes = figures.new_axes("gradient norm by block before training: measured (dots), mean-field theory (lines)")
    errors = []
    groups = group_runs(runs, "network.bias_variance", "network.gain")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    sorted_groups = sorted(groups.items(), key=lambda group: group[1][0].theory.chi_1)
    for colour, ((bias_variance, gain), point_runs) in zip(colours, sorted_groups, strict=True):
        norms, chi_1 = _hidden_norms(point_runs), point_runs[0].theory.chi_1
        errors.append(abs(_measured_chi_1(norms) / chi_1 - 1))
        blocks = np.arange(2, len(norms) + 2)
        label = f"gain {gain:g}, bias variance {bias_variance:g}: $\\chi_1$ {chi_1:.3f}"
        axes.plot(blocks, np.exp(norms - norms[-1]), "o", markersize=3, color=colour, label=label)
        axes.plot(blocks, chi_1 ** ((blocks[-1] - blocks) / 2), color=colour, linewidth=1)
    axes.set(xlabel="block l", ylabel=r"$\|dJ_i/dW_l\| \,/\, \|dJ_i/dW_{L-1}\|$", yscale="log")
    axes.legend(fontsize=7, frameon=False, ncols=2)
    accurate = sum(error < 0.05 for error in errors)
    text = f"chi_1 within 5 % of theory at {accurate} of {len(errors)} points, the worst {100 * max(errors):.1f} % off"
    return figure, Verdict(text + narrow_warning(runs), accurate == len(errors))


def normalization(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the gradient norms of all examples by block before training, for every kind and gain, with the lines of chi_1."""
    figure, axes = figures.new_axes("gradient norm by block before training: measured (dots), wide blocks in theory (lines)")
    results, holds = [], True
    for colour, ((kind,), kind_runs) in zip(COLOURS, group_runs(runs, "network.kind").items(), strict=False):
        theory = kind_runs[0].theory.normalized_chi_1 if kind in STANDARDISED else None
        factors = []
        for marker, ((gain,), gain_runs) in zip("osD^v", group_runs(kind_runs, "network.gain").items(), strict=False):
            norms = np.mean([np.log(run.history.grad_norm[0, 1:-1]) for run in gain_runs], axis=0)
            norms, blocks = norms - norms[-1], np.arange(2, len(norms) + 2)
            axes.plot(blocks, np.exp(norms), marker, markersize=4, color=colour, alpha=0.7, label=f"{kind}, gain {gain:g}")
            # The first and the last blocks do not count, since data and labels change them.
            inner_blocks = slice(len(norms) // 4, len(norms) - len(norms) // 4)
            slope, _ = np.polyfit(blocks[inner_blocks], norms[inner_blocks], 1)
            factors.append(float(np.exp(-2 * slope)))
            if theory is not None:
                line = norms[inner_blocks].mean() + np.log(theory) / 2 * (blocks[inner_blocks].mean() - blocks)
                axes.plot(blocks, np.exp(line), color=colour, linewidth=1)
                holds &= abs(factors[-1] / theory - 1) < 0.05
        results.append(f"{kind} {min(factors):.2f} to {max(factors):.2f}" + ("" if theory is None else f" (theory {theory:.3f})"))
    axes.set(xlabel="block l", ylabel=r"$\|dJ/dW_l\| \,/\, \|dJ/dW_{L-1}\|$", yscale="log")
    axes.legend(fontsize=7, frameon=False)
    text = f"going down, a block multiplies the squared gradient, at any gain, by: {', '.join(results)}"
    return figure, Verdict(text + narrow_warning(runs), holds)


def isometry(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the Jacobian's singular values before training, and the loss at the best rate, for the deepest networks."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left_axes, right_axes = figure.subplots(1, 2)
    results, holds = [], True
    for colour, ((activation,), activation_runs) in zip(COLOURS, group_runs(runs, "network.activation").items(), strict=False):
        for (initializer,), initializer_runs in group_runs(activation_runs, "network.initializer").items():
            by_depth = {
                depth: _fastest_run(depth_runs) for (depth,), depth_runs in group_runs(initializer_runs, "network.depth").items()
            }
            depth, (run, epochs) = max(by_depth.items())
            style = {"color": colour, "linestyle": "-" if initializer == "orthogonal" else ":"}
            s = run.history.quantities["singular_value"].values[0]
            left_axes.plot(np.arange(1, len(s) + 1), s / np.sqrt((s**2).mean()), **style)
            loss = run.history.epoch_loss()
            right_axes.plot(np.arange(1, len(loss) + 1), loss, label=f"{activation}, {initializer}", **style)
            variance = float(((s / s[0]) ** 4).mean() / ((s / s[0]) ** 2).mean() ** 2 - 1)
            shallow = min(by_depth.items())
            epoch_counts = " and ".join(str(count or "never") for _, count in (shallow[1], (run, epochs)))
            results.append(f"{activation}, {initializer} {variance:.2g}, {epoch_counts}")
            # With relu the Jacobian is 0 for half of the units, for any weights.
            is_isometric = initializer == "orthogonal" and activation != "relu"
            holds &= is_isometric == (variance < 1) == bool(epochs)
    ylabel = r"singular value of $\partial a_{L-1} / \partial a_1$, over the root mean square"
    left_axes.set(title=f"depth {depth} before training", xlabel="rank", ylabel=ylabel, yscale="log", ylim=(1e-6, 30))
    right_axes.set(title=f"depth {depth}, each at its best rate", xlabel="epoch", ylabel="training loss", yscale="log")
    right_axes.legend(fontsize=7, frameon=False)
    text = f"variance / mean^2 of the squared singular values at depth {depth}, and epochs to a loss of {TARGET_LOSS:g} at depth "
    text += f"{shallow[0]} and {depth}: "
    return figure, Verdict(text + "; ".join(results), holds)


def _fastest_run(runs: Sequence[ObservedRun]) -> tuple[ObservedRun, int]:
    """Return the run whose loss is first below TARGET_LOSS, and the number of its epochs until then.

    Where no run is below it, returns the run of the smallest last loss, and 0.
    """
    fastest: tuple[tuple[float, float], ObservedRun, int] | None = None
    for run in runs:
        loss = run.history.epoch_loss()
        indices_below = np.flatnonzero(loss < TARGET_LOSS)
        epochs = int(indices_below[0]) + 1 if len(indices_below) and run.outcome != "diverged" else 0
        rank = (epochs or np.inf, float(np.nan_to_num(loss[-1], nan=np.inf)))
        if fastest is None or rank < fastest[0]:
            fastest = rank, run, epochs
    assert fastest is not None
    return fastest[1:]


def trainable_depth(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the best training accuracy by depth and weight variance, with the line of 6 xi_c."""
    cells = group_runs(runs, "network.depth", "network.gain")
    depths, gains = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    mean_accuracies = np.full((len(depths), len(gains)), np.nan)
    correct_count = outside_count = 0
    for (depth, gain), cell_runs in cells.items():
        accuracies = [float(np.nanmax(run.history.measures["accuracy/train"])) for run in cell_runs]
        mean_accuracies[depths.index(depth), gains.index(gain)] = np.mean(accuracies)
        predicted_depth = cell_runs[0].theory.trainable_depth
        if not predicted_depth / 2 <= depth <= predicted_depth * 2:
            outside_count += len(cell_runs)
            correct_count += sum((accuracy >= LEARNED_ACCURACY) == (depth < predicted_depth) for accuracy in accuracies)
    figure, axes = figures.new_axes("best training accuracy, and the depth $6\\,\\xi_c$ up to which theory expects training")
    borders = [_edges(gains), _edges(depths)]
    image = axes.pcolormesh(*borders, mean_accuracies, cmap="viridis", vmin=0, vmax=1)
    gain_grid = np.linspace(gains[0], gains[-1], 25)
    network = runs[0].config.network
    lines = [
        mean_field(network.activation, weight_variance(network.initializer, gain), network.bias_variance).trainable_depth
        for gain in gain_grid
    ]
    for factor, style in ((1.0, "-"), (0.5, ":"), (2.0, ":")):
        axes.plot(gain_grid, factor * np.array(lines), style, color="white", linewidth=2 if factor == 1 else 1)
    axes.set(xlabel=r"gain ($\sigma_w^2$ of the initial weights)", ylabel="depth L (blocks)", yscale="log")
    axes.set(xlim=(borders[0][0], borders[0][-1]), ylim=(borders[1][0], borders[1][-1]))
    axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    figure.colorbar(image, ax=axes, label="best training accuracy (mean over seeds)")
    share = correct_count / outside_count if outside_count else np.nan
    text = f"{correct_count} of {outside_count} runs ({100 * share:.1f} %) outside a factor of 2 around 6 xi_c "
    text += "are on the predicted side"
    return figure, Verdict(text + narrow_warning(runs), share >= 0.95)


def _edges(centres: Sequence[float]) -> Array:
    """Return the borders of cells around ascending values on a logarithmic scale."""
    logs = np.log(np.asarray(centres, dtype=np.float64))
    if len(logs) == 1:
        logs = np.array([logs[0] - 0.2, logs[0] + 0.2])
        return np.exp(logs)
    middles = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]]))


def he_or_xavier(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the gradient norms at the first step against depth, by initializer; the verdict says how deep each trains.

    With relu and without biases, squared signals change by chi_1 a block going up, as squared gradients do going down. Their
    product, dJ_i/dW_l, is therefore the same in all hidden blocks of a network; it changes with the depth as chi_1^(L / 2).
    """
    figure, axes = figures.new_axes("gradient norm of hidden blocks before training: measured (dots), theory (lines)")
    results, holds = [], True
    for number, ((initializer,), initializer_runs) in enumerate(group_runs(runs, "network.initializer").items()):
        by_depth = {
            depth: depth_runs for (depth,), depth_runs in group_runs(initializer_runs, "network.depth").items() if depth > 2
        }
        depths = np.array(list(by_depth))
        norms = np.array([_hidden_norms(depth_runs).mean() for depth_runs in by_depth.values()])
        chi_1, measured_chi_1 = initializer_runs[0].theory.chi_1, float(np.exp(2 * np.polyfit(depths, norms, 1)[0]))
        colour = COLOURS[number]
        axes.plot(depths, np.exp(norms), "o", color=colour, label=f"{initializer}: $\\chi_1$ {chi_1:g}")
        axes.plot(depths, np.exp(norms[0]) * chi_1 ** ((depths - depths[0]) / 2), color=colour, linewidth=1)
        deepest = max((run.config.network.depth for run in initializer_runs if run.outcome == "trained"), default=0)
        factor_text = f"changes squared gradients {measured_chi_1:.2f} times a block (theory {chi_1:g})"
        results.append(f"{initializer} {factor_text}, trains to depth {deepest}")
        holds &= abs(measured_chi_1 / chi_1 - 1) < 0.15
    axes.set(xlabel="depth L (blocks)", ylabel=r"$\|dJ_i/dW_l\|$, mean over blocks 2..L-1", yscale="log")
    axes.legend(fontsize=8, frameon=False)
    return figure, Verdict("; ".join(results) + narrow_warning(runs), holds)


def _signals_check(study: str, min_depth: int) -> Callable[[Config], None]:
    def check(config: Config) -> None:
        require_plain(study, config)
        is_measured = config.instruments.example_norm is not None
        require(study, config, ("instruments.example_norm", is_measured, "a schedule"))
        require(study, config, ("network.depth", config.network.depth >= min_depth, f"at least {min_depth}"))

    return check


def _check_normalization(config: Config) -> None:
    network = config.network
    require(
        "normalization",
        config,
        ("network.depth", network.depth >= 8, "at least 8"),
        ("network.bias_variance", network.bias_variance == 0, "0: biases make all examples alike"),
        ("training.batch_size", config.training.batch_size is None, "null, all examples"),
    )


def _check_isometry(config: Config) -> None:
    require(
        "isometry",
        config,
        ("network.depth", config.network.depth > 1, "at least 2"),
        ("instruments.singular_value", config.instruments.singular_value is not None, "a schedule"),
    )


def _check_accuracy(config: Config) -> None:
    require_plain("trainable_depth", config)
    has_labels = load_task(config).loss.decides is not None
    require("trainable_depth", config, ("dataset.name", has_labels, "a data set with labels"))


STUDIES = {
    "signal_propagation": Study(signal_propagation, _signals_check("signal_propagation", 8)),
    "trainable_depth": Study(trainable_depth, _check_accuracy),
    "he_or_xavier": Study(he_or_xavier, _signals_check("he_or_xavier", 3)),
    "normalization": Study(normalization, _check_normalization),
    "isometry": Study(isometry, _check_isometry),
}
