import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss, r2_score

from blocks import Network, losses
from blocks.losses import LOSSES, Loss
from tests.blocks import oracle


def test_softmax_cross_entropy_is_scikit_learns_log_loss():
    rng = np.random.default_rng(0)
    logits, y = rng.standard_normal((4, 50)), rng.integers(0, 4, 50)
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    value, dlogits = losses.softmax_cross_entropy(logits, y)
    assert value == pytest.approx(log_loss(y, p.T, labels=range(4)), rel=1e-12)
    np.testing.assert_allclose(dlogits, (p - np.eye(4)[:, y]) / 50, rtol=1e-12, atol=1e-16)


def test_sigmoid_cross_entropy_is_scikit_learns_log_loss():
    rng = np.random.default_rng(0)
    logits, y = 3 * rng.standard_normal((1, 50)), rng.integers(0, 2, 50)
    p = 1 / (1 + np.exp(-logits[0]))
    value, dlogits = losses.sigmoid_cross_entropy(logits, y)
    assert value == pytest.approx(log_loss(y, p), rel=1e-12)
    np.testing.assert_allclose(dlogits[0], (p - y) / 50, rtol=1e-10, atol=1e-16)


def test_half_mean_squared_error_by_hand():
    value, dlogits = losses.half_mean_squared_error(np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([[0.0, 2.0], [3.0, 2.0]]))
    assert value == (1 + 9 + 4) / 4
    np.testing.assert_array_equal(dlogits, np.array([[1, 0], [-3, 2]]) / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_logits_of_ten_thousand_give_finite_values(loss, dtype):
    units = 1 if loss == "sigmoid_cross_entropy" else 2
    logits = np.array([[1e4, -1e4, 1e4, -1e4], [-1e4, 1e4, 1e4, -1e4]], dtype)[:units]
    y = np.zeros((2, 4)) if LOSSES[loss].decides is None else np.array([1, 1, 0, 0])
    value, dlogits = LOSSES[loss](logits, y)
    assert np.isfinite(value)
    assert np.isfinite(dlogits).all()
    if LOSSES[loss].decides:
        # Certain and right costs nothing, certain and wrong costs the logit.
        assert losses.softmax_cross_entropy(np.array([[1e4], [-1e4]], dtype), np.array([1]))[0] == 2e4


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_over_examples_is_in_the_loss_and_nowhere_else(loss):
    rng = np.random.default_rng(0)
    units = 1 if loss == "sigmoid_cross_entropy" else 3
    network = Network.create([4, 5, units], "tanh", rng=rng)
    x = rng.standard_normal((4, 6))
    y = rng.standard_normal((3, 6)) if LOSSES[loss].decides is None else rng.integers(0, max(units, 2), 6)
    gradients = []
    for repeats in (1, 3):
        logits, caches = network.forward(np.tile(x, repeats))
        value, dlogits = LOSSES[loss](logits, np.tile(y, repeats))
        gradients.append([value, *(dW for dW, _ in network.backward(dlogits, caches))])
    for once, repeated in zip(*gradients, strict=True):
        np.testing.assert_allclose(once, repeated, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "logits", "y", "message"),
    [
        ("softmax_cross_entropy", np.zeros((3, 2)), [0, 3], r"y of shape \(2,\) has labels 0 to 3, they must be 0 to 2"),
        ("softmax_cross_entropy", np.zeros((3, 2)), [-1, 0], "labels -1 to 0, they must be 0 to 2"),
        ("softmax_cross_entropy", np.zeros((3, 2)), [0.0, 1.0], "y has dtype float64, it must hold integer labels"),
        ("softmax_cross_entropy", np.zeros((3, 2)), [0, 1, 2], r"y has shape \(3, 3\), it must be \(\.\.\., 3, 2\)"),
        (
            "softmax_cross_entropy",
            np.full((3, 2), np.nan),
            [0, 1],
            r"logits of shape \(3, 2\) must be finite, it has nan at \(0, 0\)",
        ),
        ("sigmoid_cross_entropy", np.zeros((1, 2)), [0, 2], "labels 0 to 2, they must be 0 to 1"),
        ("sigmoid_cross_entropy", np.zeros((2, 2)), [0, 1], "takes 1 logit an example, the network has 2"),
        ("half_mean_squared_error", np.zeros((3, 2)), np.zeros((2, 2)), r"y has shape \(2, 2\), it must be \(\.\.\., 3, m\)"),
        ("half_mean_squared_error", np.zeros((1, 2)), [0, np.inf], "y of shape .* must be finite, it has inf"),
        (
            "half_mean_squared_error",
            np.zeros((1, 2), np.float32),
            [0, 1e39],
            r"must be finite in float32, it has 1e\+39 at \(0, 1\)",
        ),
    ],
)
def test_targets_that_do_not_fit_are_named(loss, logits, y, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[loss](logits, np.array(y))


def test_an_unknown_loss_lists_the_known_ones():
    with pytest.raises(ValueError, match="loss 'hinge' is unknown, allowed: softmax_cross_entropy"):
        Loss.named("hinge")


def test_one_hot_squared_error_by_hand():
    value, dlogits = losses.one_hot_squared_error(np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([0, 1]))
    # (1, 0) is example 0's label, (2, 4) - (0, 1) is left of example 1.
    assert value == (4 + 9) / 4
    np.testing.assert_array_equal(dlogits, np.array([[0, 2], [0, 3]]) / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_jaxs(loss):
    rng = np.random.default_rng(4)
    units = 1 if loss == "sigmoid_cross_entropy" else 4
    logits, y = rng.standard_normal((units, 9)), oracle.targets_for(loss, rng, units, 9)
    expected, gradient = jax.value_and_grad(oracle.LOSSES[loss])(jnp.asarray(logits), jnp.asarray(y))
    value, dlogits = LOSSES[loss](logits, y)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(dlogits, gradient, rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_with_weights_a_loss_and_its_gradient_are_jaxs_weighted_mean_in_every_lane(loss):
    rng = np.random.default_rng(5)
    units = 1 if loss == "sigmoid_cross_entropy" else 4
    logits, y, weights = rng.standard_normal((3, units, 9)), oracle.targets_for(loss, rng, units, 9), rng.uniform(0.1, 5, 9)

    def weighted(z):
        each = jax.vmap(lambda z, y: oracle.LOSSES[loss](z[:, None], y[..., None]), (1, -1))(z, jnp.asarray(y))
        return jnp.average(each, weights=weights)

    by_jax = jax.jit(jax.value_and_grad(weighted))
    value, dlogits = LOSSES[loss](logits, y, weights)
    for k in range(3):
        expected, gradient = by_jax(jnp.asarray(logits[k]))
        np.testing.assert_allclose(value[k], expected, rtol=1e-13)
        np.testing.assert_allclose(dlogits[k], gradient, rtol=0, atol=1e-15)
        alone = LOSSES[loss](logits[k], y, weights)
        assert (alone[0].tobytes(), alone[1].tobytes()) == (value[k].tobytes(), dlogits[k].tobytes())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-320, 1e-30, 1.0, 1e308])
def test_weights_of_any_size_count_by_their_ratio(loss, dtype, scale):
    rng = np.random.default_rng(6)
    units = 1 if loss == "sigmoid_cross_entropy" else 3
    logits, y = rng.standard_normal((units, 4)).astype(dtype), oracle.targets_for(loss, rng, units, 4)
    value, dlogits = LOSSES[loss](logits, y, scale * np.array([1, 1, 1, 1]))
    expected, gradient = LOSSES[loss](logits, y)
    assert (value.dtype, dlogits.dtype) == (dtype, dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(dlogits, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights has shape \(1,\), it must be \(2,\), one an example"),
        ([1.0, 0.0], r"weights is \[1\. 0\.\], it must be finite and above 0"),
        ([1.0, -1.0], "must be finite and above 0"),
        ([1.0, np.nan], "must be finite and above 0"),
        ([np.inf, 1.0], "must be finite and above 0"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        losses.softmax_cross_entropy(np.zeros((3, 2)), np.array([0, 1]), np.array(weights))


TARGETS = {
    "one output": [[3.0, -0.5, 2.0, 7.0]],
    "three of other sizes": [[3.0, -0.5, 2.0, 7.0], [30, -5, 20, 70], [0.1, 0.2, 0.3, 0.4]],
    "one is constant": [[3.0, -0.5, 2.0, 7.0], [5, 5, 5, 5]],
    "all are constant": [[0.0, 0.0, 0.0, 0.0], [5, 5, 5, 5]],
}


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("name", TARGETS)
def test_r2_is_scikit_learns_for_constant_targets_too(name, right):
    y = np.array(TARGETS[name])
    z = y if right else y + np.random.default_rng(0).standard_normal(y.shape)
    residual, total = ((z - y) ** 2).sum(axis=-1), y.shape[-1] * y.var(axis=-1)
    assert losses.r2(residual, total, 4) == pytest.approx(r2_score(y.T, z.T), rel=1e-12)
    np.testing.assert_array_equal(losses.r2(np.stack([residual] * 2), total, 4), [losses.r2(residual, total, 4)] * 2)
    # As there, one example alone has none.
    assert np.isnan(losses.r2(residual, total, 1))
