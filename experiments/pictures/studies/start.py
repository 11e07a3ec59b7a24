"""Studies of networks before training, and of how deep they then train, beside mean-field theory."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from blocks.arrays import Array
from blocks.theory import weight_variance
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS
from experiments.pictures.studies.study import Observed, Study, Verdict, grouped, mean_field, narrow, plain, require
from experiments.run.config import Config
from experiments.run.data import load_task

# A network that has half of its training examples right has left chance behind.
LEARNED = 0.5
# The mean loss of an epoch at which a network counts as trained in `isometry`.
REACHED = 0.5
# The kinds of block that standardise their input.
STANDARDISED = ("normalized", "batch_normalized")


def _hidden_norms(runs: Sequence[Observed]) -> Array:
    """log of the root mean square over examples of ||dJ_i/dW_l|| at the first step, blocks 2..L-1, mean over the runs."""
    return np.mean([np.log(run.history.quantities["example_norm"].values[0, 1:-1]) for run in runs], axis=0)


def _factor(norms: Array) -> float:
    """chi_1 as measured: the factor of the squared norm from block to block going down, where z has come to its variance."""
    settled = norms[len(norms) // 4 :]
    return float(np.exp(-2 * np.polyfit(np.arange(len(settled)), settled, 1)[0]))


def signal_propagation(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """Gradient norms by block before training, per example, beside chi_1^(L - l)."""
    figure, axes = figures.new_axes("gradient norm by block before training: measured (dots), mean-field theory (lines)")
    errors = []
    groups = grouped(runs, "network.bias_variance", "network.gain")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    ordered = sorted(groups.items(), key=lambda group: group[1][0].theory.chi_1)
    for colour, ((bias_variance, gain), alike) in zip(colours, ordered, strict=True):
        norms, chi_1 = _hidden_norms(alike), alike[0].theory.chi_1
        errors.append(abs(_factor(norms) / chi_1 - 1))
        blocks = np.arange(2, len(norms) + 2)
        label = f"gain {gain:g}, bias variance {bias_variance:g}: $\\chi_1$ {chi_1:.3f}"
        axes.plot(blocks, np.exp(norms - norms[-1]), "o", markersize=3, color=colour, label=label)
        axes.plot(blocks, chi_1 ** ((blocks[-1] - blocks) / 2), color=colour, linewidth=1)
    axes.set(xlabel="block l", ylabel=r"$\|dJ_i/dW_l\| \,/\, \|dJ_i/dW_{L-1}\|$", yscale="log")
    axes.legend(fontsize=7, frameon=False, ncols=2)
    within = sum(error < 0.05 for error in errors)
    text = f"chi_1 within 5 % of theory at {within} of {len(errors)} points, the worst {100 * max(errors):.1f} % off"
    return figure, Verdict(text + narrow(runs), within == len(errors))


def normalization(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """Gradient norms of the whole batch by block before training, of every kind and gain, with the lines of chi_1."""
    figure, axes = figures.new_axes("gradient norm by block before training: measured (dots), wide blocks in theory (lines)")
    told, holds = [], True
    for colour, ((kind,), alike) in zip(COLOURS, grouped(runs, "network.kind").items(), strict=False):
        theory = alike[0].theory.normalized_chi_1 if kind in STANDARDISED else None
        factors = []
        for marker, ((gain,), same) in zip("osD^v", grouped(alike, "network.gain").items(), strict=False):
            norms = np.mean([np.log(run.history.grad_norm[0, 1:-1]) for run in same], axis=0)
            norms, blocks = norms - norms[-1], np.arange(2, len(norms) + 2)
            axes.plot(blocks, np.exp(norms), marker, markersize=4, color=colour, alpha=0.7, label=f"{kind}, gain {gain:g}")
            # The first and the last blocks are near to data and labels.
            inner = slice(len(norms) // 4, len(norms) - len(norms) // 4)
            slope, _ = np.polyfit(blocks[inner], norms[inner], 1)
            factors.append(float(np.exp(-2 * slope)))
            if theory is not None:
                line = norms[inner].mean() + np.log(theory) / 2 * (blocks[inner].mean() - blocks)
                axes.plot(blocks, np.exp(line), color=colour, linewidth=1)
                holds &= abs(factors[-1] / theory - 1) < 0.05
        told.append(f"{kind} {min(factors):.2f} to {max(factors):.2f}" + ("" if theory is None else f" (theory {theory:.3f})"))
    axes.set(xlabel="block l", ylabel=r"$\|dJ/dW_l\| \,/\, \|dJ/dW_{L-1}\|$", yscale="log")
    axes.legend(fontsize=7, frameon=False)
    text = f"going down, a block multiplies the squared gradient, at any gain, by: {', '.join(told)}"
    return figure, Verdict(text + narrow(runs), holds)


def isometry(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The Jacobian's singular values before training, and the loss of the best rate, of the deepest networks by their weights."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    told, holds = [], True
    for colour, ((activation,), alike) in zip(COLOURS, grouped(runs, "network.activation").items(), strict=False):
        for (initializer,), same in grouped(alike, "network.initializer").items():
            by_depth = {depth: _quickest(some) for (depth,), some in grouped(same, "network.depth").items()}
            depth, (run, epochs) = max(by_depth.items())
            look = {"color": colour, "linestyle": "-" if initializer == "orthogonal" else ":"}
            s = run.history.quantities["singular_value"].values[0]
            left.plot(np.arange(1, len(s) + 1), s / np.sqrt((s**2).mean()), **look)
            loss = run.history.epoch_loss()
            right.plot(np.arange(1, len(loss) + 1), loss, label=f"{activation}, {initializer}", **look)
            spread = float(((s / s[0]) ** 4).mean() / ((s / s[0]) ** 2).mean() ** 2 - 1)
            shallow = min(by_depth.items())
            reached = " and ".join(str(count or "never") for _, count in (shallow[1], (run, epochs)))
            told.append(f"{activation}, {initializer} {spread:.2g}, {reached}")
            # relu passes nothing on for half of the units, whatever the weights.
            isometric = initializer == "orthogonal" and activation != "relu"
            holds &= isometric == (spread < 1) == bool(epochs)
    what = r"singular value of $\partial a_{L-1} / \partial a_1$, over the root mean square"
    left.set(title=f"depth {depth} before training", xlabel="rank", ylabel=what, yscale="log", ylim=(1e-6, 30))
    right.set(title=f"depth {depth}, each at its best rate", xlabel="epoch", ylabel="training loss", yscale="log")
    right.legend(fontsize=7, frameon=False)
    text = f"variance / mean^2 of the squared singular values at depth {depth}, and epochs to a loss of {REACHED:g} at depth "
    text += f"{shallow[0]} and {depth}: "
    return figure, Verdict(text + "; ".join(told), holds)


def _quickest(runs: Sequence[Observed]) -> tuple[Observed, int]:
    """The run that is first below the loss REACHED, and its epochs until there; 0 where none is, then of the smallest loss."""
    best: tuple[tuple[float, float], Observed, int] | None = None
    for run in runs:
        loss = run.history.epoch_loss()
        below = np.flatnonzero(loss < REACHED)
        epochs = int(below[0]) + 1 if len(below) and run.outcome != "diverged" else 0
        place = (epochs or np.inf, float(np.nan_to_num(loss[-1], nan=np.inf)))
        if best is None or place < best[0]:
            best = place, run, epochs
    assert best is not None
    return best[1:]


def trainable_depth(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """What trains, by depth and weight variance, with the line of 6 xi_c."""
    cells = grouped(runs, "network.depth", "network.gain")
    depths, gains = (sorted({place[axis] for place in cells}) for axis in (0, 1))
    best = np.full((len(depths), len(gains)), np.nan)
    right = outside = 0
    for (depth, gain), alike in cells.items():
        reached = [float(np.nanmax(run.history.measures["accuracy/train"])) for run in alike]
        best[depths.index(depth), gains.index(gain)] = np.mean(reached)
        predicted = alike[0].theory.trainable_depth
        if not predicted / 2 <= depth <= predicted * 2:
            outside += len(alike)
            right += sum((value >= LEARNED) == (depth < predicted) for value in reached)
    figure, axes = figures.new_axes("best training accuracy, and the depth $6\\,\\xi_c$ up to which theory expects training")
    at = [_edges(gains), _edges(depths)]
    image = axes.pcolormesh(*at, best, cmap="viridis", vmin=0, vmax=1)
    fine = np.linspace(gains[0], gains[-1], 25)
    first = runs[0].config.network
    lines = [
        mean_field(first.activation, weight_variance(first.initializer, gain), first.bias_variance).trainable_depth
        for gain in fine
    ]
    for factor, style in ((1.0, "-"), (0.5, ":"), (2.0, ":")):
        axes.plot(fine, factor * np.array(lines), style, color="white", linewidth=2 if factor == 1 else 1)
    axes.set(xlabel=r"gain ($\sigma_w^2$ of the initial weights)", ylabel="depth L (blocks)", yscale="log")
    axes.set(xlim=(at[0][0], at[0][-1]), ylim=(at[1][0], at[1][-1]))
    axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    figure.colorbar(image, ax=axes, label="best training accuracy (mean over seeds)")
    share = right / outside if outside else np.nan
    text = f"{right} of {outside} runs ({100 * share:.1f} %) outside a factor of 2 around 6 xi_c are on the predicted side"
    return figure, Verdict(text + narrow(runs), share >= 0.95)


def _edges(centres: Sequence[float]) -> Array:
    """Borders of cells around ascending values, on a log scale."""
    logs = np.log(np.asarray(centres, dtype=np.float64))
    if len(logs) == 1:
        logs = np.array([logs[0] - 0.2, logs[0] + 0.2])
        return np.exp(logs)
    middles = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]]))


def he_or_xavier(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """Gradients at the first step against depth, by initializer, and how deep each trains.

    With relu and without biases signals change by chi_1 a block on their way up, as gradients do on their way down: the
    product, dJ_i/dW_l, is alike in all hidden blocks of a network and changes with its depth, as chi_1^(L / 2).
    """
    figure, axes = figures.new_axes("gradient norm of hidden blocks before training: measured (dots), theory (lines)")
    told, holds = [], True
    for number, ((initializer,), alike) in enumerate(grouped(runs, "network.initializer").items()):
        by_depth = {depth: same for (depth,), same in grouped(alike, "network.depth").items() if depth > 2}
        depths = np.array(list(by_depth))
        norms = np.array([_hidden_norms(same).mean() for same in by_depth.values()])
        chi_1, measured = alike[0].theory.chi_1, float(np.exp(2 * np.polyfit(depths, norms, 1)[0]))
        colour = COLOURS[number]
        axes.plot(depths, np.exp(norms), "o", color=colour, label=f"{initializer}: $\\chi_1$ {chi_1:g}")
        axes.plot(depths, np.exp(norms[0]) * chi_1 ** ((depths - depths[0]) / 2), color=colour, linewidth=1)
        deepest = max((run.config.network.depth for run in alike if run.outcome == "trained"), default=0)
        factor = f"changes squared gradients {measured:.2f} times a block (theory {chi_1:g})"
        told.append(f"{initializer} {factor}, trains to depth {deepest}")
        holds &= abs(measured / chi_1 - 1) < 0.15
    axes.set(xlabel="depth L (blocks)", ylabel=r"$\|dJ_i/dW_l\|$, mean over blocks 2..L-1", yscale="log")
    axes.legend(fontsize=8, frameon=False)
    return figure, Verdict("; ".join(told) + narrow(runs), holds)


def _signals(study: str, least: int) -> Callable[[Config], None]:
    def needs(config: Config) -> None:
        plain(study, config)
        measured = config.instruments.example_norm is not None
        require(study, config, ("instruments.example_norm", measured, "a schedule"))
        require(study, config, ("network.depth", config.network.depth >= least, f"at least {least}"))

    return needs


def _normalization(config: Config) -> None:
    network = config.network
    require(
        "normalization",
        config,
        ("network.depth", network.depth >= 8, "at least 8"),
        ("network.bias_variance", network.bias_variance == 0, "0: biases make all examples alike"),
        ("training.batch_size", config.training.batch_size is None, "null, all examples"),
    )


def _isometry(config: Config) -> None:
    require(
        "isometry",
        config,
        ("network.depth", config.network.depth > 1, "at least 2"),
        ("instruments.singular_value", config.instruments.singular_value is not None, "a schedule"),
    )


def _accuracy(config: Config) -> None:
    plain("trainable_depth", config)
    labels = load_task(config).loss.decides is not None
    require("trainable_depth", config, ("dataset.name", labels, "a data set with labels"))


STUDIES = {
    "signal_propagation": Study(signal_propagation, _signals("signal_propagation", 8)),
    "trainable_depth": Study(trainable_depth, _accuracy),
    "he_or_xavier": Study(he_or_xavier, _signals("he_or_xavier", 3)),
    "normalization": Study(normalization, _normalization),
    "isometry": Study(isometry, _isometry),
}
