"""What is not in the package becomes part of it by one function pair, and one line in a table: everything else follows.

mish (Misra 2019), the logarithm of the hyperbolic cosine, and Lion (Chen et al. 2023) are added; swish, Huber's loss and RMSProp
are in the package.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad
from sklearn.datasets import load_iris

from blocks import ACTIVATIONS, KINDS, LOSSES, OPTIMIZERS, Activation, Loss, Network, reshuffled, train
from blocks.activations import sigmoid, softplus
from blocks.estimators import NetworkClassifier
from blocks.losses import half_mean_squared_error
from blocks.measure.hessian import hessian_vector_product
from blocks.optimizers import Optimizer
from blocks.tape import memory, program, replay
from blocks.tape.replay import replay_off
from blocks.theory import MeanField
from experiments.run.composition import compose_config, parse_config, register
from experiments.run.config import UserError
from tests.blocks import oracle
from tests.blocks.reference import all_pairs, assert_near, random_network

SIZES = (4, 5, 5, 3)
M = 7


# One function pair, and one line in a table.


def mish(z):
    """g(z) = z tanh(softplus(z))"""
    return z * np.tanh(softplus(z))


def mish_derivative(z, a):
    """g'(z) = t + z (1 - t^2) sigmoid(z),  t = tanh(softplus(z))"""
    t = np.tanh(softplus(z))
    return t + z * (1 - t * t) * sigmoid(z)


def log_cosh(logits, target):
    """J = 1/m sum of log cosh(z - y)        dJ/dz = tanh(z - y) / m"""
    m, error = logits.shape[-1], logits - target
    terms = np.logaddexp(error, -error) - float(np.log(2))
    n = logits.shape[-2]
    return np.vecdot(terms.reshape(*terms.shape[:-2], -1), np.full(n * m, 1 / m, logits.dtype)), np.tanh(error) * (1 / m)


@dataclass(frozen=True, eq=False)
class Lion(Optimizer):
    """theta := theta - alpha sign(beta_1 m + (1 - beta_1) g);  m := beta_2 m + (1 - beta_2) g"""

    beta_1: Any = 0.9
    beta_2: Any = 0.99

    moments = 1

    def step(self, theta, g, moments, numbers):
        (m,), (alpha,) = moments, numbers
        beta_1, beta_2 = (np.asarray(beta, theta.dtype)[..., None] for beta in (self.beta_1, self.beta_2))
        return theta - alpha * np.sign(beta_1 * m + (1 - beta_1) * g), beta_2 * m + (1 - beta_2) * g


@pytest.fixture(autouse=True)
def _in_the_tables(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "mish", Activation("mish", mish, mish_derivative))
    values = half_mean_squared_error
    monkeypatch.setitem(LOSSES, "log_cosh", Loss("log_cosh", log_cosh, values.check, values.encode))
    monkeypatch.setitem(OPTIMIZERS, "lion", Lion)


# The same in JAX and optax.

JAX_ACTIVATIONS = {"mish": lambda z: z * jnp.tanh(jax.nn.softplus(z)), "swish": jax.nn.silu}
JAX_LOSSES = {
    "log_cosh": lambda logits, y: jnp.mean(jnp.sum(optax.log_cosh(logits, y), axis=0)),
    "huber": lambda logits, y: jnp.mean(jnp.sum(optax.huber_loss(logits, y), axis=0)),
}
OPTAX = {
    "lion": optax.lion(0.01, 0.9, 0.99, weight_decay=0.0),
    "rmsprop": optax.rmsprop(0.01, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=False),
}


def flat_value(activation, loss, kind, sizes=SIZES):
    """J of the flat parameters, a block's [W b] column by column in them."""
    ends = np.cumsum([n * (n_prev + 1) for n_prev, n in pairwise(sizes)])[:-1]
    g = JAX_ACTIVATIONS[activation]

    def value(flat, x, y):
        a, L = x, len(sizes) - 1
        for number, (part, n) in enumerate(zip(jnp.split(flat, ends), sizes[1:], strict=True), start=1):
            joined = part.reshape(-1, n).T
            W, b = joined[:, :-1], joined[:, -1:]
            if kind == "residual" and 1 < number < L:
                a = a + (W @ g(a) + b) / np.sqrt(L)
            else:
                z = W @ (oracle.standardised(a, oracle.AXES[kind]) if kind in oracle.AXES and number > 1 else a) + b
                a = g(z) if number < L else z
        return JAX_LOSSES[loss](a, y)

    return value


def problem(activation, kind="plain", lanes=(), seed=0):
    rng = np.random.default_rng(seed)
    network = random_network(SIZES, activation, lanes, rng, kind=kind)
    # Errors on both sides of Huber's bound.
    return network, rng.standard_normal((SIZES[0], M)), 2 * rng.standard_normal((SIZES[-1], M))


@pytest.mark.parametrize("activation", JAX_ACTIVATIONS)
def test_the_pair_is_jaxs(activation):
    z = np.concatenate([np.linspace(-12, 12, 401), [-800.0, -50.0, 0.0, 50.0, 800.0]])
    pair, g = ACTIVATIONS[activation], JAX_ACTIVATIONS[activation]
    a = pair.function(z)
    np.testing.assert_allclose(a, g(z), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(pair.derivative(z, a), jax.vmap(jax.grad(g))(z), rtol=1e-10, atol=1e-14)
    assert_near(pair.backward(np.full_like(z, 0.5), z, a), 0.5 * pair.derivative(z, a))


# swish and huber: test_tangent.py.
@pytest.mark.parametrize("kind", KINDS)
def test_value_gradient_and_products_with_the_hessian_are_jaxs(kind):
    activation, loss = "mish", "log_cosh"
    network, x, y = problem(activation, kind)
    v = np.random.default_rng(1).standard_normal(network.parameters.shape)
    value = flat_value(activation, loss, kind)
    gradient = jax.grad(value)
    expected, (expected_gradient, expected_product) = (
        value(network.parameters, x, y),
        jax.jit(lambda at, v: jax.jvp(lambda at: gradient(at, x, y), (at,), (v,)))(network.parameters, v),
    )
    logits, caches = network.forward(x)
    J, dlogits = LOSSES[loss](logits, y)
    assert_near(J, expected)
    assert_near(network.gradient(dlogits, caches), expected_gradient)
    assert_near(hessian_vector_product(network, x, y, LOSSES[loss], v), expected_product)


@pytest.mark.parametrize(("loss", "of_jax"), [("log_cosh", optax.log_cosh), ("huber", optax.huber_loss)])
def test_a_loss_with_weights_is_optaxs(loss, of_jax):
    _, _, y = problem("mish")
    logits = np.random.default_rng(2).standard_normal(y.shape)
    shares = np.arange(1.0, M + 1) / np.arange(1.0, M + 1).sum()

    def value(logits):
        return jnp.sum(jnp.sum(of_jax(logits, y), axis=0) * shares)

    expected, gradient = jax.value_and_grad(value)(logits)
    J, dlogits = LOSSES[loss](logits, y, weights=np.arange(1.0, M + 1))
    assert_near(J, expected)
    assert_near(dlogits, gradient)


@pytest.mark.parametrize("rule", OPTAX)
def test_fifty_updates_are_optaxs(rule):
    network, ours, theirs = problem("mish")[0], OPTIMIZERS[rule](0.01), OPTAX[rule]
    expected, rng = jnp.asarray(network.parameters), np.random.default_rng(1)
    state, their_state = ours.start(network), theirs.init(expected)
    for _ in range(50):
        gradient = rng.standard_normal(network.parameters.shape)
        ours.update(network.parameters, gradient, state)
        updates, their_state = theirs.update(jnp.asarray(gradient), their_state, expected)
        expected = optax.apply_updates(expected, updates)
        assert_near(network.parameters, expected)


# Training: in a stack, recorded, as one program.

CHOICES = [("mish", "log_cosh", "lion"), ("swish", "huber", "rmsprop"), ("mish", "softmax_cross_entropy", "adam")]


def trained(activation, loss, rule, rates, kind="plain", lanes=None, start=None, dtype=np.float32):
    """The bytes of every lane's parameters, losses and norms; the last batch is short, the last lane diverges."""
    rng = np.random.default_rng(0)
    sizes, m = (4, 16, 16, 3), 37
    x = rng.standard_normal((4, m))
    y = rng.integers(0, 3, m) if LOSSES[loss].decides else 2 * rng.standard_normal((3, m))
    network = Network.create(sizes, activation, rng=np.random.default_rng(1), dtype=dtype, lanes=3, kind=kind)
    if start is not None:
        network = network.with_parameters(network.parameters[start].copy())
    history = train(
        network,
        x,
        y,
        loss=loss,
        optimizer=OPTIMIZERS[rule](rates, weight_decay=0.01),
        epochs=4,
        batch_size=16,
        orders=reshuffled(np.random.default_rng(2), m),
        schedule="cosine",
        evaluations=2,
        loss_bound=1e4,
    )
    results = network.parameters, history.loss, history.grad_norm, history.diverged_step
    return (
        [[np.asarray(result[k]).tobytes() for result in results] for k in range(3)]
        if start is None
        else [np.asarray(result).tobytes() for result in results]
    )


@pytest.mark.parametrize(("choice", "kind", "dtype"), all_pairs(CHOICES, [*KINDS], [np.float32, np.float64]))
def test_a_stack_has_the_bits_of_runs_alone_recorded_compiled_or_not(monkeypatch, choice, kind, dtype):
    activation, loss, rule = choice
    rates = [1e-3, 1e-2, 1e3]
    stack = trained(activation, loss, rule, rates, kind, dtype=dtype)
    for lane, rate in enumerate(rates):
        assert trained(activation, loss, rule, rate, kind, start=lane, dtype=dtype) == stack[lane]
    with replay_off():
        assert trained(activation, loss, rule, rates, kind, dtype=dtype) == stack
    monkeypatch.setattr(replay, "PART", 100)
    monkeypatch.setattr(memory, "PART", 100)
    assert trained(activation, loss, rule, rates, kind, dtype=dtype) == stack
    monkeypatch.setattr(program, "_machine", lambda: None)
    assert trained(activation, loss, rule, rates, kind, dtype=dtype) == stack


# What is built on the tables.


@pytest.mark.parametrize(("activation", "rule"), [("mish", "lion"), ("swish", "rmsprop")])
def test_the_estimator_takes_them(activation, rule):
    x, y = load_iris(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    estimator = NetworkClassifier(activation=activation, optimizer=rule, learning_rate=1e-2, width=16, epochs=60, random_state=0)
    assert estimator.fit(x, y).score(x, y) > 0.95
    a, (*hidden, (W, b)) = x.T, oracle.parameters_of(estimator.network_)
    for block in hidden:
        a = JAX_ACTIVATIONS[activation](block[0] @ a + block[1])
    assert_near(estimator.predict_proba(x), jax.nn.softmax(W @ a + b, axis=0).T)


KEYS = {"network.activation": ("mish", "swish"), "training.loss": ("log_cosh", "huber"), "optimizer.name": ("lion", "rmsprop")}


@pytest.mark.parametrize("key", KEYS)
def test_the_config_s_key_takes_them(key):
    register()
    group, name = key.split(".")
    for value in KEYS[key]:
        assert getattr(getattr(parse_config(compose_config("config", [f"{key}={value}"])), group), name) == value
    with pytest.raises(UserError) as error:
        parse_config(compose_config("config", [f"{key}=mis"]))
    assert f"{key} 'mis' is unknown, allowed: " in str(error.value)
    assert all(value in str(error.value) for value in KEYS[key])


@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("activation", JAX_ACTIVATIONS)
def test_mean_field_theory_has_them(activation, q):
    pair = ACTIVATIONS[activation]
    theory = MeanField(activation, 1.5, 0.1)

    def mean(f, q):
        def density(u):
            return float(f(np.float64(np.sqrt(q) * u))) * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)

        return quad(density, -12, 12, epsabs=1e-13, epsrel=1e-13, limit=200)[0]

    def g(z):
        return float(JAX_ACTIVATIONS[activation](z))

    assert_near(theory.variance_map(q), 1.5 * mean(lambda z: pair.function(z) ** 2, q) + 0.1, 1e-9)
    assert_near(pair.function(np.float64(0.7)), g(0.7))
    star = theory.fixed_point
    assert_near(1.5 * mean(lambda z: pair.function(z) ** 2, star) + 0.1, star, 1e-9)
    assert_near(theory.chi_1, 1.5 * mean(lambda z: pair.derivative(z, pair.function(z)) ** 2, star), 1e-9)
