import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

from blocks import OPTIMIZERS, SCHEDULES, Adam, GradientDescent, Momentum, Nesterov, Network, RMSProp, losses, train
from blocks.optimizers import optimizer_named
from blocks.schedules import rate_schedule
from tests.blocks import oracle  # noqa: F401  (float64 in JAX)

PEERS = {
    "gradient_descent": (GradientDescent(0.1), optax.sgd(0.1)),
    "momentum": (Momentum(0.1, 0.9), optax.sgd(0.1, momentum=0.9)),
    "nesterov": (Nesterov(0.1, 0.9), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam": (Adam(0.01, 0.9, 0.999, 1e-8), optax.adam(0.01)),
}


def a_network(lanes=None):
    return Network.create([4, 5, 3], rng=np.random.default_rng(0), bias_variance=1.0, lanes=lanes)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("name", PEERS)
def test_fifty_updates_are_optaxs(name, weight_decay):
    ours, theirs = PEERS[name]
    values = {rule: getattr(ours, rule) for rule in vars(ours) if rule not in ("weight_decay", "decays")}
    ours = type(ours)(**values, weight_decay=weight_decay)
    network = a_network()
    mask = jnp.asarray(network.layout.is_weight)
    decay = optax.stateless(lambda updates, params: updates + weight_decay * jnp.where(mask, params, 0))
    theirs = optax.chain(decay, theirs)
    rng = np.random.default_rng(1)
    expected = jnp.asarray(network.parameters)
    state, their_state = ours.start(network), theirs.init(expected)
    for _ in range(50):
        gradient = rng.standard_normal(network.parameters.shape)
        before = gradient.copy()
        ours.update(network.parameters, gradient, state)
        np.testing.assert_array_equal(gradient, before)
        updates, their_state = theirs.update(jnp.asarray(gradient), their_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(network.parameters, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", [GradientDescent, Momentum, Nesterov, Adam])
def test_hyperparameters_may_differ_by_lane_and_each_lane_keeps_its_bits(rule, dtype):
    values = {"learning_rate": [0.1, 0.3, 0.01], "weight_decay": [0.0, 0.1, 0.0]}
    if issubclass(rule, Momentum):
        values["momentum"] = [0.0, 0.5, 0.9]
    stack = a_network(lanes=3)
    stack = Network(stack.layout.sizes, "relu", stack.parameters.astype(dtype))
    alone = [Network(stack.layout.sizes, "relu", stack.parameters[k].copy()) for k in range(3)]
    together = rule(**{name: np.array(value) for name, value in values.items()})
    rules = [rule(**{name: value[k] for name, value in values.items()}) for k in range(3)]
    state, states = together.start(stack), [r.start(n) for r, n in zip(rules, alone, strict=True)]
    rng = np.random.default_rng(2)
    for step in range(20):
        gradient = rng.standard_normal(stack.parameters.shape).astype(dtype)
        together.update(stack.parameters, gradient, state, factor=1 / (step + 1))
        for k in range(3):
            rules[k].update(alone[k].parameters, gradient[k], states[k], factor=1 / (step + 1))
            assert stack.parameters[k].tobytes() == alone[k].parameters.tobytes()


def test_schedules_are_the_published_ones():
    steps = np.arange(100)
    values = {name: np.array([schedule(int(t), 100) for t in steps]) for name, schedule in SCHEDULES.items()}
    np.testing.assert_array_equal(values["constant"], 1)
    np.testing.assert_allclose(values["inverse_scaling"], (steps + 1.0) ** -0.5, rtol=1e-15)
    np.testing.assert_allclose(values["cosine"], [optax.cosine_decay_schedule(1.0, 100)(t) for t in steps], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("warmup", "length"), [(0, 0), (1, 1), (16, 16), (0.25, 10), (40, 40)])
def test_a_schedule_begins_behind_its_warm_up(warmup, length):
    factor = rate_schedule("cosine", warmup, 40)
    rises, falls = optax.linear_schedule(0.0, 1.0, length), optax.cosine_decay_schedule(1.0, max(40 - length, 1))
    # optax's rise begins with 0, an update that changes nothing.
    expected = [rises(t + 1) if t < length else falls(t - length) for t in range(40)]
    np.testing.assert_allclose([factor(t) for t in range(40)], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        (-1, "warmup is -1, it must be finite and at least 0"),
        (np.inf, "warmup is inf, it must be finite and at least 0"),
        (41, "warmup is 41, it must be at most 40, the updates of the training"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(warmup, message):
    with pytest.raises(ValueError, match=message):
        rate_schedule("constant", warmup, 40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientDescent(0.0), "learning_rate is 0.0, it must be finite and above 0"),
        (lambda: GradientDescent(np.array([0.1, -1.0])), "learning_rate is .* it must be finite and above 0"),
        (lambda: GradientDescent(np.nan), "learning_rate is nan"),
        (lambda: GradientDescent(0.1, weight_decay=-1.0), "weight_decay is -1.0, it must be finite and at least 0"),
        (lambda: Momentum(0.1, 1.0), "momentum is 1.0, it must be finite and at least 0 and below 1"),
        (lambda: Adam(0.1, epsilon=0.0), "epsilon is 0.0, it must be finite and above 0"),
        (lambda: optimizer_named("foo"), "optimizer 'foo' is unknown, allowed: gradient_descent"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_rate_a_parameter_is_that_rate_for_it(name):
    rng = np.random.default_rng(0)
    sizes, lanes = [3, 4, 2], 3
    rates = rng.uniform(0.01, 0.1, (lanes, 2))

    def updated(learning_rate):
        network = Network.create(sizes, rng=np.random.default_rng(1), lanes=lanes)
        rule = OPTIMIZERS[name](learning_rate(network.layout))
        state = rule.start(network)
        for seed in range(3):
            rule.update(network.parameters, np.random.default_rng(seed).standard_normal(network.parameters.shape), state, 0.5)
        return network

    both = updated(lambda layout: layout.of_blocks(rates))
    for block in range(2):
        # A network with that block's rate alone: the rules know nothing of what stands beside a parameter.
        one = updated(lambda layout, block=block: rates[:, block])
        assert both.blocks[block].joined.tobytes() == one.blocks[block].joined.tobytes()


def test_lanes_that_leave_take_their_rates_a_parameter_along():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 20)), rng.standard_normal((1, 20))
    rates = np.array([[0.1, 0.01], [1e3, 1e3], [0.02, 0.2]])

    def trained(lanes):
        network = Network.create([3, 4, 1], "tanh", rng=np.random.default_rng(1))
        stack = Network(network.layout.sizes, "tanh", np.stack([network.parameters] * len(lanes)))
        rule = GradientDescent(network.layout.of_blocks(rates[lanes]))
        history = train(
            stack, x, y, loss=losses.half_mean_squared_error, optimizer=rule, epochs=200, evaluations=0, loss_bound=1e9
        )
        return history, stack.parameters

    together, parameters = trained([0, 1, 2])
    assert (together.diverged_step >= 0).tolist() == [False, True, False]
    for lane in (0, 2):
        alone, theirs = trained([lane])
        assert alone.loss[0].tobytes() == together.loss[lane].tobytes()
        assert theirs[0].tobytes() == parameters[lane].tobytes()


def test_inverse_scaling_has_the_form_of_scikit_learns_invscaling_and_counts_otherwise():
    """scikit-learn: eta_0 / (t + 1)^power_t, t the examples seen at the end of an epoch (`iteration_ends(self.t_)`)."""
    theirs = SGDOptimizer([], 1.0, "invscaling", power_t=0.5)
    rates = [theirs.learning_rate]
    for t in range(1, 100):
        theirs.iteration_ends(t)
        rates.append(theirs.learning_rate)
    np.testing.assert_allclose([SCHEDULES["inverse_scaling"](t, 100) for t in range(100)], rates, rtol=1e-15)
    X, y = load_iris(return_X_y=True)
    model = MLPClassifier((4,), solver="sgd", learning_rate="invscaling", batch_size=50, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    # Three updates of 50 examples.
    assert model._optimizer.learning_rate == pytest.approx(0.001 / 151**0.5)


@pytest.mark.parametrize(
    "rule",
    [
        GradientDescent(0.2),
        Momentum(0.2, 0.9),
        Nesterov(0.2, 0.6),
        # v stays 1, and P with it.
        Adam(0.2, 0.8, 1 - 1e-15, 1e-12),
        RMSProp(0.2, 1 - 1e-15, 1e-12),
    ],
    ids=lambda rule: type(rule).__name__,
)
@pytest.mark.parametrize(("times", "grows"), [(0.99, False), (1.01, True)])
def test_a_curvature_beyond_the_largest_stable_one_is_the_one_that_grows(rule, times, grows):
    network = Network.create([1, 1], rng=np.random.default_rng(0))
    network.parameters[...] = 1e-9
    state = rule.start(network)
    if state.moments and isinstance(rule, Adam | RMSProp):
        state.moments[-1][...] = 1
        # So many that the bias is gone.
        state.updates = 10**18
        np.testing.assert_allclose(rule.preconditioner(state), 1, rtol=1e-3)
    curvature = times * rule.largest_stable_curvature()
    for _ in range(300):
        rule.update(network.parameters, curvature * network.parameters, state)
    assert (np.abs(network.parameters) > 1e-9).all() == grows


def test_a_preconditioner_is_what_the_gradient_is_divided_by():
    # At its first update Adam's m is (1 - beta_1) g: the update is alpha m / P whatever the bias corrections.
    network = a_network()
    gradient = np.random.default_rng(1).standard_normal(network.parameters.shape)
    for rule in (Adam(0.1), RMSProp(0.1, 0.7), Momentum(0.1), GradientDescent(0.1)):
        state, before = rule.start(network), network.parameters.copy()
        rule.update(network.parameters, gradient, state)
        P = rule.preconditioner(state)
        share = 1 - rule.beta_1 if isinstance(rule, Adam) else 1
        np.testing.assert_allclose(before - network.parameters, 0.1 * share * gradient / (1 if P is None else P), rtol=1e-9)
