import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blocks import KINDS, LOSSES, Network, losses
from blocks.measure.diagnostics import example_gradient_norms, noise_scale, saturated, update_ratios
from blocks.measure.hessian import Hessian, hessian_vector_product
from blocks.measure.lanczos import sharpness, top_eigenpairs
from blocks.parameters import Layout
from tests.blocks.reference import ACTIVATION_NAMES, LOSS_NAMES, SHAPES, all_pairs, assert_near, problem
from tests.blocks.test_hessian import flat_loss


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


def test_saturated_units_of_a_residual_block_are_those_of_its_input():
    network = Network([2, 2, 2, 1], "identity", np.zeros(Layout([2, 2, 2, 1]).size), "residual")
    network.blocks[0].W[...] = np.eye(2)
    network = Network(network.layout.sizes, "tanh", network.parameters, "residual")
    # a_1 = tanh x; g' of tanh of that is at least 1 - tanh(1)^2, that of x is below 1e-3 from 4.2 on.
    np.testing.assert_array_equal(saturated(network, np.array([[9.0, -5.0], [9.0, 1.0]])), [0.5, 0])


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


@pytest.mark.parametrize(
    ("activation", "loss", "kind"),
    all_pairs(ACTIVATION_NAMES, LOSS_NAMES, [kind for kind in KINDS if kind != "batch_normalized"]),
)
def test_example_gradient_norms_are_those_of_backward_one_by_one(activation, loss, kind):
    network, x, y = problem(activation, loss, SHAPES[4], (2,), kind=kind)
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


def test_the_noise_scale_is_that_of_jaxs_gradients_one_by_one():
    loss = losses.softmax_cross_entropy
    network, x, y = problem("tanh", loss.name, [6, 5, 4, 3], (2,), m=9)
    # Of one class, so that the gradient is not lost in its noise.
    y[...] = 1
    of = jax.vmap(jax.grad(flat_loss(network.layout, "tanh", loss.name)), in_axes=(None, 1, 0))
    actual = noise_scale(network, x, y, loss)
    assert actual.shape == (2,)
    for lane in range(2):
        gradients = np.asarray(of(jnp.asarray(network.parameters[lane]), jnp.asarray(x)[..., None], jnp.asarray(y)[:, None]))
        covariance = np.cov(gradients, rowvar=False)
        noise, mean = np.trace(covariance), gradients.mean(axis=0)
        # E|mean|^2 = |G|^2 + tr(Sigma) / m
        assert actual[lane] == pytest.approx(noise / (mean @ mean - noise / 9), rel=1e-10)


def test_the_noise_scale_is_the_mean_ratio_of_its_unbiased_parts():
    """J_i = |b - y_i|^2 / 2 with y_i around 0 of variance 4 in each of 3 outputs: B = 3 * 4 / |b|^2."""
    network = Network.create([1, 3], "identity", "zeros", rng=np.random.default_rng(0), lanes=400)
    network.blocks[0].b[...] = [[3.0], [0.0], [4.0]]
    y = 2 * np.random.default_rng(1).standard_normal((400, 3, 2000))
    actual = noise_scale(network, np.zeros((1, 2000)), y, losses.half_mean_squared_error)
    np.testing.assert_allclose(actual.mean(), 12 / 25, rtol=0.005)


def test_a_noise_scale_that_cannot_be_told_is_nan_or_refused():
    network = Network.create([1, 1], "identity", "zeros", rng=np.random.default_rng(0))
    loss = losses.half_mean_squared_error
    # The gradients are 1 and -1.
    assert np.isnan(noise_scale(network, np.zeros((1, 2)), np.array([[1.0, -1.0]]), loss))
    assert noise_scale(network, np.zeros((1, 2)), np.array([[1.0, 1.0]]), loss) == 0
    with pytest.raises(ValueError, match=r"x has shape \(1, 1\), noise_scale needs at least 2 examples"):
        noise_scale(network, np.zeros((1, 1)), np.ones((1, 1)), loss)
    mixed = Network.create([1, 2, 1], "relu", rng=np.random.default_rng(0), kind="batch_normalized")
    with pytest.raises(ValueError, match="noise_scale is of single examples, but kind 'batch_normalized' mixes"):
        noise_scale(mixed, np.zeros((1, 3)), np.ones((1, 3)), loss)


# All of them.


def instruments(network, x, y, loss):
    rng = np.random.default_rng(0)
    hessian_vector_product(network, x, y, loss, rng.standard_normal(network.parameters.shape))
    sharpness(network, x, y, loss, 2, rng=rng)
    update_ratios(network.parameters, network.parameters, network.layout)
    saturated(network, x)
    if not network.mixes_examples:
        example_gradient_norms(network, x, y, loss)


@pytest.mark.parametrize(("activation", "kind"), [(name, [*KINDS][k % 4]) for k, name in enumerate(ACTIVATION_NAMES)])
def test_nothing_is_changed(activation, kind):
    network, x, y = problem(activation, "softmax_cross_entropy", SHAPES[4], (2,), kind=kind)
    before = network.parameters.tobytes(), x.tobytes(), y.tobytes()
    instruments(network, x, y, losses.softmax_cross_entropy)
    assert (network.parameters.tobytes(), x.tobytes(), y.tobytes()) == before


# Bad input.

NETWORK = Network.create([3, 4, 2], "tanh", rng=np.random.default_rng(0))
STACK = Network.create([3, 4, 2], "tanh", rng=np.random.default_rng(0), lanes=2)
P = NETWORK.layout.size
SOFTMAX = losses.softmax_cross_entropy
X5, Y5, V = np.ones((3, 5)), np.zeros(5, int), np.ones(P)
BATCH_NORMALIZED = Network([3, 4, 2], "tanh", NETWORK.parameters, "batch_normalized")
HESSIAN = Hessian(NETWORK, X5, Y5, SOFTMAX, (1,))
NAN = np.array([[np.nan], [0], [0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: example_gradient_norms(BATCH_NORMALIZED, X5, Y5, SOFTMAX),
            "example_gradient_norms is of single examples, but kind 'batch_normalized' mixes those of a batch",
        ),
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
        (lambda: top_eigenpairs(HESSIAN, V), r"start has shape \(26,\), it must be \(..., 1, 26\)"),
        (
            lambda: top_eigenpairs(Hessian(NETWORK, X5, Y5, SOFTMAX, (0,)), np.ones((0, P))),
            "count is 0, it must be a whole number from 1",
        ),
        (
            lambda: top_eigenpairs(Hessian(STACK, X5, Y5, SOFTMAX, (1,)), np.ones((3, 1, P))),
            r"start has lanes \(3,\), it must have none or",
        ),
        (lambda: top_eigenpairs(HESSIAN, V[None], tolerance=0), "tolerance is 0, it must be finite and above 0"),
        (lambda: top_eigenpairs(HESSIAN, V[None], iterations=0), "iterations is 0, it must be a whole number"),
        (lambda: update_ratios(V[:-1], V[:-1], NETWORK.layout), r"before has shape \(25,\), it must be \(..., 26\)"),
        (lambda: update_ratios(V, V.astype(int), NETWORK.layout), "after has dtype int64, it must be float32 or float64"),
        (lambda: update_ratios(V, V[:-1], NETWORK.layout), r"after has shape \(25,\), it must be \(..., 26\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
