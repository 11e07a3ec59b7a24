"""Central differences against backward: one block alone, and a whole network along one direction."""

import numpy as np

from blocks.arrays import Array
from blocks.block import Block
from blocks.losses import Loss
from blocks.network import Network


def relative_error(a: Array, b: Array) -> float:
    """||a - b|| / max(||a||, ||b||), 0 where both are 0."""
    largest = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / largest if largest else 0.0


def check_block(block: Block, a_prev: Array, rng: np.random.Generator, step: float = 1e-6) -> dict[str, float]:
    """Relative errors of da_prev, dW and db, each against central differences of every entry.

    The block's output is contracted with a random upstream gradient da, so that f = sum(da * a) is a number and one
    block is checked with no loss on top:  df/dv ~ (f(v + step) - f(v - step)) / (2 step).

    block: float64, no lanes; its parameters are moved and put back. a_prev: (n_{l-1}, m).
    """
    a, cache = block.forward(a_prev)
    da = rng.standard_normal(a.shape)
    da_prev, dW, db = block.backward(da, cache)
    a_prev = a_prev.copy()
    errors = {}
    for name, values, exact in (("da_prev", a_prev, da_prev), ("dW", block.W, dW), ("db", block.b, db)):
        numeric = np.empty(values.shape)
        for index in np.ndindex(values.shape):
            at = values[index]
            values[index] = at + step
            above = block.forward(a_prev)[0]
            values[index] = at - step
            below = block.forward(a_prev)[0]
            values[index] = at
            numeric[index] = np.sum(da * (above - below)) / (2 * step)
        errors[name] = relative_error(numeric, exact)
    return errors


def check_network(network: Network, loss: Loss, x: Array, y: Array, rng: np.random.Generator, step: float = 1e-6) -> float:
    """Relative error of the loss's derivative along a random direction v of the parameters, two evaluations at any depth:

        grad J . v  ~  (J(theta + step v) - J(theta - step v)) / (2 step)

    network: float64, no lanes; its parameters are left as they are. x: (n_0, m), y: targets as `loss` takes them.
    """
    direction = rng.standard_normal(network.parameters.shape)
    direction /= np.linalg.norm(direction)
    logits, caches = network.forward(x)
    _, dlogits = loss(logits, y)
    gradient = np.empty_like(network.parameters)
    network.backward_into(network.layout.blocks(gradient), dlogits, caches)

    def along(distance: float) -> Array:
        moved = network.with_parameters(network.parameters + distance * direction)
        return loss(moved.forward(x)[0], y)[0]

    numeric = (along(step) - along(-step)) / (2 * step)
    return relative_error(np.asarray(numeric), np.asarray(gradient @ direction))
