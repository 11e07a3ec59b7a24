"""Checks of backward against central differences: of one block alone, and of a whole network along one direction."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from blocks.arrays import Array, check_number
from blocks.block import Block, Cache
from blocks.losses import Loss
from blocks.network import Network


def relative_error(a: Array, b: Array) -> float:
    """||a - b|| / max(||a||, ||b||), 0 where both are 0."""
    largest = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / largest if largest else 0.0


def _check_dtype_and_step(dtype: np.dtype, step: float) -> None:
    check_number("step", step, above=0)
    if dtype != np.float64:
        raise ValueError(f"dtype is {dtype}, central differences need float64: another one rounds more than a step changes")


def _check_smooth(what: str, blocks: Sequence[Block], *sides: Sequence[Cache]) -> None:
    """Raise ValueError where an activation's argument is on different sides of a kink in two successive `sides`.

    sides: the caches of all blocks, from one forward each.
    """
    for number, block in enumerate(blocks):
        arguments = [block.activation_at(caches[number])[0] for caches in sides]
        for kink in block.activation.kinks:
            if any(((one > kink) != (other > kink)).any() for one, other in pairwise(arguments)):
                name = f"the kink of {block.activation.name} at {kink:g}"
                raise ValueError(f"{name} lies within the step of {what}: there is no derivative to compare with; move the data")


def check_block(block: Block, a_prev: Array, rng: np.random.Generator, step: float = 1e-6) -> dict[str, float]:
    """Return the relative errors of da_prev, dW and db against central differences of every entry, by name.

    The block's output is multiplied by a random upstream gradient da, so that f = sum(da * a) is a number, and a block can be
    checked without a loss:  df/dv ~ (f(v + step) - f(v - step)) / (2 step).

    block: float64, without lanes. Its parameters are changed and restored. a_prev: (n_{l-1}, m). rng: draws da.
    Raises ValueError for another dtype or a step that is not above 0, and where the step of a value takes an example across a
    kink of the activation: the difference then mixes two derivatives, so that it says nothing about backward.
    """
    _check_dtype_and_step(block.W.dtype, step)
    a_prev = np.array(a_prev, np.float64)
    a, cache = block.forward(a_prev)
    da = rng.standard_normal(a.shape)
    da_prev, dW, db = block.backward(da, cache)
    errors = {}
    for name, values, exact in (("da_prev", a_prev, da_prev), ("dW", block.W, dW), ("db", block.b, db)):
        numeric = np.empty(values.shape)
        for index in np.ndindex(values.shape):
            value = values[index]
            values[index] = value + step
            above, cache_above = block.forward(a_prev)
            values[index] = value - step
            below, cache_below = block.forward(a_prev)
            values[index] = value
            _check_smooth(f"{name}{list(index)}", [block], [cache_above], [cache_below])
            numeric[index] = np.sum(da * (above - below)) / (2 * step)
        errors[name] = relative_error(numeric, exact)
    return errors


def check_network(network: Network, loss: Loss, x: Array, y: Array, rng: np.random.Generator, step: float = 1e-6) -> float:
    """Return the relative error of J's derivative along a random unit vector v in the space of the parameters.

        grad J . v  ~  (J(theta + step v) - J(theta - step v)) / (2 step)

    The difference needs two evaluations of J at any depth.

    network: float64, without lanes. Its parameters are not changed. x: (n_0, m). y: targets as `loss` takes them. rng: draws v.
    Raises ValueError for another dtype or a step that is not above 0, and where the step takes an example across a kink of an
    activation, see `check_block`.
    """
    _check_dtype_and_step(network.parameters.dtype, step)
    direction = rng.standard_normal(network.parameters.shape)
    direction /= np.linalg.norm(direction)
    logits, caches = network.forward(x)
    _, dlogits = loss(logits, y)
    gradient = network.gradient(dlogits, caches)

    def along(distance: float) -> tuple[Array, list[Cache]]:
        logits, caches = network.with_parameters(network.parameters + distance * direction).forward(x)
        return loss(logits, y)[0], caches

    (above, caches_above), (below, caches_below) = along(step), along(-step)
    _check_smooth("the parameters", network.blocks, caches_above, caches, caches_below)
    numeric = (above - below) / (2 * step)
    return relative_error(np.asarray(numeric), np.asarray(gradient @ direction))
