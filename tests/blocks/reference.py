"""Random networks, and what JAX's automatic differentiation says of them, compiled once for each set of shapes."""

from functools import cache
from itertools import combinations, product

import jax
import numpy as np

from blocks import ACTIVATIONS, LOSSES, Network
from tests.blocks import oracle

ACTIVATION_NAMES = list(ACTIVATIONS)
LOSS_NAMES = list(LOSSES)
# Every activation with one loss, and every loss with one activation, where all pairs would mean minutes of compiling.
PAIRS = [*((name, "softmax_cross_entropy") for name in ACTIVATION_NAMES), *(("gelu", name) for name in LOSS_NAMES[1:])]
SHAPES = {1: [5, 3], 2: [5, 4, 3], 3: [4, 6, 5, 3], 4: [3, 4, 4, 4, 2], 5: [3, 5, 4, 3, 4, 2]}


def all_pairs(*tables):
    """Few combinations of the tables' entries, in which every entry of a table meets every entry of every other one."""
    rows = {row: set(combinations(enumerate(row), 2)) for row in product(*(range(len(table)) for table in tables))}
    unmet, chosen = set().union(*rows.values()), []
    while unmet:
        row = max(rows, key=lambda row: len(rows[row] & unmet))
        unmet -= rows[row]
        chosen.append(tuple(table[index] for table, index in zip(tables, row, strict=True)))
    return chosen


@cache
def value_and_gradients(activation, loss, kind="plain"):
    """f(parameters, x, y) -> J, ([(dW, db), ...], da_0); parameters as `oracle.parameters_of` gives them."""

    def value(parameters, x, y):
        return oracle.LOSSES[loss](oracle.logits_of(parameters, x, activation, kind), y)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


@cache
def derivative(activation):
    """g' of an array of numbers."""
    return jax.jit(jax.vmap(jax.grad(oracle.ACTIVATIONS[activation])))


def random_network(sizes, activation, lanes, rng, dtype=np.float64, kind="plain"):
    """Every parameter is drawn, the biases too: at b = 0 a dead unit sits on relu's kink. lanes: (), or their shape."""
    empty = Network.create(sizes, activation, "zeros", rng=rng)
    scale = np.where(empty.layout.is_weight, 0.8, 0.5)
    return Network(sizes, activation, (scale * rng.standard_normal((*lanes, empty.layout.size))).astype(dtype), kind)


def problem(activation, loss, sizes, lanes=(), m=7, seed=0, dtype=np.float64, kind="plain"):
    """A network with random parameters, x and y."""
    rng = np.random.default_rng(seed)
    sizes = sizes_for(loss, sizes)
    network = random_network(sizes, activation, lanes, rng, dtype, kind)
    return network, rng.standard_normal((sizes[0], m)).astype(dtype), oracle.targets_for(loss, rng, sizes[-1], m)


def sizes_for(loss, sizes):
    """The sigmoid's cross-entropy takes one logit."""
    return (*sizes[:-1], 1) if loss == "sigmoid_cross_entropy" else tuple(sizes)


def assert_near(actual, expected, relative=1e-10):
    """||actual - expected|| <= relative ||expected||, and shapes equal. An expected 0 leaves room for rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= relative * np.linalg.norm(expected) + 1e-15
