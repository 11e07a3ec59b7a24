"""Pictures of a network itself, from its parameters: which units are saturated, what it decides, the loss around it.

Each function takes a run's config, its parameters (P,), or its history, and gives a figure.
"""

import math

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from blocks.arrays import Array, norm
from blocks.history import History, evenly_spaced
from blocks.measure.hessian import Hessian
from blocks.measure.lanczos import top_eigenpairs
from blocks.measure.signals import saturated_entries
from blocks.network import Network
from experiments.pictures.figures import COLOURS
from experiments.run.config import Config
from experiments.run.data import Task
from experiments.run.stack import sizes

NAME = "parameters"
# Panels of decisions; points of their grid a side, and of that of a loss.
STEPS, FINE, COARSE = 6, 200, 25
# Examples of a saturation map, and of a loss.
SHOWN, MEASURED = 100, 256
# Panels of one side by side.
ABREAST = 3


def network_of(config: Config, task: Task, parameters: Array) -> Network:
    """The network of a run, with those parameters (..., P)."""
    return Network(sizes(config, task), config.network.activation, parameters, config.network.kind)


@np.errstate(over="ignore", invalid="ignore")
def saturation_map(config: Config, task: Task, parameters: Array, block: int | None = None) -> Figure:
    """Which entries of one block's activations are saturated: an example a row, a unit a column, units with most of them first.

    block: 1 to L; None is the one with the largest share. Saturated is as the instrument `signals` has it; with relu, dead.
    """
    network = network_of(config, task, parameters)
    _, caches = network.forward(task.dataset.x[:, :SHOWN])
    by_block = [saturated_entries(each, cache) for each, cache in zip(network.blocks, caches, strict=True)]
    index = int(np.argmax([entries.mean() for entries in by_block])) if block is None else block - 1
    entries, (z, _) = by_block[index], network.blocks[index].activation_at(caches[index])
    order = np.argsort(-entries.mean(axis=-1), kind="stable")
    sign = np.where(entries, np.where(z > 0, 1, -1), 0)[order]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([COLOURS[0], "0.94", COLOURS[1]])
    norm_of_signs = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)
    image = axes.imshow(sign.T, cmap=colours, norm=norm_of_signs, aspect="auto", interpolation="nearest")
    always = int(entries.all(axis=-1).sum())
    word = "dead" if config.network.activation == "relu" else "saturated"
    axes.set_title(
        f"{word} activations of block {index + 1} of {network.depth}: {100 * entries.mean():.0f} %\n"
        f"{always} of {len(entries)} units for every example",
        fontsize=10,
    )
    axes.set(xlabel="unit", ylabel="example")
    figure.colorbar(image, ax=axes, ticks=[-1, 0, 1]).ax.set_yticklabels(["z < 0", "no", "z > 0"])
    return figure


@np.errstate(over="ignore", invalid="ignore")
def decision_regions(config: Config, task: Task, history: History) -> Figure:
    """What the network decides on two-dimensional data, after some of the steps at which its parameters were measured."""
    quantity = history.quantities[NAME]
    measured = np.flatnonzero(np.isfinite(quantity.values).all(axis=-1))
    places = measured[evenly_spaced(len(measured), STEPS)]
    rows = max(1, -(-len(places) // ABREAST))
    figure = Figure(figsize=(3.2 * ABREAST, 3.2 * rows), layout="constrained")
    figure.suptitle("decision regions", fontsize=11)
    x, y = task.dataset.x, task.dataset.y
    low, high = x.min(axis=-1) - 0.5, x.max(axis=-1) + 0.5
    grid = [np.linspace(low[k], high[k], FINE) for k in (0, 1)]
    points = np.stack([each.ravel() for each in np.meshgrid(*grid)])
    classes, decides = task.dataset.classes or 0, task.loss.decides
    assert decides is not None
    for number, axes in enumerate(figure.subplots(rows, ABREAST, squeeze=False).flat):
        if number >= len(places):
            axes.set_axis_off()
            continue
        network = network_of(config, task, quantity.values[places[number]])
        decided = decides(network.forward(points)[0]).reshape(FINE, FINE)
        axes.contourf(*grid, decided, levels=np.arange(classes + 1) - 0.5, colors=COLOURS[:classes], alpha=0.35)
        for label in range(classes):
            axes.scatter(*x[:, y == label], s=4, color=COLOURS[label], linewidths=0)
        right = (decides(network.forward(x)[0]) == y).mean()
        axes.set_title(f"after {quantity.at[places[number]]} updates: {100 * right:.0f} % right", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def has_regions(task: Task) -> bool:
    """Whether there are decisions to be drawn: of two-dimensional data with classes that have a colour each."""
    return task.dataset.x.shape[0] == 2 and task.dataset.classes is not None and task.dataset.classes <= len(COLOURS)


# More threads than one would wait for each other at products as small as these.
@threadpool_limits.wrap(limits=1, user_api="blas")
@np.errstate(over="ignore", invalid="ignore")
def loss_slice(config: Config, task: Task, parameters: Array) -> Figure:
    """The loss on the plane through the parameters along the Hessian's two eigenvectors of largest eigenvalue, in float64.

    As far as the quadratic form, 1/2 lambda t^2, adds as much as the loss of the best constant prediction. Where an eigenvalue
    is not found to 1 %, along the best vector that is; where H has no finite products, along two random ones.
    """
    x, y = task.dataset.x[:, :MEASURED], task.dataset.y[..., :MEASURED]
    network = network_of(config, task, parameters.astype(np.float64))
    start = np.random.default_rng(0).standard_normal((2, len(parameters)))
    start /= norm(start)[:, None]
    values, vectors = top_eigenpairs(Hessian(network, x, y, task.loss, (2,)), start, tolerance=0.01)
    if is_random := bool(np.isnan(vectors).any()):
        vectors = start
    reach = [math.sqrt(2 * task.constant_loss / max(abs(value), 1e-12)) for value in np.nan_to_num(values, nan=1.0).tolist()]
    across, up = (np.linspace(-far, far, COARSE) for far in reach)
    losses = np.empty((COARSE, COARSE))
    for (row, column), _ in np.ndenumerate(losses):
        moved = parameters + across[column] * vectors[0] + up[row] * vectors[1]
        losses[row, column] = task.loss(network.with_parameters(moved).forward(x)[0], y)[0]
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.subplots()
    levels = np.geomspace(max(float(np.nanmin(losses)), 1e-8), max(float(np.nanmax(losses)), 2e-8), 20)
    image = axes.contourf(across, up, losses, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="viridis", extend="both")
    axes.plot(0, 0, "+", color="white", markersize=10)
    axes.set(**{f"{axis}label": _direction(k, values[k - 1], is_random) for k, axis in ((1, "x"), (2, "y"))})
    along = "random directions:\nno product of its Hessian is finite" if is_random else "its Hessian's top eigenvectors"
    axes.set_title(f"the loss around the network, along {along}", fontsize=10)
    figure.colorbar(image, ax=axes, label="loss", format="%.2g")
    return figure


def _direction(number: int, eigenvalue: float, is_random: bool) -> str:
    """What stands at an axis of a loss's slice."""
    if is_random:
        return f"along random direction {number}"
    if math.isnan(eigenvalue):
        return rf"along an estimate of $v_{number}$, $\lambda_{number}$ is not found to 1 %"
    return rf"along $v_{number}$, $\lambda_{number}$ = {eigenvalue:.3g}"
