"""mup, beside its authors' package, which has 1 / w in forward, and beside the table of the paper; and gamma."""

import jax
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from blocks import Adam, GradientDescent, Momentum, Network, RMSProp, losses, rate_factors, train
from blocks.estimators import NetworkClassifier
from blocks.parameters import Layout
from tests.blocks import oracle

RULES = {
    "gradient_descent": (GradientDescent, {}, optax.sgd(1.0)),
    "momentum": (Momentum, {"momentum": 0.9}, optax.sgd(1.0, momentum=0.9)),
    "adam": (Adam, {"epsilon": 1e-30}, optax.adam(1.0, eps=1e-30)),
}


def problem(m=9):
    rng = np.random.default_rng(1)
    return rng.standard_normal((3, m)), rng.integers(0, 2, m)


def of_package(network, rule, kind, rate):
    """[(W, b), ...] and their rates as microsoft/mup has them at w = n / 64: logits are W_L a / w + b_L, and the initial W_L is
    w times ours; MuSGD multiplies the rates of vectors by w, MuAdam those of matrices by 1 / w.
    """
    w, branch = network.layout.sizes[1] / 64, network.depth**-0.5 if kind == "residual" else 1.0
    *hidden, (W_L, b_L) = oracle.parameters_of(network)
    if rule == "adam":
        rates = [(rate, rate), *[(rate / w * branch, rate * branch)] * (network.depth - 2), (rate, rate)]
    else:
        rates = [(rate * w, rate * w), *[(rate, rate * w)] * (network.depth - 2), (rate * w, rate)]
    return [*hidden, (W_L * w, b_L)], rates, w


@pytest.mark.parametrize(
    ("rule", "kind"), [("gradient_descent", "residual"), ("momentum", "plain"), ("adam", "residual"), ("adam", "plain")]
)
def test_a_training_is_that_of_the_authors_package(rule, kind):
    create, options, theirs = RULES[rule]
    x, y = problem()
    network = Network.create([3, 16, 16, 16, 2], "tanh", rng=np.random.default_rng(0), kind=kind, parametrization="mup")
    parameters, rates, w = of_package(network, rule, kind, 0.05)

    def J(parameters):
        *hidden, (W_L, b_L) = parameters
        return oracle.softmax_cross_entropy(oracle.logits_of([*hidden, (W_L / w, b_L)], x, "tanh", kind), y)

    value_and_gradient, state, values = jax.jit(jax.value_and_grad(J)), theirs.init(parameters), []
    for _ in range(6):
        value, gradient = value_and_gradient(parameters)
        values.append(float(value))
        steps, state = theirs.update(gradient, state)
        parameters = jax.tree.map(lambda theta, step, rate: theta + rate * step, parameters, steps, rates)
    optimizer = create(0.05 * rate_factors(network.layout, kind, create.scale_free, "mup"), **options)
    history = train(network, x, y, loss=losses.softmax_cross_entropy, optimizer=optimizer, epochs=6)
    assert_allclose(history.loss, values, rtol=1e-10)
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(
    ("rule", "W", "b"),
    [
        # Tensor Programs V, table 3, in units of 64: fan_out of W_1 and biases, 1, 1 / fan_in; 1, 1 / fan_in, 1 / fan_in.
        (GradientDescent, [2, 4 / 2, 1 / 4], [2, 4, 1]),
        (Adam, [1, 1 / 2, 1 / 4], [1, 1, 1]),
        (RMSProp, [1, 1 / 2, 1 / 4], [1, 1, 1]),
    ],
)
def test_the_factors_are_those_of_the_table(rule, W, b):
    layout = Layout([5, 128, 256, 3])
    factors = layout.blocks(rate_factors(layout, "plain", rule.scale_free, "mup"))
    assert [set(np.unique(block[:, :-1])) for block in factors] == [{value} for value in W]
    assert [set(np.unique(block[:, -1])) for block in factors] == [{value} for value in b]
    assert (rate_factors(layout, "plain", rule.scale_free, "standard") == 1).all()
    # Tensor Programs VI, table 1: eta and eta / sqrt(depth).
    layout = Layout([5, 64, 64, 64, 3])
    branch = 0.5 if rule.scale_free else 1
    by_block = [np.unique(block).tolist() for block in layout.blocks(rate_factors(layout, "residual", rule.scale_free, "mup"))]
    assert by_block == [[1], [branch], [branch], [1]]


def test_initial_weights_are_standard_but_for_the_last_block():
    def made(parametrization, sizes=(5, 128, 256, 3)):
        rng = np.random.default_rng(0)
        return Network.create(sizes, rng=rng, bias_variance=1.0, parametrization=parametrization)

    ours, standard = made("mup"), made("standard")
    for block, other in zip(ours.blocks[:-1], standard.blocks[:-1], strict=True):
        assert_array_equal(block.joined, other.joined)
    # Variance 1 / fan_in^2: a quarter of it at fan_in 4 times 64.
    assert_allclose(ours.blocks[-1].W, standard.blocks[-1].W / 2, rtol=1e-15)
    assert_array_equal(ours.blocks[-1].b, standard.blocks[-1].b)
    for sizes in ((5, 3), (5, 64, 64, 3)):
        assert made("mup", sizes).parameters.tobytes() == made("standard", sizes).parameters.tobytes()
    with pytest.raises(ValueError, match="parametrization 'foo' is unknown, allowed: standard, mup"):
        made("foo")


@pytest.mark.parametrize("rule", ["gradient_descent", "momentum", "adam"])
def test_outputs_divided_by_gamma_are_a_rate_of_the_last_block(rule):
    create, options, theirs = RULES[rule]
    (x, y), gamma = problem(), 3.0
    network = Network.create([3, 8, 8, 2], "tanh", rng=np.random.default_rng(0), bias_variance=1.0, gamma=gamma)
    parameters = oracle.parameters_of(network)
    assert_array_equal(network.forward(x)[0], np.zeros((2, 9)))

    def J(parameters):
        return oracle.softmax_cross_entropy(oracle.logits_of(parameters, x, "tanh") / gamma, y)

    value_and_gradient, state, values = jax.jit(jax.value_and_grad(J)), theirs.init(parameters), []
    for _ in range(6):
        value, gradient = value_and_gradient(parameters)
        values.append(float(value))
        steps, state = theirs.update(gradient, state)
        parameters = jax.tree.map(lambda theta, step: theta + 0.05 * step, parameters, steps)
    optimizer = create(0.05 * rate_factors(network.layout, "plain", create.scale_free, "standard", gamma), **options)
    history = train(network, x, y, loss=losses.softmax_cross_entropy, optimizer=optimizer, epochs=6)
    assert_allclose(history.loss, values, rtol=1e-10)
    with pytest.raises(ValueError, match=r"gamma is 0\.0, it must be finite and above 0"):
        Network.create([3, 2], rng=np.random.default_rng(0), gamma=0.0)


def test_an_estimator_of_width_64_is_the_standard_one_and_of_another_is_not():
    x, y = problem(40)

    def parameters(**options):
        return NetworkClassifier(epochs=2, random_state=0, **options).fit(x.T, y).network_.parameters

    for kind, width, same in (("plain", 64, True), ("plain", 32, False), ("residual", 64, False)):
        standard, mup = (parameters(kind=kind, width=width, parametrization=name) for name in ("standard", "mup"))
        assert (standard.tobytes() == mup.tobytes()) == same
