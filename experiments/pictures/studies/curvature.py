"""Studies of the learning rate: what the curvature allows, and what it becomes while training."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from blocks.activations import ACTIVATIONS
from blocks.optimizers import OPTIMIZERS
from blocks.parameters import Layout
from blocks.theory import largest_stable_rate
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS, DIVERGED, STEPS
from experiments.pictures.studies.study import Observed, Study, Verdict, full_batch, grouped, largest_rate, require
from experiments.run.config import Config
from experiments.run.data import load_task
from experiments.run.stack import optimizer_of, sizes

# The rule whose P is that of its last 1 / (1 - rho) = 10 updates: the edge is that of a P that stands still.
MOVING = "rmsprop"


def edge_of_stability(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The sharpness while full-batch gradient descent trains, with the line 2 / learning rate."""
    figure, axes = figures.new_axes("sharpness (largest eigenvalue of the loss's Hessian); dashed: 2 / learning rate")
    told, holds = [], True
    for number, ((rate,), alike) in enumerate(grouped(runs, "optimizer.learning_rate").items()):
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


def edges_of_stability(runs: Sequence[Observed]) -> tuple[Figure, Verdict]:
    """The preconditioned sharpness while full-batch training goes on, in units of what each rule's stability allows."""
    figure, axes = figures.new_axes(r"$\lambda_1(P^{-1} H)$ over each rule's edge; dashed: the edge")
    told, holds = [], True
    for colour, ((name,), alike) in zip(COLOURS, grouped(runs, "optimizer.name").items(), strict=False):
        levels = []
        for style, run in zip(("-", "--", ":", "-."), alike, strict=False):
            (edge,) = optimizer_of([run.config], Layout(sizes(run.config, load_task(run.config)))).largest_stable_curvature()
            measured = run.history.quantities["preconditioned_sharpness"]
            relative = measured.values[:, 0] / edge
            label = f"{name}, rate {run.config.optimizer.learning_rate:g}"
            axes.plot(measured.at, relative, style, color=colour, linewidth=1, label=label)
            levels.append(float(np.nanmedian(relative[len(relative) // 2 :])) if run.outcome != "diverged" else np.nan)
        judged = name != MOVING
        told.append(f"{name} {', '.join(f'{level:.2f}' for level in levels)}" + ("" if judged else " (not judged, P moves)"))
        holds &= not judged or all(0.9 <= level <= 1.1 for level in levels)
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel=STEPS, ylabel="times the edge", ylim=(0, 2))
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper right")
    text = "in the second half of training the preconditioned sharpness is, times the edge (0.9 to 1.1 asked for): "
    return figure, Verdict(text + "; ".join(told), holds)


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
    groups = grouped(runs, "dataset.name")
    found, widest = 0, 0.0
    for row, ((_,), alike) in enumerate(groups.items()):
        limit = largest_stable_rate(load_task(alike[0].config).dataset.x)
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
    for (seed, depth), alike in grouped(runs, "seed", "network.depth").items():
        stable = largest_rate(alike)
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


def curved(study: str, instrument: str = "sharpness", *rules: str) -> Callable[[Config], None]:
    """What raises UserError unless full-batch training of a smooth network has that instrument; rules: see `full_batch`."""

    def needs(config: Config) -> None:
        full_batch(study, *rules)(config)
        measured = getattr(config.instruments, instrument) is not None
        require(study, config, (f"instruments.{instrument}", measured, "a schedule"))
        activation = config.network.activation
        smooth = not ACTIVATIONS[activation].kinks
        names = ", ".join(name for name, pair in ACTIVATIONS.items() if not pair.kinks)
        must = (
            f"a second derivative, which {activation} has not at its kink: its sharpness, that of the pieces between, jumps "
            f"where a unit crosses it; allowed: {names}"
        )
        require(study, config, ("network.activation", smooth, must))

    return needs


def _linear(config: Config) -> None:
    full_batch("linear_limit")(config)
    squares = load_task(config).loss.name.endswith("squared_error")
    require("linear_limit", config, ("network.depth", config.network.depth == 1, "1, a linear model"))
    require("linear_limit", config, ("training.loss", squares, "half_mean_squared_error or one_hot_squared_error"))


STUDIES = {
    "edge_of_stability": Study(edge_of_stability, curved("edge_of_stability")),
    "edges_of_stability": Study(edges_of_stability, curved("edges_of_stability", "preconditioned_sharpness", *OPTIMIZERS)),
    "catapult": Study(catapult, curved("catapult")),
    "linear_limit": Study(linear_limit, _linear),
    "learning_rate_by_depth": Study(learning_rate_by_depth, lambda config: None),
}
