"""Random networks, and what JAX's automatic differentiation says of them, compiled once for each set of shapes."""

from functools import cache

import jax
import numpy as np

from blocks import ACTIVATIONS, LOSSES, Network
from tests.blocks import oracle

ACTIVATION_NAMES = list(ACTIVATIONS)
LOSS_NAMES = list(LOSSES)


@cache
def value_and_gradients(activation, loss):
    """f(parameters, x, y) -> J, ([(dW, db), ...], da_0); parameters as `oracle.parameters_of` gives them."""

    def value(parameters, x, y):
        return oracle.LOSSES[loss](oracle.logits_of(parameters, x, activation), y)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


@cache
def derivative(activation):
    """g' of an array of numbers."""
    return jax.jit(jax.vmap(jax.grad(oracle.ACTIVATIONS[activation])))


def random_network(sizes, activation, lanes, rng, dtype=np.float64):
    """Every parameter is drawn, the biases too: at b = 0 a dead unit sits on relu's kink. lanes: (), or their shape."""
    empty = Network.create(sizes, activation, "zeros", rng=rng)
    scale = np.where(empty.layout.is_weight, 0.8, 0.5)
    return Network(sizes, activation, (scale * rng.standard_normal((*lanes, empty.layout.size))).astype(dtype))


def sizes_for(loss, sizes):
    """The sigmoid's cross-entropy takes one logit."""
    return (*sizes[:-1], 1) if loss == "sigmoid_cross_entropy" else tuple(sizes)


def assert_near(actual, expected, relative=1e-10):
    """||actual - expected|| <= relative ||expected||, and shapes equal. An expected 0 leaves room for rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= relative * np.linalg.norm(expected) + 1e-15
