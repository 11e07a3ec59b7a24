"""Pictures of a network from its parameters: its saturated units, its decisions, and the loss near its parameters.

Each function takes a run's config, its task, and its parameters (P,) or its history, and returns a figure.
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
# The most panels of decision regions; the points along each side of their grid, and of the grid of a loss slice.
MAX_PANELS, REGION_POINTS, SLICE_POINTS = 6, 200, 25
# The number of examples of a saturation map, and of a loss slice.
MAP_EXAMPLES, LOSS_EXAMPLES = 100, 256
# So many panels of decision regions are drawn side by side.
PANELS_PER_ROW = 3


def build_network(config: Config, task: Task, parameters: Array) -> Network:
    """Return the network of a run with those parameters (..., P)."""
    return Network(sizes(config, task), config.network.activation, parameters, config.network.kind)


@np.errstate(over="ignore", invalid="ignore")
def saturation_map(config: Config, task: Task, parameters: Array, block: int | None = None) -> Figure:
    """Draw which entries of one block's activations are saturated, with a row for each example and a column for each unit.

    The units with the most saturated entries come first. Saturated is what the instrument `signals` counts as saturated; with
    relu it means dead. block: 1 to L; None takes the block with the largest share.
    """
    network = build_network(config, task, parameters)
    _, caches = network.forward(task.dataset.x[:, :MAP_EXAMPLES])
    entries_by_block = [saturated_entries(layer, cache) for layer, cache in zip(network.blocks, caches, strict=True)]
    index = int(np.argmax([entries.mean() for entries in entries_by_block])) if block is None else block - 1
    entries, (z, _) = entries_by_block[index], network.blocks[index].activation_at(caches[index])
    order = np.argsort(-entries.mean(axis=-1), kind="stable")
    signs = np.where(entries, np.where(z > 0, 1, -1), 0)[order]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([COLOURS[0], "0.94", COLOURS[1]])
    norm_of_signs = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)
    image = axes.imshow(signs.T, cmap=colours, norm=norm_of_signs, aspect="auto", interpolation="nearest")
    always_saturated = int(entries.all(axis=-1).sum())
    word = "dead" if config.network.activation == "relu" else "saturated"
    axes.set_title(
        f"{word} activations of block {index + 1} of {network.depth}: {100 * entries.mean():.0f} %\n"
        f"{always_saturated} of {len(entries)} units for every example",
        fontsize=10,
    )
    axes.set(xlabel="unit", ylabel="example")
    figure.colorbar(image, ax=axes, ticks=[-1, 0, 1]).ax.set_yticklabels(["z < 0", "no", "z > 0"])
    return figure


@np.errstate(over="ignore", invalid="ignore")
def decision_regions(config: Config, task: Task, history: History) -> Figure:
    """Draw the network's decisions on two-dimensional data, at up to MAX_PANELS of the steps with measured parameters."""
    quantity = history.quantities[NAME]
    finite_steps = np.flatnonzero(np.isfinite(quantity.values).all(axis=-1))
    step_indices = finite_steps[evenly_spaced(len(finite_steps), MAX_PANELS)]
    rows = max(1, -(-len(step_indices) // PANELS_PER_ROW))
    figure = Figure(figsize=(3.2 * PANELS_PER_ROW, 3.2 * rows), layout="constrained")
    figure.suptitle("decision regions", fontsize=11)
    x, y = task.dataset.x, task.dataset.y
    low, high = x.min(axis=-1) - 0.5, x.max(axis=-1) + 0.5
    grid = [np.linspace(low[k], high[k], REGION_POINTS) for k in (0, 1)]
    points = np.stack([coordinate.ravel() for coordinate in np.meshgrid(*grid)])
    classes, decides = task.dataset.classes or 0, task.loss.decides
    assert decides is not None
    for number, axes in enumerate(figure.subplots(rows, PANELS_PER_ROW, squeeze=False).flat):
        if number >= len(step_indices):
            axes.set_axis_off()
            continue
        network = build_network(config, task, quantity.values[step_indices[number]])
        decisions = decides(network.forward(points)[0]).reshape(REGION_POINTS, REGION_POINTS)
        axes.contourf(*grid, decisions, levels=np.arange(classes + 1) - 0.5, colors=COLOURS[:classes], alpha=0.35)
        for label in range(classes):
            axes.scatter(*x[:, y == label], s=4, color=COLOURS[label], linewidths=0)
        accuracy = (decides(network.forward(x)[0]) == y).mean()
        axes.set_title(f"after {quantity.at[step_indices[number]]} updates: {100 * accuracy:.0f} % right", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def has_regions(task: Task) -> bool:
    """Return whether decisions can be drawn: the data must have two dimensions, and no more classes than there are colours."""
    return task.dataset.x.shape[0] == 2 and task.dataset.classes is not None and task.dataset.classes <= len(COLOURS)


# With products as small as these, several threads would only wait for each other.
@threadpool_limits.wrap(limits=1, user_api="blas")
@np.errstate(over="ignore", invalid="ignore")
def loss_slice(config: Config, task: Task, parameters: Array) -> Figure:
    """Draw the loss on the plane through the parameters along the Hessian's two eigenvectors of largest eigenvalue, in float64.

    The plane ends where the quadratic form, 1/2 lambda t^2, equals the loss of the best constant prediction. Where an eigenvalue
    does not converge to 1 %, its best estimate is used. Where H has no finite products, two random directions are used.
    """
    x, y = task.dataset.x[:, :LOSS_EXAMPLES], task.dataset.y[..., :LOSS_EXAMPLES]
    network = build_network(config, task, parameters.astype(np.float64))
    start_vectors = np.random.default_rng(0).standard_normal((2, len(parameters)))
    start_vectors /= norm(start_vectors)[:, None]
    values, vectors = top_eigenpairs(Hessian(network, x, y, task.loss, (2,)), start_vectors, tolerance=0.01)
    if is_random := bool(np.isnan(vectors).any()):
        vectors = start_vectors
    limits = [math.sqrt(2 * task.constant_loss / max(abs(value), 1e-12)) for value in np.nan_to_num(values, nan=1.0).tolist()]
    x_steps, y_steps = (np.linspace(-limit, limit, SLICE_POINTS) for limit in limits)
    losses = np.empty((SLICE_POINTS, SLICE_POINTS))
    for (row, column), _ in np.ndenumerate(losses):
        shifted = parameters + x_steps[column] * vectors[0] + y_steps[row] * vectors[1]
        losses[row, column] = task.loss(network.with_parameters(shifted).forward(x)[0], y)[0]
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.subplots()
    levels = np.geomspace(max(float(np.nanmin(losses)), 1e-8), max(float(np.nanmax(losses)), 2e-8), 20)
    image = axes.contourf(
        x_steps, y_steps, losses, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="viridis", extend="both"
    )
    axes.plot(0, 0, "+", color="white", markersize=10)
    axes.set(**{f"{axis}label": _axis_label(k, values[k - 1], is_random) for k, axis in ((1, "x"), (2, "y"))})
    directions = "random directions:\nno product of its Hessian is finite" if is_random else "its Hessian's top eigenvectors"
    axes.set_title(f"the loss around the network, along {directions}", fontsize=10)
    figure.colorbar(image, ax=axes, label="loss", format="%.2g")
    return figure


def _axis_label(number: int, eigenvalue: float, is_random: bool) -> str:
    """Return the label of axis 1 or 2 of a loss slice."""
    if is_random:
        return f"along random direction {number}"
    if math.isnan(eigenvalue):
        return rf"along an estimate of $v_{number}$, $\lambda_{number}$ is not found to 1 %"
    return rf"along $v_{number}$, $\lambda_{number}$ = {eigenvalue:.3g}"
