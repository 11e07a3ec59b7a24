"""The studies: a sweep's measurements with the theory drawn over them, and one line that says whether it holds.

A sweep names its study in `sweep.study`; the presets of that name in conf/experiment ask for one each.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from blocks.activations import ACTIVATIONS
from blocks.arrays import Array
from blocks.history import History
from blocks.theory import MeanField, largest_stable_rate, weight_variance
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS, DIVERGED, STEPS
from experiments.run.config import Config, UserError
from experiments.run.data import task

if TYPE_CHECKING:
    from experiments.record.reading import Recorded

# Where L / n is above it, norms fluctuate from network to network as much as they change: their logarithm has a variance of
# the order of L / n (Hanin and Nica 2019).
NARROW = 0.25
# A network that has half of its training examples right has left chance behind.
LEARNED = 0.5


@dataclass(frozen=True, eq=False)
class Observed:
    """A run of the sweep. recorded: where its history is read from, when it is asked for."""

    config: Config
    outcome: str
    recorded: "Recorded"

    @property
    def history(self) -> History:
        """Read anew each time: a thousand of them would fill the memory."""
        return self.recorded.files().history

    @property
    def theory(self) -> MeanField:
        """The mean field of its network."""
        network = self.config.network
        return mean_field(network.activation, weight_variance(network.initializer, network.gain), network.bias_variance)


@dataclass(frozen=True)
class Verdict:
    """holds: None where there is nothing to hold."""

    text: str
    holds: bool | None

    def __str__(self) -> str:
        return {True: "holds: ", False: "does not hold: ", None: ""}[self.holds] + self.text


@dataclass(frozen=True)
class Study:
    """draw: of a sweep's runs, picture and verdict. needs: what a config must have for it: raises UserError."""

    draw: Callable[[Sequence[Observed]], tuple[Figure, Verdict]]
    needs: Callable[[Config], None]


@cache
def mean_field(activation: str, weight_variance: float, bias_variance: float) -> MeanField:
    """One for all runs that share it: its fixed points take a second."""
    return MeanField(activation, weight_variance, bias_variance)


def _require(study: str, config: Config, *wanted: tuple[str, bool, str]) -> None:
    """Raise UserError for the first of (key, whether its value will do, what it must be) that will not."""
    for key, fits, must in wanted:
        if not fits:
            value: object = asdict(config)
            for name in key.split("."):
                value = value[name]  # type: ignore[index]
            raise UserError(f"{key} is {value!r}, but sweep.study {study} needs {must}")


def _grouped(runs: Sequence[Observed], *keys: str) -> dict[tuple, list[Observed]]:
    """Values of those keys -> the runs that have them, in ascending order."""

    def values(run: Observed) -> tuple:
        parts = [key.split(".") for key in keys]
        return tuple(getattr(getattr(run.config, part[0]), part[1]) if len(part) > 1 else run.config.seed for part in parts)

    groups: dict[tuple, list[Observed]] = {}
    for run in runs:
        groups.setdefault(values(run), []).append(run)
    return dict(sorted(groups.items()))


def _narrow(runs: Sequence[Observed]) -> str:
    """The warning of a width that is too small for the theory, "" where it is not."""
    network = max((run.config.network for run in runs), key=lambda network: network.depth / network.width)
    if network.depth / network.width <= NARROW:
        return ""
    return f"; warning: the theory is of wide blocks, width {network.width} is narrow at depth {network.depth}"


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
    groups = _grouped(runs, "network.bias_variance", "network.gain")
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
    return figure, Verdict(text + _narrow(runs), within == len(errors))


def trainable_depth(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """What trains, by depth and weight variance, with the line of 6 xi_c."""
    cells = _grouped(runs, "network.depth", "network.gain")
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
    return figure, Verdict(text + _narrow(runs), share >= 0.95)


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
    for number, ((initializer,), alike) in enumerate(_grouped(runs, "network.initializer").items()):
        by_depth = {depth: same for (depth,), same in _grouped(alike, "network.depth").items() if depth > 2}
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
    return figure, Verdict("; ".join(told) + _narrow(runs), holds)


def edge_of_stability(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The sharpness while full-batch gradient descent trains, with the line 2 / learning rate."""
    figure, axes = figures.new_axes("sharpness (largest eigenvalue of the loss's Hessian); dashed: 2 / learning rate")
    told, holds = [], True
    for number, ((rate,), alike) in enumerate(_grouped(runs, "optimizer.learning_rate").items()):
        colour, relative = COLOURS[number % len(COLOURS)], []
        for run in alike:
            measured = run.history.quantities["sharpness"]
            axes.plot(measured.at, measured.values[:, 0], color=colour, linewidth=1, label=f"rate {rate:g}")
            relative.append(measured.values[:, 0] * rate / 2)
        axes.axhline(2 / rate, color=colour, linestyle="--", linewidth=1)
        last = [float(np.nanmedian(values[len(values) // 2 :])) for values in relative if np.isfinite(values).any()]
        # It begins above the line where the initial weights are large: what counts is where training brings it.
        if not last or max(last) < 0.95:
            told.append(f"rate {rate:g} does not get there")
        else:
            told.append(f"rate {rate:g} stays at {np.median(last):.2f} times 2 / rate")
            holds &= bool(0.95 <= np.median(last) <= 1.1)
    figures.legend_once(axes)
    axes.set(xlabel=STEPS, ylabel=r"sharpness $\lambda_1$", ylim=(0, None))
    stays = any("stays" in line for line in told)
    return figure, Verdict("sharpness in the second half of training: " + ", ".join(told), holds and stays)


def catapult(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """What becomes of loss and sharpness, against the learning rate in units of 1 / lambda_0, lambda_0 the first sharpness."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    phases: dict[str, list[bool]] = {"lazy": [], "catapult": [], "divergent": []}
    for run in runs:
        history, rate = run.history, run.config.optimizer.learning_rate
        sharpness = history.quantities["sharpness"].values[:, 0]
        place, diverged = rate * sharpness[0], run.outcome == "diverged"
        peak = float(np.nanmax(history.loss) / history.loss[0])
        if diverged:
            # How far it got before it was stopped says nothing.
            above.plot(place, 0.95, "x", color=DIVERGED, transform=above.get_xaxis_transform())
        else:
            above.plot(place, peak, "o", color=COLOURS[0])
            below.plot(place, rate * sharpness[-1], "o", color=COLOURS[0])
        if place < 2:
            phases["lazy"].append(not diverged and peak <= 1 + 1e-6)
        elif place < 4:
            phases["catapult"].append(
                not diverged and peak > 1 and history.loss[-1] < history.loss[0] and rate * sharpness[-1] < 2
            )
        else:
            phases["divergent"].append(diverged)
    for axes in (above, below):
        for limit in (2, 4):
            axes.axvline(limit, color="0.5", linestyle="--", linewidth=1)
    below.axhline(2, color="0.5", linewidth=1)
    above.set(ylabel="largest loss / first loss", yscale="log", title="the catapult: x diverges; dashed, 2 and 4")
    below.set(xlabel=r"learning rate $\times\ \lambda_0$", ylabel=r"learning rate $\times$ last sharpness")
    says = {
        "lazy": "below 2 / lambda_0 the loss never rises",
        "catapult": "from there to 4 / lambda_0 it rises, falls again and leaves a sharpness below 2 / rate",
        "divergent": "above it diverges",
    }
    text = "; ".join(f"{says[phase]} ({sum(seen)} of {len(seen)} runs)" for phase, seen in phases.items() if seen)
    return figure, Verdict(text, all(all(seen) for seen in phases.values()))


def linear_limit(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """Which rates stay bounded on every data set, with the limit 2 / lambda_max."""
    figure, axes = figures.new_axes("a linear model by full-batch gradient descent; black: $2 / \\lambda_{max}$")
    groups = _grouped(runs, "dataset.name")
    found, widest = 0, 0.0
    for row, ((_,), alike) in enumerate(groups.items()):
        limit = largest_stable_rate(task(alike[0].config).dataset.x)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for run in alike:
            rates[run.outcome == "diverged"].append(run.config.optimizer.learning_rate)
        for diverged, colour in ((False, COLOURS[0]), (True, DIVERGED)):
            label = "diverges" if diverged else "stays bounded"
            axes.plot(rates[diverged], [row] * len(rates[diverged]), "|", color=colour, markersize=12, label=label)
        axes.plot([limit, limit], [row - 0.45, row + 0.45], color="black", linewidth=1.5)
        low, high = max(rates[False], default=0.0), min(rates[True], default=np.inf)
        found += low <= limit < high
        widest = max(widest, high / low - 1 if low else np.inf)
    axes.set_yticks(range(len(groups)), [name for (name,) in groups])
    axes.set(xlabel="learning rate", xscale="log", ylim=(-0.7, len(groups) + 0.6))
    figures.legend_once(axes)
    text = f"2 / lambda_max parts the rates that stay bounded from those that diverge on {found} of {len(groups)} data sets"
    return figure, Verdict(f"{text}, to {100 * widest:.1f} %", found == len(groups))


def learning_rate_by_depth(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The largest rate that trains against depth, a power law fitted to every seed, beside L^(-3/2)."""
    from scipy.stats import t

    largest: dict[int, dict[int, float]] = {}
    for (seed, depth), alike in _grouped(runs, "seed", "network.depth").items():
        stable = 0.0
        for run in sorted(alike, key=lambda run: run.config.optimizer.learning_rate):
            if run.outcome != "trained":
                break
            stable = run.config.optimizer.learning_rate
        if stable:
            largest.setdefault(seed, {})[depth] = stable
    figure, axes = figures.new_axes("largest learning rate that trains, by depth")
    fits = []
    for number, (seed, rates) in enumerate(largest.items()):
        depths = np.array(list(rates))
        axes.plot(depths, list(rates.values()), "o", markersize=4, color=COLOURS[number % len(COLOURS)], label=f"seed {seed}")
        if len(rates) > 1:
            fits.append(np.polyfit(np.log(depths), np.log(list(rates.values())), 1))
    axes.set(xlabel="depth L (blocks)", ylabel="learning rate", xscale="log", yscale="log")
    if len(fits) < 2:
        return figure, Verdict("fewer than two seeds train at two depths or more: no exponent can be told", None)
    slopes = np.array([slope for slope, _ in fits])
    half = float(t.ppf(0.975, len(slopes) - 1) * slopes.std(ddof=1) / np.sqrt(len(slopes)))
    depths = np.array(sorted({depth for rates in largest.values() for depth in rates}))
    middle = np.exp(np.mean([np.polyval(fit, np.log(depths)) for fit in fits], axis=0))
    axes.plot(depths, middle, color="black", label=f"fit: $L^{{{slopes.mean():.2f} \\pm {half:.2f}}}$")
    law = depths**-1.5
    axes.plot(depths, middle[0] * law / law[0], color="0.5", linestyle="--", label="one update, published: $L^{-3/2}$")
    axes.legend(fontsize=8, frameon=False)
    text = f"the largest rate that trains falls as L^({slopes.mean():.2f} +- {half:.2f}) (95 %, {len(slopes)} seeds)"
    return figure, Verdict(f"{text}; the published law of one update is L^(-3/2)", None)


def _plain(study: str, config: Config) -> None:
    _require(study, config, ("network.kind", config.network.kind == "plain", "plain: the theory is of plain networks"))


def _signals(study: str, least: int) -> Callable[[Config], None]:
    def needs(config: Config) -> None:
        _plain(study, config)
        measured = config.instruments.example_norm is not None
        _require(study, config, ("instruments.example_norm", measured, "a schedule"))
        _require(study, config, ("network.depth", config.network.depth >= least, f"at least {least}"))

    return needs


def _accuracy(config: Config) -> None:
    _plain("trainable_depth", config)
    labels = task(config).loss.decides is not None
    _require("trainable_depth", config, ("dataset.name", labels, "a data set with labels"))


def _full_batch(study: str) -> Callable[[Config], None]:
    def needs(config: Config) -> None:
        optimizer = config.optimizer
        _require(
            study,
            config,
            ("training.batch_size", config.training.batch_size is None, "null, all examples"),
            ("optimizer.name", optimizer.name == "gradient_descent", "gradient_descent"),
            ("optimizer.schedule", optimizer.schedule == "constant", "constant"),
            ("optimizer.weight_decay", optimizer.weight_decay == 0, "0"),
        )

    return needs


def _curved(study: str) -> Callable[[Config], None]:
    def needs(config: Config) -> None:
        _full_batch(study)(config)
        _require(study, config, ("instruments.sharpness", config.instruments.sharpness is not None, "a schedule"))
        activation = config.network.activation
        smooth = not ACTIVATIONS[activation].kinks
        names = ", ".join(name for name, pair in ACTIVATIONS.items() if not pair.kinks)
        must = (
            f"a second derivative, which {activation} has not at its kink: its sharpness, that of the pieces between, jumps "
            f"where a unit crosses it; allowed: {names}"
        )
        _require(study, config, ("network.activation", smooth, must))

    return needs


def _linear(config: Config) -> None:
    _full_batch("linear_limit")(config)
    squares = task(config).loss.name.endswith("squared_error")
    _require("linear_limit", config, ("network.depth", config.network.depth == 1, "1, a linear model"))
    _require("linear_limit", config, ("training.loss", squares, "half_mean_squared_error or one_hot_squared_error"))


STUDIES = {
    "signal_propagation": Study(signal_propagation, _signals("signal_propagation", 8)),
    "trainable_depth": Study(trainable_depth, _accuracy),
    "he_or_xavier": Study(he_or_xavier, _signals("he_or_xavier", 3)),
    "edge_of_stability": Study(edge_of_stability, _curved("edge_of_stability")),
    "catapult": Study(catapult, _curved("catapult")),
    "linear_limit": Study(linear_limit, _linear),
    "learning_rate_by_depth": Study(learning_rate_by_depth, lambda config: None),
}
