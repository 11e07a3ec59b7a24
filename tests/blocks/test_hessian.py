from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from blocks import KINDS, LOSSES, Network, losses
from blocks.measure.diagnostics import example_gradient_norms, saturated
from blocks.measure.hessian import Hessian, hessian_vector_product
from blocks.measure.lanczos import SETTLING_PRODUCTS, sharpness, top_eigenpairs
from blocks.parameters import Layout
from blocks.theory import largest_curvature, softmax_sharpness
from tests.blocks import oracle
from tests.blocks.reference import LOSS_NAMES, PAIRS, SHAPES, assert_near, problem


def flat_loss(layout, activation, loss, kind="plain"):
    """J as JAX's function of the flat vector: a block's [W b] lies there column by column."""
    n = layout.sizes
    ends = np.cumsum([n[l] * (n[l - 1] + 1) for l in range(1, len(n))])[:-1]  # noqa: E741

    def value(flat, x, y):
        joined = [part.reshape(-1, units).T for part, units in zip(jnp.split(flat, ends), n[1:], strict=True)]
        parameters = [(block[:, :-1], block[:, -1:]) for block in joined]
        return oracle.LOSSES[loss](oracle.logits_of(parameters, x, activation, kind), y)

    return value


@cache
def jax_product(sizes, activation, loss, kind="plain"):
    value = flat_loss(Layout(sizes), activation, loss, kind)
    return jax.jit(lambda flat, x, y, v: jax.jvp(lambda at: jax.grad(value)(at, x, y), (flat,), (v,))[1])


def jax_eigenvalues(network, x, y, loss):
    """All of them, the largest first."""
    product = jax_product(network.layout.sizes, network.activation.name, loss, network.kind)
    hessian = np.array([product(network.parameters, x, y, v) for v in np.eye(network.layout.size)])
    return np.linalg.eigvalsh(hessian)[::-1]


def standardised(load):
    x, y = load(return_X_y=True)
    deviation = x.std(axis=0)
    return ((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).T, y


OTHER_KINDS = [kind for kind in KINDS if kind != "plain"]

# The Hessian times a vector.


@pytest.mark.parametrize(
    ("activation", "loss", "depth"),
    [
        *((*pair, 3) for pair in PAIRS),
        *(("gelu", "softmax_cross_entropy", depth) for depth in (1, 2, 5)),
    ],
)
def test_products_are_jaxs_forward_over_reverse(activation, loss, depth):
    network, x, y = problem(activation, loss, SHAPES[depth])
    v = np.random.default_rng(1).standard_normal(network.parameters.shape)
    expected = jax_product(network.layout.sizes, activation, loss)(network.parameters, x, y, v)
    assert_near(hessian_vector_product(network, x, y, LOSSES[loss], v), expected, 1e-11)


@pytest.mark.parametrize(
    ("activation", "loss", "m"),
    # Without a second derivative, and with one that reads a; with one that reads z: test_tangent.py.
    [("relu", "half_mean_squared_error", 1), ("tanh", "sigmoid_cross_entropy", 7)],
)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_products_of_every_kind_are_jaxs_forward_over_reverse(kind, activation, loss, m):
    # Of one example a batch's standardising leaves nothing.
    network, x, y = problem(activation, loss, [3, 5, 5, 2], m=max(m, 3) if kind == "batch_normalized" else m, kind=kind)
    v = np.random.default_rng(1).standard_normal(network.parameters.shape)
    expected = jax_product(network.layout.sizes, activation, loss, kind)(network.parameters, x, y, v)
    assert_near(hessian_vector_product(network, x, y, LOSSES[loss], v), expected, 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_symmetric(kind):
    network, x, y = problem("gelu", "softmax_cross_entropy", SHAPES[4], kind=kind)
    H = hessian_vector_product(network, x, y, losses.softmax_cross_entropy, np.eye(network.layout.size))
    assert_near(H, H.T, 1e-13)


@pytest.mark.parametrize("logit", [-800.0, 800.0])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_certain_networks_have_finite_products(loss, logit):
    network, x, y = problem("identity", loss, [3, 2])
    network.parameters[...] = logit * np.sign(network.parameters)
    v = np.ones(network.layout.size)
    expected = jax_product(network.layout.sizes, "identity", loss)(network.parameters, x, y, v)
    assert_near(hessian_vector_product(network, x, y, LOSSES[loss], v), expected, 1e-12)


@pytest.mark.parametrize(
    ("activation", "loss", "dtype"), [(*pair, (np.float32, np.float64)[k % 2]) for k, pair in enumerate(PAIRS)]
)
def test_a_lane_has_the_products_bits_of_the_network_alone(activation, loss, dtype):
    network, x, y = problem(activation, loss, [6, 16, 9, 16, 3], (2, 3), m=33, dtype=dtype)
    v = np.random.default_rng(1).standard_normal((4, *network.parameters.shape))
    together = hessian_vector_product(network, x, y, LOSSES[loss], v)
    assert together.dtype == dtype
    for lane in [(0, 0), (1, 2)]:
        alone = Network(network.layout.sizes, activation, network.parameters[lane].copy())
        for direction in (0, 3):
            product = hessian_vector_product(alone, x, y, LOSSES[loss], v[(direction, *lane)])
            assert product.tobytes() == together[(direction, *lane)].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_lane_of_every_kind_has_the_bits_of_the_network_alone(kind, dtype):
    loss = losses.softmax_cross_entropy
    network, x, y = problem("gelu", loss.name, [6, 16, 16, 16, 3], (2, 3), m=33, dtype=dtype, kind=kind)
    v = np.random.default_rng(1).standard_normal((4, *network.parameters.shape))
    products = hessian_vector_product(network, x, y, loss, v)
    norms = None if network.mixes_examples else example_gradient_norms(network, x, y, loss)
    tops = sharpness(network, x, y, loss, 2, rng=np.random.default_rng(0))
    for lane in [(0, 0), (1, 2)]:
        alone = network.with_parameters(network.parameters[lane].copy())
        assert hessian_vector_product(alone, x, y, loss, v[(3, *lane)]).tobytes() == products[(3, *lane)].tobytes()
        if norms is not None:
            assert example_gradient_norms(alone, x, y, loss).tobytes() == norms[lane].tobytes()
        assert sharpness(alone, x, y, loss, 2, rng=np.random.default_rng(0)).tobytes() == tops[lane].tobytes()


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


@pytest.mark.parametrize(("activation", "loss"), PAIRS)
def test_sharpness_is_the_top_of_jaxs_full_hessian(activation, loss):
    network, x, y = problem(activation, loss, SHAPES[3])
    expected = jax_eigenvalues(network, x, y, loss)
    actual = sharpness(network, x, y, LOSSES[loss], 5, rng=np.random.default_rng(2))
    np.testing.assert_allclose(actual, expected[:5], rtol=1e-8)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_sharpness_of_every_kind_is_the_top_of_jaxs_full_hessian(kind):
    loss = losses.sigmoid_cross_entropy
    network, x, y = problem("tanh", loss.name, [3, 5, 5, 2], kind=kind)
    actual = sharpness(network, x, y, loss, 5, rng=np.random.default_rng(2))
    np.testing.assert_allclose(actual, jax_eigenvalues(network, x, y, loss.name)[:5], rtol=1e-8)


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
    values, vectors = top_eigenpairs(Hessian(network, x, y, loss, (2,)), start, tolerance=tolerance)
    expected = jax_eigenvalues(network, x, y, loss.name)
    assert np.abs(values - expected[:2]).max() <= tolerance * np.abs(expected).max()
    assert_near(vectors @ vectors.T, np.eye(2), 1e-12)
    residuals = hessian_vector_product(network, x, y, loss, vectors) - values[:, None] * vectors
    assert np.linalg.norm(residuals, axis=-1).max() <= 1.0001 * tolerance * np.abs(expected).max()


def test_eigenvectors_are_a_start_that_needs_few_products():
    loss = losses.softmax_cross_entropy
    network, x, y = problem("tanh", loss.name, SHAPES[3])
    start = np.random.default_rng(2).standard_normal((2, network.layout.size))
    hessian = Hessian(network, x, y, loss, (2,))
    values, vectors = top_eigenpairs(hessian, start)
    # The products over which a value must not grow, and one.
    few = SETTLING_PRODUCTS + 1
    assert np.isnan(top_eigenpairs(hessian, start, iterations=few)[0]).all()
    again = top_eigenpairs(hessian, vectors, tolerance=1e-7, iterations=few)[0]
    np.testing.assert_allclose(again, values, rtol=1e-12)


# No curvature, none that is positive, a largest eigenvalue that is multiple, small beside a negative one, or beside another.
SPECTRA = {
    "zero": np.zeros(300),
    "nowhere positive": np.linspace(-1, 0, 300),
    "one for all": np.ones(300),
    "largest twice": np.concatenate([np.full(2, 3.0), np.linspace(-2, 2, 298)]),
    "a thousandth of the smallest": np.concatenate([[-1000.0], np.linspace(-1, 0.1, 298), [1.0]]),
    "two that differ by a hundredth": np.concatenate([np.linspace(-1, 1, 298), [5.0, 5.05]]),
}


class Given:
    """A Hessian with given eigenvalues, in the place of a network's."""

    def __init__(self, eigenvalues, dtype=np.float64, count=1):
        size = len(eigenvalues)
        self.network = Network.create([size - 1, 1], rng=np.random.default_rng(0), dtype=dtype)
        U = np.linalg.qr(np.random.default_rng(1).standard_normal((size, size)))[0]
        self.H = ((U * eigenvalues) @ U.T).astype(dtype)
        self.v, self.product = np.empty((2, count, size), dtype)

    def times(self):
        self.product[...] = self.v @ self.H


def test_an_eigenvalue_that_has_not_converged_is_nan_beside_those_that_have():
    hessian = Given(np.concatenate([[100.0], np.linspace(1, 2, 299)]), count=2)
    values, vectors = top_eigenpairs(hessian, np.random.default_rng(2).standard_normal((2, 300)), iterations=12)
    np.testing.assert_allclose(values, [100, np.nan], rtol=1e-8)
    # What has not converged is a start still.
    assert_near(np.linalg.norm(vectors, axis=-1), np.ones(2), 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_value_is_within_its_tolerance_of_the_largest_eigenvalue_itself(spectrum, dtype):
    hessian, expected = Given(SPECTRA[spectrum], dtype), SPECTRA[spectrum].max()
    start = np.random.default_rng(2).standard_normal((1, 300))
    ((value,), _) = top_eigenpairs(hessian, start, tolerance=0.01)
    rounding = 8 * np.finfo(dtype).eps * np.abs(SPECTRA[spectrum]).max()
    if spectrum == "nowhere positive":
        # Its zero is no number that anything is within 1 % of.
        assert np.isnan(value) or abs(value) <= rounding
    else:
        assert abs(value - expected) <= 0.01 * abs(expected) + rounding


@pytest.mark.parametrize("start", [np.zeros((2, 53)), np.ones((2, 53)), np.eye(2, 53)])
def test_any_start_is_completed(start):
    network, x, y = problem("tanh", "softmax_cross_entropy", [4, 6, 2, 3])
    start = start[:, : network.layout.size]
    values, _ = top_eigenpairs(Hessian(network, x, y, losses.softmax_cross_entropy, (2,)), start)
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
        network.parameters[1] = 1e70
    values = sharpness(network, x, y, loss, rng=np.random.default_rng(0))
    assert np.isnan(values[:, 0]).tolist() == [False, True, False, True]
    alone = Network(network.layout.sizes, "relu", network.parameters[2].copy())
    assert sharpness(alone, x, y, loss, rng=np.random.default_rng(0)).tobytes() == values[2].tobytes()
    assert np.isfinite(example_gradient_norms(network, x, y, loss)[[0, 2]]).all()
    assert np.isfinite(saturated(network, x)).all()


@pytest.mark.parametrize("factor", [1e36, 1e80])
def test_a_sharpness_whose_squares_leave_their_range_is_scaled(factor):
    loss = losses.half_mean_squared_error
    network, x, y = problem("relu", loss.name, SHAPES[2])
    network.parameters *= factor
    actual = sharpness(network, x, y, loss, rng=np.random.default_rng(0))
    np.testing.assert_allclose(actual, jax_eigenvalues(network, x, y, loss.name)[:1], rtol=1e-8)


def test_a_hessian_of_low_rank():
    network = Network.create([3, 4, 2], "tanh", "zeros", rng=np.random.default_rng(0))
    x, y = np.zeros((3, 5)), np.zeros((2, 5))
    # The biases of the logits alone matter there: their Hessian is the unit matrix.
    values = sharpness(network, x, y, losses.half_mean_squared_error, 5, rng=np.random.default_rng(0))
    np.testing.assert_allclose(values, [1, 1, 0, 0, 0], atol=1e-14)
