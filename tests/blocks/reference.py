"""The network a second time, written in jax.numpy with optax's losses, and what automatic differentiation says of it."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from blocks import ACTIVATIONS, LOSSES, Network

G = {
    "identity": lambda z: z,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "gelu": partial(jax.nn.gelu, approximate=True),
}
J = {
    "softmax_cross_entropy": lambda a, y: optax.softmax_cross_entropy_with_integer_labels(a.T, y).mean(),
    "sigmoid_cross_entropy": lambda a, y: optax.sigmoid_binary_cross_entropy(a[0], y).mean(),
    "half_mean_squared_error": lambda a, y: optax.l2_loss(a, y).sum() / a.shape[1],
}
ACTIVATION_NAMES = list(ACTIVATIONS)
LOSS_NAMES = list(LOSSES)


def logits(parameters, x, activation):
    """parameters: [(W, b), ...] of blocks 1..L. x: (n_0, m)."""
    *hidden, (W, b) = parameters
    a = x
    for W_l, b_l in hidden:
        a = G[activation](W_l @ a + b_l)
    return W @ a + b


@cache
def value_and_gradients(activation, loss):
    """f(parameters, x, y) -> J, ([(dW, db), ...], da_0), compiled once for each set of shapes."""

    def value(parameters, x, y):
        return J[loss](logits(parameters, x, activation), y)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


@cache
def derivative(activation):
    """g' of an array of numbers."""
    return jax.jit(jax.vmap(jax.grad(G[activation])))


def parameters_of(network, lane=()):
    """[(W, b), ...] of one lane, on arrays of their own."""
    return [(np.array(block.W[lane]), np.array(block.b[lane])) for block in network.blocks]


def random_network(sizes, activation, lanes, rng, dtype=np.float64):
    """Every parameter is drawn, the biases too: at b = 0 a dead unit sits on relu's kink. lanes: (), or their shape."""
    empty = Network.create(sizes, activation, "zeros", rng=rng)
    scale = np.where(empty.layout.is_weight, 0.8, 0.5)
    return Network(sizes, activation, (scale * rng.standard_normal((*lanes, empty.layout.size))).astype(dtype))


def random_targets(loss, n, m, rng):
    """y for n logits of m examples, as that loss takes it."""
    if loss == "half_mean_squared_error":
        return rng.standard_normal((n, m))
    return rng.integers(0, n if loss == "softmax_cross_entropy" else 2, m)


def sizes_for(loss, sizes):
    """The sigmoid's cross-entropy takes one logit."""
    return (*sizes[:-1], 1) if loss == "sigmoid_cross_entropy" else tuple(sizes)


def assert_near(actual, expected, relative=1e-10):
    """||actual - expected|| <= relative ||expected||, and shapes equal. An expected 0 leaves room for rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= relative * np.linalg.norm(expected) + 1e-15
