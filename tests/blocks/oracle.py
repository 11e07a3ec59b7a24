"""The same network written independently, in JAX: what the engine's gradients are compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {
    "identity": lambda z: z,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": lambda z: jax.nn.leaky_relu(z, 0.01),
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=True),
    "swish": jax.nn.swish,
}


def softmax_cross_entropy(logits, y):
    return -jnp.mean(jax.nn.log_softmax(logits, axis=0)[y, jnp.arange(y.shape[0])])


def sigmoid_cross_entropy(logits, y):
    z = logits[0]
    return -jnp.mean(y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z))


def half_mean_squared_error(logits, y):
    return jnp.mean(jnp.sum((logits - y) ** 2, axis=0)) / 2


def huber(logits, y):
    return jnp.mean(jnp.sum(optax.losses.huber_loss(logits, y, delta=1.0), axis=0))


def one_hot_squared_error(logits, y):
    return half_mean_squared_error(logits, jax.nn.one_hot(y, logits.shape[0], axis=0))


FUNCTIONS = (softmax_cross_entropy, sigmoid_cross_entropy, half_mean_squared_error, huber, one_hot_squared_error)
LOSSES = {f.__name__: f for f in FUNCTIONS}


def parameters_of(network, lane=()):
    """[(W, b), ...] as plain arrays."""
    return [(jnp.asarray(block.W[lane]), jnp.asarray(block.b[lane])) for block in network.blocks]


# The axis over which a kind of block standardises its input: an example's units, or a batch's examples.
AXES = {"normalized": 0, "batch_normalized": 1}


def standardised(a, axis=0):
    """Layer normalisation without gain and bias (Ba, Kiros, Hinton 2016); axis 1: batch normalisation (Ioffe, Szegedy 2015)."""
    return (a - jnp.mean(a, axis, keepdims=True)) / jnp.sqrt(jnp.var(a, axis, keepdims=True) + 1e-5)


def residual(W, b, a_prev, activation, scale):
    return a_prev + scale * (W @ ACTIVATIONS[activation](a_prev) + b)


def normalized(W, b, a_prev, activation, axis=0):
    return ACTIVATIONS[activation](W @ standardised(a_prev, axis) + b)


def logits_of(parameters, x, activation, kind="plain", added=None):
    """added: what is added to the a of each block, and to the logits: J's derivative with respect to it is da."""
    added = [0] * len(parameters) if added is None else added
    a = x
    for index, (W, b) in enumerate(parameters[:-1]):
        if kind == "residual" and index > 0:
            a = residual(W, b, a, activation, 1 / np.sqrt(len(parameters)))
        elif kind in AXES and index > 0:
            a = normalized(W, b, a, activation, AXES[kind])
        else:
            a = ACTIVATIONS[activation](W @ a + b)
        a = a + added[index]
    W, b = parameters[-1]
    if kind in AXES and len(parameters) > 1:
        a = standardised(a, AXES[kind])
    return W @ a + b + added[-1]


def targets_for(loss, rng, units, m):
    """Random targets as the loss takes them."""
    if loss in ("softmax_cross_entropy", "one_hot_squared_error"):
        return rng.integers(0, units, m)
    if loss == "sigmoid_cross_entropy":
        return rng.integers(0, 2, m)
    return rng.standard_normal((units, m))
