"""Studies of the learning rate: which rates the curvature allows, and how the curvature changes while training."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from blocks.activations import ACTIVATIONS
from blocks.optimizers import OPTIMIZERS
from blocks.parameters import Layout
from blocks.theory import largest_stable_rate
from experiments.pictures import figures
from experiments.pictures.figures import COLOURS, DIVERGED, STEPS
from experiments.pictures.studies.study import ObservedRun, Study, Verdict, full_batch_check, group_runs, largest_rate, require
from experiments.run.config import Config
from experiments.run.data import load_task
from experiments.run.stack import optimizer_of, sizes

# The edge holds for a constant P. The P of this rule follows its last 1 / (1 - rho) = 10 updates, so it is not judged.
UNJUDGED_RULE = "rmsprop"


def edge_of_stability(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the sharpness during full-batch gradient descent, with the line 2 / learning rate."""
    figure, axes = figures.new_axes("sharpness (largest eigenvalue of the loss's Hessian); dashed: 2 / learning rate")
    results, holds = [], True
    for number, ((rate,), rate_runs) in enumerate(group_runs(runs, "optimizer.learning_rate").items()):
        colour, ratios = COLOURS[number % len(COLOURS)], []
        for run in rate_runs:
            quantity = run.history.quantities["sharpness"]
            axes.plot(quantity.at, quantity.values[:, 0], color=colour, linewidth=1, label=f"rate {rate:g}")
            ratios.append(quantity.values[:, 0] * rate / 2)
        axes.axhline(2 / rate, color=colour, linestyle="--", linewidth=1)
        medians = [float(np.nanmedian(values[len(values) // 2 :])) for values in ratios if np.isfinite(values).any()]
        # With large initial weights the sharpness starts above the line. Only the second half of training counts.
        if not medians or max(medians) < 0.95:
            results.append(f"rate {rate:g} does not get there")
        else:
            results.append(f"rate {rate:g} stays at {np.median(medians):.2f} times 2 / rate")
            holds &= bool(0.95 <= np.median(medians) <= 1.1)
    figures.legend_once(axes)
    axes.set(xlabel=STEPS, ylabel=r"sharpness $\lambda_1$", ylim=(0, None))
    has_edge = any("stays" in result for result in results)
    return figure, Verdict("sharpness in the second half of training: " + ", ".join(results), holds and has_edge)


def edges_of_stability(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the preconditioned sharpness during full-batch training, in units of the largest stable one of each rule."""
    figure, axes = figures.new_axes(r"$\lambda_1(P^{-1} H)$ over each rule's edge; dashed: the edge")
    results, holds = [], True
    for colour, ((name,), rule_runs) in zip(COLOURS, group_runs(runs, "optimizer.name").items(), strict=False):
        levels = []
        for style, run in zip(("-", "--", ":", "-."), rule_runs, strict=False):
            (edge,) = optimizer_of([run.config], Layout(sizes(run.config, load_task(run.config)))).largest_stable_curvature()
            quantity = run.history.quantities["preconditioned_sharpness"]
            ratios = quantity.values[:, 0] / edge
            label = f"{name}, rate {run.config.optimizer.learning_rate:g}"
            axes.plot(quantity.at, ratios, style, color=colour, linewidth=1, label=label)
            levels.append(float(np.nanmedian(ratios[len(ratios) // 2 :])) if run.outcome != "diverged" else np.nan)
        is_judged = name != UNJUDGED_RULE
        results.append(
            f"{name} {', '.join(f'{level:.2f}' for level in levels)}" + ("" if is_judged else " (not judged, P moves)")
        )
        holds &= not is_judged or all(0.9 <= level <= 1.1 for level in levels)
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel=STEPS, ylabel="times the edge", ylim=(0, 2))
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper right")
    text = "in the second half of training the preconditioned sharpness is, times the edge (0.9 to 1.1 asked for): "
    return figure, Verdict(text + "; ".join(results), holds)


def catapult(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the peak of the loss and the last sharpness against the learning rate times lambda_0, the first sharpness."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    phases: dict[str, list[bool]] = {"lazy": [], "catapult": [], "divergent": []}
    for run in runs:
        history, rate = run.history, run.config.optimizer.learning_rate
        sharpness = history.quantities["sharpness"].values[:, 0]
        scaled_rate, diverged = rate * sharpness[0], run.outcome == "diverged"
        peak = float(np.nanmax(history.loss) / history.loss[0])
        if diverged:
            # The peak of a run that diverged only says when it was stopped.
            upper.plot(scaled_rate, 0.95, "x", color=DIVERGED, transform=upper.get_xaxis_transform())
        else:
            upper.plot(scaled_rate, peak, "o", color=COLOURS[0])
            lower.plot(scaled_rate, rate * sharpness[-1], "o", color=COLOURS[0])
        if scaled_rate < 2:
            phases["lazy"].append(not diverged and peak <= 1 + 1e-6)
        elif scaled_rate < 4:
            phases["catapult"].append(
                not diverged and peak > 1 and history.loss[-1] < history.loss[0] and rate * sharpness[-1] < 2
            )
        else:
            phases["divergent"].append(diverged)
    for axes in (upper, lower):
        for limit in (2, 4):
            axes.axvline(limit, color="0.5", linestyle="--", linewidth=1)
    lower.axhline(2, color="0.5", linewidth=1)
    upper.set(ylabel="largest loss / first loss", yscale="log", title="the catapult: x diverges; dashed, 2 and 4")
    lower.set(xlabel=r"learning rate $\times\ \lambda_0$", ylabel=r"learning rate $\times$ last sharpness")
    phase_texts = {
        "lazy": "below 2 / lambda_0 the loss never rises",
        "catapult": "from there to 4 / lambda_0 it rises, falls again and leaves a sharpness below 2 / rate",
        "divergent": "above it diverges",
    }
    text = "; ".join(
        f"{phase_texts[phase]} ({sum(results)} of {len(results)} runs)" for phase, results in phases.items() if results
    )
    return figure, Verdict(text, all(all(results) for results in phases.values()))


def linear_limit(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw which rates stay bounded on every data set, with the limit 2 / lambda_max."""
    figure, axes = figures.new_axes("a linear model by full-batch gradient descent; black: $2 / \\lambda_{max}$")
    groups = group_runs(runs, "dataset.name")
    separated, largest_gap = 0, 0.0
    for row, ((_,), dataset_runs) in enumerate(groups.items()):
        limit = largest_stable_rate(load_task(dataset_runs[0].config).dataset.x)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for run in dataset_runs:
            rates[run.outcome == "diverged"].append(run.config.optimizer.learning_rate)
        for diverged, colour in ((False, COLOURS[0]), (True, DIVERGED)):
            label = "diverges" if diverged else "stays bounded"
            axes.plot(rates[diverged], [row] * len(rates[diverged]), "|", color=colour, markersize=12, label=label)
        axes.plot([limit, limit], [row - 0.45, row + 0.45], color="black", linewidth=1.5)
        largest_bounded, smallest_diverging = max(rates[False], default=0.0), min(rates[True], default=np.inf)
        separated += largest_bounded <= limit < smallest_diverging
        largest_gap = max(largest_gap, smallest_diverging / largest_bounded - 1 if largest_bounded else np.inf)
    axes.set_yticks(range(len(groups)), [name for (name,) in groups])
    axes.set(xlabel="learning rate", xscale="log", ylim=(-0.7, len(groups) + 0.6))
    figures.legend_once(axes)
    text = f"2 / lambda_max parts the rates that stay bounded from those that diverge on {separated} of {len(groups)} data sets"
    return figure, Verdict(f"{text}, to {100 * largest_gap:.1f} %", separated == len(groups))


def learning_rate_by_depth(runs: Sequence[ObservedRun]) -> tuple[Figure, Verdict]:
    """Draw the largest rate that trains against depth, the mean of power laws fitted for each seed, and L^(-3/2)."""
    from scipy.stats import t

    largest: dict[int, dict[int, float]] = {}
    for (seed, depth), cell_runs in group_runs(runs, "seed", "network.depth").items():
        rate = largest_rate(cell_runs)
        if rate:
            largest.setdefault(seed, {})[depth] = rate
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
    half_width = float(t.ppf(0.975, len(slopes) - 1) * slopes.std(ddof=1) / np.sqrt(len(slopes)))
    depths = np.array(sorted({depth for rates in largest.values() for depth in rates}))
    fitted_rates = np.exp(np.mean([np.polyval(fit, np.log(depths)) for fit in fits], axis=0))
    axes.plot(depths, fitted_rates, color="black", label=f"fit: $L^{{{slopes.mean():.2f} \\pm {half_width:.2f}}}$")
    law = depths**-1.5
    axes.plot(depths, fitted_rates[0] * law / law[0], color="0.5", linestyle="--", label="one update, published: $L^{-3/2}$")
    axes.legend(fontsize=8, frameon=False)
    text = f"the largest rate that trains falls as L^({slopes.mean():.2f} +- {half_width:.2f}) (95 %, {len(slopes)} seeds)"
    return figure, Verdict(f"{text}; the published law of one update is L^(-3/2)", None)


def curvature_check(study: str, instrument: str = "sharpness", *rules: str) -> Callable[[Config], None]:
    """Return a check that raises UserError unless the config is full-batch training of a smooth network with that instrument.

    rules: see `full_batch_check`.
    """

    def check(config: Config) -> None:
        full_batch_check(study, *rules)(config)
        is_measured = getattr(config.instruments, instrument) is not None
        require(study, config, (f"instruments.{instrument}", is_measured, "a schedule"))
        activation = config.network.activation
        is_smooth = not ACTIVATIONS[activation].kinks
        names = ", ".join(name for name, function in ACTIVATIONS.items() if not function.kinks)
        requirement = (
            f"a second derivative, which {activation} has not at its kink: its sharpness, that of the pieces between, jumps "
            f"where a unit crosses it; allowed: {names}"
        )
        require(study, config, ("network.activation", is_smooth, requirement))

    return check


def _check_linear(config: Config) -> None:
    full_batch_check("linear_limit")(config)
    is_squared = load_task(config).loss.name.endswith("squared_error")
    require("linear_limit", config, ("network.depth", config.network.depth == 1, "1, a linear model"))
    require("linear_limit", config, ("training.loss", is_squared, "half_mean_squared_error or one_hot_squared_error"))


STUDIES = {
    "edge_of_stability": Study(edge_of_stability, curvature_check("edge_of_stability")),
    "edges_of_stability": Study(
        edges_of_stability, curvature_check("edges_of_stability", "preconditioned_sharpness", *OPTIMIZERS)
    ),
    "catapult": Study(catapult, curvature_check("catapult")),
    "linear_limit": Study(linear_limit, _check_linear),
    "learning_rate_by_depth": Study(learning_rate_by_depth, lambda config: None),
}
