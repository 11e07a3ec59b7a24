"""Residual and normalized blocks, alone and in a network: what tests of the plain block show, for them too."""

import copy
import pickle
from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from blocks import (
    KINDS,
    LOSSES,
    BatchNormalized,
    Block,
    GradientDescent,
    Network,
    Normalized,
    Residual,
    check_block,
    check_network,
    losses,
    train,
)
from tests.blocks import oracle
from tests.blocks.reference import (
    ACTIVATION_NAMES,
    LOSS_NAMES,
    PAIRS,
    all_pairs,
    assert_near,
    problem,
    random_network,
    value_and_gradients,
)

OTHERS = [kind for kind in KINDS if kind != "plain"]
SCALE = 0.3

every_kind = pytest.mark.parametrize("kind", OTHERS)
every_activation = pytest.mark.parametrize("activation", ACTIVATION_NAMES)
lanes_or_none = pytest.mark.parametrize("lanes", [(), (7,)], ids=["alone", "7 lanes"])


def some_block(kind, rng, n, n_prev, activation, lanes=(), dtype=float):
    W, b = rng.standard_normal((*lanes, n, n_prev)).astype(dtype), rng.standard_normal((*lanes, n, 1)).astype(dtype)
    if kind == "residual":
        return Residual(W, b, activation, SCALE)
    return (Normalized if kind == "normalized" else BatchNormalized)(W, b, activation)


@cache
def forward_and_backward(kind, activation):
    """f(W, b, a_prev, da) -> a, (dW, db, da_prev) by JAX; compiled once for each set of shapes."""

    def forward(W, b, a_prev):
        if kind == "residual":
            return oracle.residual(W, b, a_prev, activation, SCALE)
        return oracle.normalized(W, b, a_prev, activation, oracle.AXES[kind])

    def both(W, b, a_prev, da):
        a, pull_back = jax.vjp(forward, W, b, a_prev)
        return a, pull_back(da)

    return jax.jit(both)


def vjp(kind, block, a_prev, da, lane=()):
    """a, (dW, db, da_prev) by JAX, of one lane."""
    return forward_and_backward(kind, block.activation.name)(block.W[lane], block.b[lane], a_prev, da)


# A block.


def test_a_residual_block_by_hand():
    block = Residual(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0], [-10.0]]), "relu", 0.5)
    a, cache = block.forward(np.array([[1.0, -3.0], [1.0, 2.0]]))
    # x = [[1, 0], [1, 2]]
    assert cache.z.tolist() == [[4, 5], [-3, -2]]
    assert a.tolist() == [[3, -0.5], [-0.5, 1]]
    da_prev, dW, db = block.backward(np.array([[2.0, 20.0], [4.0, 6.0]]), cache)
    # dz = [[1, 10], [2, 3]], dx = [[7, 19], [10, 32]]
    assert dW.tolist() == [[1, 21], [2, 8]]
    assert db.tolist() == [[11], [5]]
    assert da_prev.tolist() == [[9, 20], [14, 38]]


def test_a_normalized_block_standardises_every_example():
    rng = np.random.default_rng(0)
    block = Normalized(np.eye(64), np.zeros((64, 1)))
    a, _ = block.forward(5 + 30 * rng.standard_normal((64, 9)))
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(a.std(axis=0), 1, rtol=1e-6)
    # Neither the scale nor the place of its input is seen, as far as epsilon is small.
    np.testing.assert_allclose(block.forward(1e3 * (a - 7))[0], a, rtol=1e-6)
    constant, _ = block.forward(np.full((64, 2), 3.0))
    assert_array_equal(constant, np.zeros((64, 2)))


def test_a_batch_normalized_block_standardises_every_unit_over_the_examples():
    rng = np.random.default_rng(0)
    block = BatchNormalized(np.eye(9), np.zeros((9, 1)))
    a, _ = block.forward(rng.uniform(1, 30, (9, 1)) + 30 * rng.standard_normal((9, 64)))
    np.testing.assert_allclose(a.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(a.std(axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"a_prev has shape \(9, 1\), batch normalisation needs at least 2 examples"):
        block.forward(np.ones((9, 1)))


@lanes_or_none
def test_the_network_with_statistics_takes_each_example_alone(lanes):
    network, x, _ = problem("gelu", "softmax_cross_entropy", (3, 5, 4, 6, 2), lanes, m=9, kind="batch_normalized")
    fixed = network.with_statistics(x)
    assert (fixed.kind, fixed.mixes_examples, network.mixes_examples) == ("plain", False, True)
    np.testing.assert_allclose(fixed.forward(x)[0], network.forward(x)[0], rtol=1e-10)
    # The means and variances of x, not of what is asked for, by JAX.
    other = np.random.default_rng(1).standard_normal((3, 1))
    a, b = x, other
    for index, (W, bias) in enumerate(oracle.parameters_of(network, tuple(k - 1 for k in lanes))):
        if index:
            b = (b - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)
            a = oracle.standardised(a, 1)
        a, b = W @ a + bias, W @ b + bias
        if index < 3:
            a, b = (oracle.ACTIVATIONS["gelu"](values) for values in (a, b))
    np.testing.assert_allclose(fixed.forward(other)[0][tuple(k - 1 for k in lanes)], b, rtol=1e-10)
    plain = Network(network.layout.sizes, "gelu", network.parameters)
    assert plain.with_statistics(x) is plain


def test_a_batch_normalized_training_is_evaluated_with_the_statistics_of_all_its_examples():
    network, x, y = problem("relu", "softmax_cross_entropy", (3, 5, 4, 2), m=20, kind="batch_normalized")
    before = network.with_statistics(x)
    held = (x[:, :5] + 1, y[:5])
    common = {"loss": "softmax_cross_entropy", "optimizer": GradientDescent(0.1), "epochs": 2, "validation": held}
    # In batches of 4: 5 examples held out are a batch of 4, and one alone.
    history = train(network, x, y, batch_size=4, **common)
    for name, network_then, place in (
        ("train", before, 0),
        ("validation", before, 0),
        ("validation", network.with_statistics(x), -1),
    ):
        data = (x, y) if name == "train" else held
        expected, _ = losses.softmax_cross_entropy(network_then.forward(data[0])[0], data[1])
        assert history.measures[f"loss/{name}"][place] == pytest.approx(expected, rel=1e-12)
    for size in (1, 19):
        with pytest.raises(ValueError, match=f"batch_size is {size}, which leaves a batch of one sample of 20"):
            train(network, x, y, batch_size=size, **common)


def test_gain_and_bias_of_layer_normalisation_are_a_second_name_for_W_and_b():
    rng = np.random.default_rng(1)
    W, b = rng.standard_normal((3, 5)), rng.standard_normal((3, 1))
    gamma, beta, a_prev = rng.standard_normal((5, 1)), rng.standard_normal((5, 1)), rng.standard_normal((5, 4))
    expected = np.tanh(W @ (gamma * np.asarray(oracle.standardised(a_prev)) + beta) + b)
    np.testing.assert_allclose(Normalized(W * gamma.T, W @ beta + b, "tanh").forward(a_prev)[0], expected, rtol=1e-12)


@every_kind
@settings(max_examples=6)
@given(
    activation=st.sampled_from(ACTIVATION_NAMES),
    n=st.integers(1, 4),
    n_prev=st.integers(2, 5),
    m=st.integers(2, 5),
    lanes=st.sampled_from([(), (7,), (2, 3)]),
    shared=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_backward_is_the_vector_jacobian_product_of_forward(kind, activation, n, n_prev, m, lanes, shared, seed):
    rng = np.random.default_rng(seed)
    n = n_prev if kind == "residual" else n
    block = some_block(kind, rng, n, n_prev, activation, lanes)
    a_prev = rng.standard_normal((*(() if shared else lanes), n_prev, m))
    da = rng.standard_normal((*lanes, n, m))
    a, cache = block.forward(a_prev)
    da_prev, dW, db = block.backward(da, cache)
    lane = tuple(k - 1 for k in lanes)
    exact_a, (exact_dW, exact_db, exact_da_prev) = vjp(kind, block, a_prev if shared else a_prev[lane], da[lane], lane)
    for actual, exact in ((a, exact_a), (dW, exact_dW), (db, exact_db), (da_prev, exact_da_prev)):
        assert_near(actual[lane], exact, 1e-9 if 2 in (n_prev, m) else 1e-10)


@every_kind
@every_activation
def test_every_block_agrees_with_central_differences(activation, kind):
    rng = np.random.default_rng(1)
    block = some_block(kind, rng, 4, 4, activation)
    errors = check_block(block, rng.standard_normal((4, 5)), rng)
    assert max(errors.values()) < 1e-7


@every_kind
@every_activation
def test_two_forwards_then_two_backwards_in_another_order_give_the_right_gradients(activation, kind):
    rng = np.random.default_rng(3)
    block = some_block(kind, rng, 4, 4, activation)
    inputs, upstream = rng.standard_normal((2, 4, 5)), rng.standard_normal((2, 4, 5))
    forwards = [block.forward(a_prev) for a_prev in inputs]
    backwards = {k: block.backward(upstream[k], forwards[k][1]) for k in (1, 0)}
    for k in (0, 1):
        a, (dW, db, da_prev) = vjp(kind, block, inputs[k], upstream[k])
        for actual, exact in zip((forwards[k][0], *backwards[k]), (a, da_prev, dW, db), strict=True):
            assert_near(actual, exact)


@every_kind
@every_activation
@pytest.mark.parametrize("lanes", [(), (3,)])
def test_backward_leaves_da_the_cache_and_the_block_unchanged(activation, lanes, kind):
    rng = np.random.default_rng(4)
    block = some_block(kind, rng, 4, 4, activation, lanes)
    a_prev, da = rng.standard_normal((*lanes, 4, 5)), rng.standard_normal((*lanes, 4, 5))
    a, cache = block.forward(a_prev)
    kept = [da, a_prev, a, cache.a_prev_1, cache.z, cache.a, block.W, block.b]
    before = [array.copy() for array in kept]
    once, again = block.backward(da, cache), block.backward(da, cache)
    for array, was in zip(kept, before, strict=True):
        assert_array_equal(array, was)
    for one, two in zip(once, again, strict=True):
        assert_array_equal(one, two)


@every_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_result_has_the_parameters_dtype(dtype, kind):
    rng = np.random.default_rng(7)
    block = some_block(kind, rng, 4, 4, "gelu", (2,), dtype)
    a, cache = block.forward(rng.standard_normal((4, 3)))
    assert {array.dtype for array in (a, cache.z, *block.backward(rng.standard_normal((2, 4, 3)), cache))} == {np.dtype(dtype)}


def test_a_residual_block_has_as_many_units_as_inputs_and_a_finite_scale():
    with pytest.raises(ValueError, match=r"W has shape \(2, 3\), but a residual block adds its input: n_l must be n_\{l-1\}"):
        Residual(np.ones((2, 3)), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"scale is nan, it must be finite"):
        Residual(np.ones((2, 2)), np.ones((2, 1)), scale=np.nan)


@every_kind
def test_an_input_of_another_shape_is_named(kind):
    block = some_block(kind, np.random.default_rng(0), 3, 3, "relu")
    with pytest.raises(ValueError, match=r"a_prev has shape \(2, 5\), it must be \(\.\.\., 3, m\)"):
        block.forward(np.ones((2, 5)))


# A network.


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_which_blocks_are_of_a_kind(depth):
    def made(kind):
        network = Network.create([3, *[4] * (depth - 1), 2], "elu", rng=np.random.default_rng(0), kind=kind)
        assert network.blocks[-1].activation.name == "identity"
        return [type(block) for block in network.blocks], network

    assert made("plain")[0] == [Block] * depth
    classes, network = made("residual")
    assert classes == [Block, *[Residual] * (depth - 2), Block][:depth]
    assert [block.scale for block in network.blocks[1:-1]] == [pytest.approx(1 / np.sqrt(depth))] * max(depth - 2, 0)
    assert made("normalized")[0] == [Block, *[Normalized] * (depth - 1)]
    assert made("batch_normalized")[0] == [Block, *[BatchNormalized] * (depth - 1)]


@pytest.mark.parametrize(("kind", "activation"), [*zip(OTHERS, ("relu", "tanh", "relu"), strict=True)])
def test_gradients_are_right_twenty_blocks_down(activation, kind):
    assert_gradients_are_jax_s(activation, "softmax_cross_entropy", (), kind, (3, *[8] * 19, 2))


# A loss sees logits; of a block of each kind every activation's gradients are compared above.
@lanes_or_none
@pytest.mark.parametrize(("activation", "loss", "kind"), [(*pair, OTHERS[k % 3]) for k, pair in enumerate(PAIRS)])
def test_gradients_are_those_of_automatic_differentiation(activation, loss, lanes, kind):
    assert_gradients_are_jax_s(activation, loss, lanes, kind, (3, 5, 5, 5, 2))


def assert_gradients_are_jax_s(activation, loss, lanes, kind, sizes):
    """Value, dW and db of every block, and da_0, in every lane."""
    network, x, y = problem(activation, loss, sizes, lanes, kind=kind)
    logits, caches = network.forward(x)
    value, dlogits = LOSSES[loss](logits, y)
    gradients, da_0 = network.backward_to_data(dlogits, caches)
    for lane in np.ndindex(lanes):
        exact, (exact_gradients, exact_da_0) = value_and_gradients(activation, loss, kind)(
            oracle.parameters_of(network, lane), x, y
        )
        assert_near(value[lane], exact)
        assert_near(da_0[lane], exact_da_0)
        for (dW, db), (exact_dW, exact_db) in zip(gradients, exact_gradients, strict=True):
            assert_near(dW[lane], exact_dW)
            assert_near(db[lane], exact_db)


@pytest.mark.parametrize(
    ("activation", "loss", "sizes", "kind"),
    all_pairs(ACTIVATION_NAMES, LOSS_NAMES, [(3, 2), (3, 4, 2), (2, 6, 6, 3), (2, 4, 4, 4, 4, 4, 3)], OTHERS),
)
def test_every_network_agrees_with_central_differences(activation, loss, sizes, kind):
    network, x, y = problem(activation, loss, sizes, kind=kind)
    assert check_network(network, LOSSES[loss], x, y, np.random.default_rng(3)) < 1e-6


def test_widths_may_differ_in_a_normalized_network():
    network, x, y = problem("gelu", "half_mean_squared_error", (3, 5, 2, 6, 4), kind="normalized")
    assert check_network(network, losses.half_mean_squared_error, x, y, np.random.default_rng(3)) < 1e-6


@every_kind
@lanes_or_none
def test_backward_leaves_dlogits_the_caches_and_the_parameters_unchanged(lanes, kind):
    rng = np.random.default_rng(5)
    network = random_network((4, 4, 4, 4, 4), "sigmoid", lanes, rng, kind=kind)
    x = rng.standard_normal((4, 5))
    logits, caches = network.forward(x)
    dlogits = rng.standard_normal(logits.shape)
    kept = [x, logits, dlogits, network.parameters] + [array for c in caches for array in (c.a_prev_1, c.z, c.a)]
    before = [array.copy() for array in kept]
    network.backward_to_data(dlogits, caches)
    for array, was in zip(kept, before, strict=True):
        assert_array_equal(array, was)


@every_kind
def test_a_network_of_another_kind_has_other_logits_and_says_its_kind(kind):
    network, x, _ = problem("tanh", "softmax_cross_entropy", (3, 4, 4, 2), kind=kind)
    assert not np.allclose(network.forward(x)[0], Network(network.layout.sizes, "tanh", network.parameters).forward(x)[0])
    assert repr(network).startswith(f"Network(3-4-4-2, {kind}, tanh, float64, ")
    assert repr(network.blocks[1]).startswith(f"{kind.title().replace('_', '')}(4 -> 4, tanh")


@every_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_and_the_network_over_other_parameters_are_of_the_same_kind(kind, copied):
    network, x, _ = problem("tanh", "softmax_cross_entropy", (3, 4, 4, 2), kind=kind)
    other = copied(network)
    assert_array_equal(other.forward(x)[0], network.forward(x)[0])
    other.parameters[...] = 0
    assert network.parameters.any()
    stacked = network.with_parameters(np.stack([network.parameters, other.parameters]))
    assert (stacked.kind, stacked.lanes, stacked.activation.name) == (kind, (2,), "tanh")
    assert_array_equal(stacked.forward(x)[0][0], network.forward(x)[0])


def test_a_kind_that_is_unknown_or_does_not_fit_is_named():
    with pytest.raises(ValueError, match="kind 'foo' is unknown, allowed: plain, residual, normalized, batch_normalized"):
        Network.create([3, 4, 2], rng=np.random.default_rng(0), kind="foo")
    with pytest.raises(ValueError, match=r"W has shape \(5, 4\), but a residual block adds its input"):
        Network.create([3, 4, 5, 2], rng=np.random.default_rng(0), kind="residual")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_normalized_lane_whose_squares_overflow_has_diverged(dtype):
    network = Network.create([3, 4, 4, 2], rng=np.random.default_rng(0), lanes=2, dtype=dtype, kind="normalized")
    network.parameters[1] *= np.sqrt(np.finfo(dtype).max) * 10
    x, y = np.random.default_rng(1).standard_normal((3, 6)), np.array([0, 1, 0, 1, 0, 1])
    history = train(network, x, y, loss=losses.softmax_cross_entropy, optimizer=GradientDescent(0.1), epochs=3)
    assert history.diverged_step.tolist() == [-1, 0]
    assert history.diverged_block.tolist() == [-1, 2]


def test_a_residual_network_s_signal_grows_e_times_at_most():
    """E ||a + W a / sqrt(L)||^2 = ||a||^2 (1 + 1 / L) where W has variance 1 / n."""
    x = np.random.default_rng(1).standard_normal((30, 20))
    for depth in (3, 10, 60):
        network = Network.create(
            [*[30] * depth, 5], "identity", "lecun", rng=np.random.default_rng(0), lanes=100, kind="residual"
        )
        caches = network.forward(x)[1]
        growth = float(((caches[-2].a ** 2).sum(axis=(-2, -1)) / (caches[0].a ** 2).sum(axis=(-2, -1))).mean())
        assert growth == pytest.approx((1 + 1 / depth) ** (depth - 2), rel=0.05)


def test_depth_keeps_relu_s_signal_in_residual_and_normalized_networks_alone():
    x = np.random.default_rng(1).standard_normal((20, 50))
    power = {}
    for kind in KINDS:
        network = Network.create([20, *[40] * 64, 5], "relu", rng=np.random.default_rng(0), gain=0.5, kind=kind)
        caches = network.forward(x)[1]
        power[kind] = float((caches[-2].a ** 2).mean() / (caches[0].a ** 2).mean())
    # A plain block halves it.
    assert power["plain"] < 1e-12
    assert 1 < power["residual"] < np.e
    assert 0.1 < power["normalized"] < 10
