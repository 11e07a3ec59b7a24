from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from blocks import ACTIVATIONS, LOSSES, Activation, Network, losses
from blocks.diagnostics import example_gradient_norms, saturated, update_ratios
from blocks.hessian import SECOND_DERIVATIVES, hessian_vector_product, sharpness, top_eigenpairs
from blocks.parameters import Layout
from blocks.theory import largest_curvature, softmax_sharpness
from tests.blocks import oracle
from tests.blocks.reference import ACTIVATION_NAMES, LOSS_NAMES, assert_near, random_network, sizes_for

SHAPES = {1: [5, 3], 2: [5, 4, 3], 3: [4, 6, 5, 3], 4: [3, 4, 4, 4, 2], 5: [3, 5, 4, 3, 4, 2]}


def problem(activation, loss, sizes, lanes=(), m=7, seed=0, dtype=np.float64):
    """A network with random parameters, x and y."""
    rng = np.random.default_rng(seed)
    sizes = sizes_for(loss, sizes)
    network = random_network(sizes, activation, lanes, rng, dtype)
    return network, rng.standard_normal((sizes[0], m)).astype(dtype), oracle.targets_for(loss, rng, sizes[-1], m)


def flat_loss(layout, activation, loss):
    """J as JAX's function of the flat vector: a block's [W b] lies there column by column."""
    n = layout.sizes
    ends = np.cumsum([n[l] * (n[l - 1] + 1) for l in range(1, len(n))])[:-1]  # noqa: E741

    def value(flat, x, y):
        joined = [part.reshape(-1, units).T for part, units in zip(jnp.split(flat, ends), n[1:], strict=True)]
        parameters = [(block[:, :-1], block[:, -1:]) for block in joined]
        return oracle.LOSSES[loss](oracle.logits_of(parameters, x, activation), y)

    return value


@cache
def jax_product(sizes, activation, loss):
    value = flat_loss(Layout(sizes), activation, loss)
    return jax.jit(lambda flat, x, y, v: jax.jvp(lambda at: jax.grad(value)(at, x, y), (flat,), (v,))[1])


def jax_eigenvalues(network, x, y, loss):
    """All of them, the largest first."""
    value = flat_loss(network.layout, network.activation.name, loss)
    hessian = jax.hessian(value)(jnp.asarray(network.parameters), jnp.asarray(x), jnp.asarray(y))
    return np.linalg.eigvalsh(hessian)[::-1]


def standardised(load):
    x, y = load(return_X_y=True)
    deviation = x.std(axis=0)
    return ((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).T, y


# The Hessian times a vector.


def test_every_activation_has_a_second_derivative():
    assert list(SECOND_DERIVATIVES) == ACTIVATION_NAMES


@pytest.mark.parametrize("activation", [name for name, second in SECOND_DERIVATIVES.items() if second])
def test_second_derivatives_are_jaxs(activation):
    z = np.concatenate([np.linspace(-12, 12, 401), [-800.0, -50.0, 50.0, 800.0]])
    actual = SECOND_DERIVATIVES[activation](z, ACTIVATIONS[activation].function(z))
    expected = jax.vmap(jax.grad(jax.grad(oracle.ACTIVATIONS[activation])))(jnp.asarray(z))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize(
    ("activation", "depth"),
    [(name, depth) for name in ACTIVATION_NAMES for depth in SHAPES if SECOND_DERIVATIVES[name] or depth > 3],
)
def test_products_are_jaxs_forward_over_reverse(activation, loss, depth):
    network, x, y = problem(activation, loss, SHAPES[depth])
    v = np.random.default_rng(1).standard_normal(network.parameters.shape)
    expected = jax_product(network.layout.sizes, activation, loss)(network.parameters, x, y, v)
    assert_near(hessian_vector_product(network, x, y, LOSSES[loss], v), expected, 1e-11)


def test_products_are_symmetric():
    network, x, y = problem("gelu", "softmax_cross_entropy", SHAPES[5])
    H = hessian_vector_product(network, x, y, losses.softmax_cross_entropy, np.eye(network.layout.size))
    assert_near(H, H.T, 1e-14)


@pytest.mark.parametrize("logit", [-800.0, 800.0])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_certain_networks_have_finite_products(loss, logit):
    network, x, y = problem("identity", loss, [3, 2])
    network.parameters[...] = logit * np.sign(network.parameters)
    v = np.ones(network.layout.size)
    expected = jax_product(network.layout.sizes, "identity", loss)(network.parameters, x, y, v)
    assert_near(hessian_vector_product(network, x, y, LOSSES[loss], v), expected, 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_a_lane_has_the_products_bits_of_the_network_alone(activation, loss, dtype):
    network, x, y = problem(activation, loss, [6, 16, 9, 16, 3], (2, 3), m=33, dtype=dtype)
    v = np.random.default_rng(1).standard_normal((4, *network.parameters.shape))
    together = hessian_vector_product(network, x, y, LOSSES[loss], v)
    assert together.dtype == dtype
    for lane in np.ndindex(2, 3):
        alone = Network(network.layout.sizes, activation, network.parameters[lane].copy())
        for direction in range(4):
            product = hessian_vector_product(alone, x, y, LOSSES[loss], v[(direction, *lane)])
            assert product.tobytes() == together[(direction, *lane)].tobytes()


def test_lanes_may_have_data_of_their_own():
    loss = losses.softmax_cross_entropy
    network, x, y = problem("tanh", loss.name, SHAPES[3], (2,))
    xs, ys = np.stack([x, -x]), np.stack([y, y[::-1]])
    v = np.random.default_rng(1).standard_normal(network.parameters.shape)
    together = hessian_vector_product(network, xs, ys, loss, v)
    norms = example_gradient_norms(network, xs, ys, loss)
    for lane in range(2):
        alone = Network(network.layout.sizes, "tanh", network.parameters[lane].copy())
        assert (hessian_vector_product(alone, xs[lane], ys[lane], loss, v[lane]) == together[lane]).all()
        assert (example_gradient_norms(alone, xs[lane], ys[lane], loss) == norms[lane]).all()


# Sharpness.


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_sharpness_is_the_top_of_jaxs_full_hessian(activation, loss):
    network, x, y = problem(activation, loss, SHAPES[3], m=12)
    expected = jax_eigenvalues(network, x, y, loss)
    for count in (1, 5):
        actual = sharpness(network, x, y, LOSSES[loss], count, rng=np.random.default_rng(2))
        np.testing.assert_allclose(actual, expected[:count], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_eigenvalue_of_a_small_network(loss):
    network, x, y = problem("softplus", loss, [2, 3, 2])
    size = network.layout.size
    actual = sharpness(network, x, y, LOSSES[loss], size, rng=np.random.default_rng(2))
    np.testing.assert_allclose(actual, jax_eigenvalues(network, x, y, loss), rtol=0, atol=1e-13 * actual[0])


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_the_tolerance_bounds_the_error_and_the_residual(tolerance):
    loss = losses.half_mean_squared_error
    network, x, y = problem("tanh", loss.name, [8, 16, 16, 3], m=40)
    start = np.random.default_rng(2).standard_normal((2, network.layout.size))
    values, vectors = top_eigenpairs(network, x, y, loss, start, tolerance=tolerance)
    expected = jax_eigenvalues(network, x, y, loss.name)
    assert np.abs(values - expected[:2]).max() <= tolerance * np.abs(expected).max()
    assert_near(vectors @ vectors.T, np.eye(2), 1e-12)
    residuals = hessian_vector_product(network, x, y, loss, vectors) - values[:, None] * vectors
    assert np.linalg.norm(residuals, axis=-1).max() <= 1.0001 * tolerance * np.abs(expected).max()


def test_eigenvectors_are_a_start_that_needs_one_product():
    loss = losses.softmax_cross_entropy
    network, x, y = problem("tanh", loss.name, SHAPES[3])
    start = np.random.default_rng(2).standard_normal((2, network.layout.size))
    values, vectors = top_eigenpairs(network, x, y, loss, start)
    assert np.isnan(top_eigenpairs(network, x, y, loss, start, iterations=3)[0]).all()
    again = top_eigenpairs(network, x, y, loss, vectors, tolerance=1e-7, iterations=1)[0]
    np.testing.assert_allclose(again, values, rtol=1e-12)


@pytest.mark.parametrize("start", [np.zeros((2, 53)), np.ones((2, 53)), np.eye(2, 53)])
def test_any_start_is_completed(start):
    network, x, y = problem("tanh", "softmax_cross_entropy", [4, 6, 2, 3])
    start = start[:, : network.layout.size]
    values, _ = top_eigenpairs(network, x, y, losses.softmax_cross_entropy, start)
    np.testing.assert_allclose(values, jax_eigenvalues(network, x, y, "softmax_cross_entropy")[:2], rtol=1e-8)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_digits, load_breast_cancer])
def test_softmax_regression_at_zero_has_its_sharpness_in_closed_form(load):
    x, y = standardised(load)
    K = len(np.unique(y))
    network = Network.create([len(x), K], initializer="zeros", rng=np.random.default_rng(0))
    actual = sharpness(network, x, y, losses.softmax_cross_entropy, K, rng=np.random.default_rng(0))
    # diag(p) - p p^T has 1 / K as often as K - 1 times.
    np.testing.assert_allclose(actual[: K - 1], softmax_sharpness(x, K), rtol=1e-8)
    assert actual[K - 1] < 0.99 * actual[0]


@pytest.mark.parametrize("load", [load_iris, load_wine, load_digits, load_breast_cancer, load_diabetes])
def test_a_linear_model_has_the_curvature_of_its_data(load):
    x, y = standardised(load)
    network = Network.create([len(x), 1], rng=np.random.default_rng(0))
    actual = sharpness(network, x, y.astype(float), losses.half_mean_squared_error, rng=np.random.default_rng(0))
    np.testing.assert_allclose(actual, [largest_curvature(x)], rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_lane_has_the_sharpness_bits_of_the_network_alone(dtype):
    loss = losses.softmax_cross_entropy
    network, x, y = problem("tanh", loss.name, [6, 16, 9, 3], (5,), m=33, dtype=dtype)
    network.parameters *= np.array([0.0, 0.1, 0.5, 1.0, 3.0], dtype)[:, None]
    together = sharpness(network, x, y, loss, 2, rng=np.random.default_rng(0))
    assert np.isfinite(together).all()
    for lane in range(5):
        alone = Network(network.layout.sizes, "tanh", network.parameters[lane].copy())
        assert sharpness(alone, x, y, loss, 2, rng=np.random.default_rng(0)).tobytes() == together[lane].tobytes()


def test_float32_is_near_float64():
    loss = losses.softmax_cross_entropy
    network, x, y = problem("gelu", loss.name, [8, 16, 16, 3], m=40)
    single = Network(network.layout.sizes, "gelu", network.parameters.astype(np.float32))
    one, two = (sharpness(each, x, y, loss, 3, rng=np.random.default_rng(0)) for each in (single, network))
    np.testing.assert_allclose(one, two, rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_lane_that_is_not_finite_is_nan_alone(dtype):
    loss = losses.half_mean_squared_error
    network, x, y = problem("relu", loss.name, SHAPES[3], (4,), dtype=dtype)
    network.parameters[1] *= np.finfo(dtype).max / 100
    network.parameters[3] = np.nan
    if dtype == np.float64:
        # H is finite there, the squares of its entries are not.
        network.parameters[1] = 1e40
    values = sharpness(network, x, y, loss, rng=np.random.default_rng(0))
    assert np.isnan(values[:, 0]).tolist() == [False, True, False, True]
    alone = Network(network.layout.sizes, "relu", network.parameters[2].copy())
    assert sharpness(alone, x, y, loss, rng=np.random.default_rng(0)).tobytes() == values[2].tobytes()
    assert np.isfinite(example_gradient_norms(network, x, y, loss)[[0, 2]]).all()
    assert np.isfinite(saturated(network, x)).all()


def test_a_hessian_of_low_rank():
    network = Network.create([3, 4, 2], "tanh", "zeros", rng=np.random.default_rng(0))
    x, y = np.zeros((3, 5)), np.zeros((2, 5))
    # The biases of the logits alone matter there: their Hessian is the unit matrix.
    values = sharpness(network, x, y, losses.half_mean_squared_error, 5, rng=np.random.default_rng(0))
    np.testing.assert_allclose(values, [1, 1, 0, 0, 0], atol=1e-14)


# Updates, units, examples.


def test_update_ratios_by_hand():
    layout = Layout([2, 1, 2])
    before, after = np.zeros((2, layout.size)), np.zeros((2, layout.size))
    (first, second), (first_after, second_after) = layout.blocks(before), layout.blocks(after)
    first[...], first_after[...] = [[3, 4, 100]], [[3, 7, -5]]
    second[...], second_after[...] = [[[6, 1], [8, 1]], [[0, 1], [0, 1]]], [[[6, 1], [8, 1]], [[0, 1], [2, 1]]]
    np.testing.assert_array_equal(update_ratios(before, after, layout), [[0.6, 0.0], [0.6, np.inf]])
    np.testing.assert_array_equal(update_ratios(before[1], after[0] * [1, 1, 1, 0, 0, 0, 0], layout), [0.6, np.nan])


def test_update_ratios_of_vanishing_float32_updates():
    layout = Layout([4, 3, 2])
    before = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32) * np.float32(1e-20)
    np.testing.assert_allclose(update_ratios(before, before * np.float32(1.5), layout), [0.5, 0.5], rtol=1e-6)


def units(activation, z):
    """A network whose hidden units have those z (n_1, m) where the data are z."""
    network = Network.create([len(z), len(z), 2], activation, "zeros", rng=np.random.default_rng(0))
    network.blocks[0].W[...] = np.eye(len(z))
    return network


@pytest.mark.parametrize(
    ("activation", "share"),
    [("identity", 0), ("relu", 0.5), ("leaky_relu", 0), ("tanh", 0.5), ("sigmoid", 0.25), ("softplus", 0.25), ("elu", 0.25)],
)
def test_saturated_units_by_hand(activation, share):
    z = np.array([[-9.0, -8.0, -9.0], [-5.0, -6.0, -4.5], [0.5, -9.0, -9.0], [1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(saturated(units(activation, z), z), [share])


def test_saturated_units_by_block_and_lane():
    rng = np.random.default_rng(0)
    network = Network.create([3, 4, 5, 2], "relu", rng=rng, lanes=2)
    network.blocks[0].b[1, :3] = -1e3
    network.blocks[1].b[0] = -1e3
    network.blocks[1].b[1] = 1e3
    np.testing.assert_array_equal(saturated(network, np.ones((3, 6))).round(2)[1], [0.75, 0])
    assert saturated(network, np.ones((3, 6)))[0, 1] == 1
    assert saturated(Network.create([3, 2], rng=rng), np.ones((3, 6))).shape == (0,)


def test_an_example_decides_whether_a_unit_is_dead():
    z = np.array([[-1.0, -2.0, 1e-9], [-1.0, -2.0, 0.0]])
    np.testing.assert_array_equal(saturated(units("relu", z), z), [0.5])


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_example_gradient_norms_are_those_of_backward_one_by_one(activation, loss):
    network, x, y = problem(activation, loss, SHAPES[4], (2,))
    actual = example_gradient_norms(network, x, y, LOSSES[loss])
    assert actual.shape == (2, 4, 7)
    for i in range(7):
        logits, caches = network.forward(x[:, i : i + 1])
        gradients = network.backward(LOSSES[loss](logits, y[..., i : i + 1])[1], caches)
        expected = np.stack([np.linalg.norm(dW, axis=(-2, -1)) for dW, _ in gradients], axis=-1)
        assert_near(actual[:, :, i], expected, 1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_lane_has_the_example_norms_bits_of_the_network_alone(dtype):
    loss = losses.softmax_cross_entropy
    network, x, y = problem("gelu", loss.name, [6, 16, 9, 3], (5,), m=33, dtype=dtype)
    together = example_gradient_norms(network, x, y, loss)
    for lane in range(5):
        alone = Network(network.layout.sizes, "gelu", network.parameters[lane].copy())
        assert example_gradient_norms(alone, x, y, loss).tobytes() == together[lane].tobytes()


def test_example_gradient_norms_whose_squares_vanish():
    loss = losses.half_mean_squared_error
    network, x, y = problem("identity", loss.name, [3, 4, 4, 2])
    # The logits are small and the targets 0, so that dz is as small as the last block's parameters.
    network.blocks[-1].joined[...] *= 1e-13
    single = Network(network.layout.sizes, "identity", network.parameters.astype(np.float32))
    actual = example_gradient_norms(single, x, 0 * y, loss)
    assert actual.dtype == np.float32
    assert actual[0].max() < 1e-24
    np.testing.assert_allclose(actual, example_gradient_norms(network, x, 0 * y, loss), rtol=1e-5)


# All of them.


def instruments(network, x, y, loss):
    rng = np.random.default_rng(0)
    hessian_vector_product(network, x, y, loss, rng.standard_normal(network.parameters.shape))
    sharpness(network, x, y, loss, 2, rng=rng)
    update_ratios(network.parameters, network.parameters, network.layout)
    saturated(network, x)
    example_gradient_norms(network, x, y, loss)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_nothing_is_changed(activation):
    network, x, y = problem(activation, "softmax_cross_entropy", SHAPES[3], (2,))
    before = network.parameters.tobytes(), x.tobytes(), y.tobytes()
    instruments(network, x, y, losses.softmax_cross_entropy)
    assert (network.parameters.tobytes(), x.tobytes(), y.tobytes()) == before


# Bad input.

NETWORK = Network.create([3, 4, 2], "tanh", rng=np.random.default_rng(0))
STACK = Network.create([3, 4, 2], "tanh", rng=np.random.default_rng(0), lanes=2)
P = NETWORK.layout.size
SOFTMAX = losses.softmax_cross_entropy
X5, Y5, V = np.ones((3, 5)), np.zeros(5, int), np.ones(P)
NAN = np.array([[np.nan], [0], [0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hessian_vector_product(NETWORK, np.ones((2, 5)), Y5, SOFTMAX, V),
            r"x has shape \(2, 5\), it must be \(..., 3, m\)",
        ),
        (
            lambda: hessian_vector_product(NETWORK, np.ones((3, 0)), Y5[:0], SOFTMAX, V),
            r"x has shape \(3, 0\), it must have an ex",
        ),
        (
            lambda: hessian_vector_product(NETWORK, NAN, Y5[:1], SOFTMAX, V),
            r"x of shape \(3, 1\) must be finite, it has nan at \(0",
        ),
        (
            lambda: hessian_vector_product(NETWORK, X5, Y5[:4], SOFTMAX, V),
            r"y has shape \(4,\), it must be \(..., 5\), an entry for",
        ),
        (lambda: hessian_vector_product(NETWORK, X5, np.array(0), SOFTMAX, V), r"y has shape \(\), it must be \(..., 5\)"),
        (
            lambda: hessian_vector_product(NETWORK, X5, Y5 + 2, SOFTMAX, V),
            r"y of shape \(5,\) has labels 2 to 2, they must be 0 to 1",
        ),
        (lambda: hessian_vector_product(NETWORK, X5, Y5, losses.sigmoid_cross_entropy, V), "sigmoid_cross_entropy takes 1 logit"),
        (lambda: hessian_vector_product(NETWORK, X5, Y5, SOFTMAX, V[:-1]), r"v has shape \(25,\), it must be \(..., 26\)"),
        (lambda: hessian_vector_product(STACK, X5, Y5, SOFTMAX, V), r"v has shape \(26,\), it must be \(..., 2, 26\)"),
        (lambda: hessian_vector_product(NETWORK, X5, Y5, SOFTMAX, V * np.nan), r"v of shape \(26,\) must be finite"),
        (lambda: saturated(NETWORK, np.ones((2, 3, 5))), r"x has lanes \(2,\), it must have none or the network's, \(\)"),
        (lambda: saturated(STACK, np.ones((3, 3, 5))), r"x has lanes \(3,\), it must have none or the network's, \(2,\)"),
        (lambda: saturated(NETWORK, X5, 0), "threshold is 0, it must be finite and above 0"),
        (lambda: example_gradient_norms(STACK, X5, np.zeros((3, 5), int), SOFTMAX), r"y has lanes \(3,\), it must have none or"),
        (
            lambda: sharpness(NETWORK, X5, Y5, SOFTMAX, 0, rng=np.random.default_rng()),
            "count is 0, it must be a whole number from 1 to",
        ),
        (
            lambda: sharpness(NETWORK, X5, Y5, SOFTMAX, 27, rng=np.random.default_rng()),
            "count is 27, it must be a whole .* 1 to 26",
        ),
        (lambda: top_eigenpairs(NETWORK, X5, Y5, SOFTMAX, V), r"start has shape \(26,\), it must be \(..., count, 26\)"),
        (lambda: top_eigenpairs(NETWORK, X5, Y5, SOFTMAX, np.ones((0, P))), "count is 0, it must be a whole number from 1"),
        (lambda: top_eigenpairs(STACK, X5, Y5, SOFTMAX, np.ones((3, 1, P))), r"start has lanes \(3,\), it must have none or"),
        (lambda: top_eigenpairs(NETWORK, X5, Y5, SOFTMAX, V[None], tolerance=0), "tolerance is 0, it must be finite and above 0"),
        (lambda: top_eigenpairs(NETWORK, X5, Y5, SOFTMAX, V[None], iterations=0), "iterations is 0, it must be a whole number"),
        (lambda: update_ratios(V[:-1], V[:-1], NETWORK.layout), r"before has shape \(25,\), it must be \(..., 26\)"),
        (lambda: update_ratios(V, V.astype(int), NETWORK.layout), "after has dtype int64, it must be float32 or float64"),
        (lambda: update_ratios(V, V[:-1], NETWORK.layout), r"after has shape \(25,\), it must be \(..., 26\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_an_activation_without_a_second_derivative_is_named(monkeypatch):
    tanh = ACTIVATIONS["tanh"]
    monkeypatch.setitem(ACTIVATIONS, "new", Activation("new", tanh.function, tanh.derivative))
    network = Network.create([3, 4, 2], "new", rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="'new' is unknown, allowed: identity, sigmoid, tanh, relu, ") as error:
        sharpness(network, X5, Y5, SOFTMAX, rng=np.random.default_rng(0))
    assert "second derivative" in str(error.value)
