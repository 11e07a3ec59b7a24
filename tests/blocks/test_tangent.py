"""The tangent of what is recorded: each rule, and H v of whole networks, against JAX's forward mode."""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blocks import ACTIVATIONS, KINDS, LOSSES, Activation
from blocks.measure.hessian import hessian_vector_product
from blocks.parameters import Layout
from blocks.tape import program
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay
from blocks.tape.tangent import DERIVATIVES, tangent
from tests.blocks import oracle
from tests.blocks.reference import assert_near, problem

POSITIVE = (np.sqrt, np.log, np.log1p, np.reciprocal, np.divide)
SIZES = (4, 5, 5, 3)
JAX_ACTIVATIONS = {**oracle.ACTIVATIONS, "swish": jax.nn.silu}


def jax_huber(logits, y):
    error = jnp.abs(logits - y)
    return jnp.mean(jnp.sum(jnp.where(error <= 1, error**2 / 2, error - 0.5), axis=0))


JAX_LOSSES = {**oracle.LOSSES, "huber": jax_huber}


@pytest.fixture(params=["compiled", "call by call"], autouse=True)
def _machine(request, monkeypatch):
    if request.param != "compiled":
        monkeypatch.setattr(program, "_machine", lambda: None)


def moved(function, x, v, *others):
    """How function(x, *others) moves when x moves along v; all of them are recorded with other numbers."""
    mine = [np.ones_like(array) for array in (x, v, *others)]
    tape = Tape()
    start, direction, *rest = (tape.watch(array) for array in mine)
    result = tangent(tape, start, direction, function(start, *rest))
    recorded = Replay(tape, [result])
    for array, numbers in zip(mine, (x, v, *others), strict=True):
        array[...] = numbers
    recorded()
    return recorded.array(result)


def jvp(function, x, v, *others):
    return jax.jvp(lambda x: function(x, *others), (x,), (v,))[1]


def numbers(rng, function, shape=(3, 4)):
    values = rng.standard_normal(shape)
    return np.abs(values) + 0.1 if function in POSITIVE else values


@pytest.mark.parametrize("function", DERIVATIVES, ids=lambda function: function.__name__)
def test_every_rule_is_jaxs(function):
    rng = np.random.default_rng(0)
    of_jax = getattr(jnp, function.__name__)
    condition = rng.standard_normal((3, 4))
    count = len(DERIVATIVES[function]) - (function is np.where)
    x, v, y = numbers(rng, function), rng.standard_normal((3, 4)), numbers(rng, function, (1, 4))

    def cases(f, compare):
        """The function of what moves in every place, and in all of them."""
        if function is np.where:
            return [
                lambda x, y, c: f(compare(c), x, y),
                lambda x, y, c: f(compare(c), y, x),
                lambda x, y, c: f(compare(c), x, x * y),
            ]
        if count == 1:
            return [lambda x, y, c: f(x), lambda x, y, c: f(x * y)]
        return [lambda x, y, c: f(x, y), lambda x, y, c: f(y, x), lambda x, y, c: f(x, x * y), lambda x, y, c: f(x * y, 0.5)]

    # A rule of None is 0: sign alone, and with itself.
    for ours, theirs in zip(cases(function, lambda c: c > 0), cases(of_jax, lambda c: c > 0), strict=True):
        if DERIVATIVES[function] == (None,):
            ours, theirs = _plus_its_operand(ours), _plus_its_operand(theirs)
        assert_near(moved(ours, x, v, y, condition), jvp(theirs, x, v, y, condition))


def _plus_its_operand(function):
    return lambda x, y, c: function(x, y, c) + x


def test_products_extrema_and_pieces_are_jaxs():
    rng = np.random.default_rng(0)
    x, v, y = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4, 3))

    def chain(numpy, extremum):
        def function(x, y):
            joined = numpy.concatenate([x @ y @ x, y.mT, x * x], axis=-2)
            shifted = joined - extremum(joined)
            return numpy.tanh(shifted[..., 1:, :]) @ (y - joined[..., :4, :3]) @ (x[:1, ::-1] - joined[..., 1:2, :])

        return function

    ours = chain(np, lambda values: np.maximum.reduce(values, axis=-2, keepdims=True))
    theirs = chain(jnp, lambda values: jnp.max(values, axis=-2, keepdims=True))
    assert_near(moved(ours, x, v, y), jvp(theirs, x, v, y))


def test_directions_are_tangents_one_by_one():
    rng = np.random.default_rng(0)
    x, directions, y = rng.standard_normal((3, 4)), rng.standard_normal((5, 2, 3, 4)), rng.standard_normal((4, 3))

    def function(x, y):
        return np.tanh(x @ y) @ (x * x) @ y + x[:, :1] * 2

    actual = moved(function, x, directions, y)
    for index in np.ndindex(5, 2):
        assert_near(actual[index], moved(function, x, directions[index], y), 1e-14)


@pytest.mark.parametrize(
    ("function", "name"),
    [(np.arctan, "arctan"), (np.exp2, "exp2"), (lambda x: np.vecdot(x, x), "vecdot"), (lambda x: np.power(x, 3.0), "power")],
)
def test_what_has_no_rule_is_refused_by_name(function, name):
    with pytest.raises(ValueError, match=rf"np\.{name} has no tangent rule, allowed: positive, negative, add, .*where, matmul"):
        moved(function, np.ones((2, 3)), np.ones((2, 3)))


def test_what_does_not_move_has_no_tangent():
    with pytest.raises(ValueError, match="the output does not depend on what moves"):
        moved(lambda x, y: np.exp(y), np.ones(3), np.ones(3), np.ones(3))


def test_an_operation_without_a_rule_that_does_not_move_is_a_coefficient():
    x, v, y = np.full(3, 2.0), np.full(3, 3.0), np.full(3, 0.5)
    assert_near(moved(lambda x, y: x * x * np.arctan(y), x, v, y), 2 * x * v * np.arctan(y))


def arctan(z):
    return np.arctan(z)


def arctan_derivative(z, a):
    return 1 / (1 + z * z)


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_without_a_rule_is_refused_by_name_when_a_hessian_is_made(monkeypatch, kind):
    monkeypatch.setitem(ACTIVATIONS, "arctan", Activation("arctan", arctan, arctan_derivative))
    network, x, y = problem("arctan", "half_mean_squared_error", SIZES, kind=kind)
    with pytest.raises(ValueError, match=r"np\.arctan has no tangent rule"):
        hessian_vector_product(network, x, y, LOSSES["half_mean_squared_error"], network.parameters)


# H v of whole networks


@cache
def jax_product(activation, loss, kind, sizes):
    """f(flat, x, y, v) = H v, a block's [W b] column by column in the flat vector."""
    n = Layout(sizes).sizes
    ends = np.cumsum([units * (inputs + 1) for inputs, units in pairwise(n)])[:-1]

    def value(flat, x, y):
        joined = [part.reshape(-1, units).T for part, units in zip(jnp.split(flat, ends), n[1:], strict=True)]
        return JAX_LOSSES[loss](logits(joined, x), y)

    def logits(joined, x):
        a, g = x, JAX_ACTIVATIONS[activation]
        for index, block in enumerate(joined):
            W, b, last = block[:, :-1], block[:, -1:], index == len(joined) - 1
            if kind == "residual" and index > 0 and not last:
                a = a + (W @ g(a) + b) / np.sqrt(len(joined))
                continue
            z = W @ (oracle.standardised(a, oracle.AXES[kind]) if kind in oracle.AXES and index else a) + b
            a = z if last else g(z)
        return a

    def product(flat, x, y, v):
        return jax.jvp(lambda at: jax.grad(value)(at, x, y), (flat,), (v,))[1]

    return jax.jit(product)


@pytest.mark.parametrize("lanes", [(), (2,)])
@pytest.mark.parametrize("kind", KINDS)
def test_products_with_the_hessian_are_jaxs(kind, lanes):
    activation, loss = "swish", "huber"
    network, x, y = problem(activation, loss, SIZES, lanes, kind=kind)
    for directions in ((), (1,), (3,), (2, 2)):
        v = np.random.default_rng(1).standard_normal((*directions, *network.parameters.shape))
        actual = hessian_vector_product(network, x, y, LOSSES[loss], v)
        assert actual.shape == v.shape
        for index in np.ndindex(*directions, *lanes):
            flat = network.parameters[index[len(directions) :]]
            assert_near(actual[index], jax_product(activation, loss, kind, SIZES)(flat, x, y, v[index]))


@pytest.mark.parametrize(
    ("activation", "kind"), [*zip(("swish", "tanh", "softplus", "elu", "sigmoid"), [*KINDS, "residual"], strict=True)]
)
def test_the_hessian_is_symmetric(activation, kind):
    network, x, y = problem(activation, "huber", SIZES, kind=kind)
    rng = np.random.default_rng(1)
    v, w = rng.standard_normal((2, *network.parameters.shape))
    H_v, H_w = (hessian_vector_product(network, x, y, LOSSES["huber"], direction) for direction in (v, w))
    assert abs(w @ H_v - v @ H_w) <= 1e-12 * np.linalg.norm(H_v) * np.linalg.norm(w)
    H = hessian_vector_product(network, x, y, LOSSES["huber"], np.eye(network.layout.size))
    assert_near(H, H.T, 1e-13)
    assert_near(H @ v, H_v, 1e-12)
