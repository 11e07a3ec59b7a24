import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from blocks import ACTIVATIONS, Activation
from tests.blocks import oracle
from tests.blocks.reference import ACTIVATION_NAMES, derivative

every_activation = pytest.mark.parametrize("name", ACTIVATION_NAMES)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# Both sides of where each formula bends, saturates or overflows, and never the kink at 0.
Z = np.concatenate([[-1e-9, 1e-9, -1e-3, 1e-3], np.linspace(-30.1, 30.2, 400)])
EXTREMES = [0, 1, 5, 9.99, 10.01, 17, 40, 88, 89, 104, 709, 710, 746, 1000, 1e4, 1e30, 1e38]

# name: (g(z) for large z, g'(z) there, g(z) for large -z, g'(z) there)
LIMITS = {
    "identity": (lambda z: z, 1, lambda z: z, 1),
    "sigmoid": (lambda z: 1, 0, lambda z: 0, 0),
    "tanh": (lambda z: 1, 0, lambda z: -1, 0),
    "relu": (lambda z: z, 1, lambda z: 0, 0),
    "leaky_relu": (lambda z: z, 1, lambda z: 0.01 * z, 0.01),
    "softplus": (lambda z: z, 1, lambda z: 0, 0),
    "elu": (lambda z: z, 1, lambda z: -1, 0),
    "gelu": (lambda z: z, 1, lambda z: 0, 0),
    "swish": (lambda z: z, 1, lambda z: 0, 0),
}


def both(name, z):
    """g(z), g'(z)"""
    a = ACTIVATIONS[name].function(z)
    return a, ACTIVATIONS[name].derivative(z, a)


def test_the_table_has_the_nine_and_knows_them_by_name():
    assert list(ACTIVATIONS) == ["identity", "sigmoid", "tanh", "relu", "leaky_relu", "softplus", "elu", "gelu", "swish"]
    for name, activation in ACTIVATIONS.items():
        assert activation.name == name
        assert Activation.named(name) is activation


def test_an_unknown_name_raises_with_the_list_of_names():
    with pytest.raises(ValueError, match=r"activation 'step' is unknown, allowed: identity, sigmoid, tanh, relu, leaky_relu,"):
        Activation.named("step")


@every_activation
def test_g_is_jax_s(name):
    assert_allclose(both(name, Z)[0], oracle.ACTIVATIONS[name](Z), rtol=1e-12, atol=1e-14)


@every_activation
def test_the_derivative_is_that_of_automatic_differentiation(name):
    assert_allclose(both(name, Z)[1], derivative(name)(Z), rtol=1e-12, atol=1e-13)


@every_activation
def test_float32_stays_float32_and_is_near_float64(name):
    for got, exact in zip(both(name, Z.astype(np.float32)), both(name, Z.astype(np.float32).astype(float)), strict=True):
        assert got.dtype == np.float32
        assert_allclose(got, exact, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "at_zero"), [("relu", 0), ("leaky_relu", 0.01), ("elu", 1)])
def test_at_the_kink_the_derivative_is_the_left_one(name, at_zero):
    assert both(name, np.zeros(1))[1] == at_zero


def test_sigmoid_of_minus_1000_is_0():
    assert both("sigmoid", np.array([-1000.0, 1000.0]))[0].tolist() == [0, 1]


@every_activation
@every_dtype
def test_far_out_g_and_its_derivative_reach_their_limits(name, dtype):
    z = np.array([1e4, 1e30, 1e38, 1e300, np.finfo(dtype).max])
    z = z[z <= np.finfo(dtype).max].astype(dtype)
    above, slope_above, below, slope_below = LIMITS[name]
    for sign, limit, slope in ((1, above, slope_above), (-1, below, slope_below)):
        a, da_dz = both(name, sign * z)
        assert_allclose(a, np.broadcast_to(limit(sign * z), z.shape), rtol=1e-6)
        assert_allclose(da_dz, np.full(z.shape, slope), rtol=1e-6)


@every_activation
@every_dtype
def test_in_between_everything_is_finite_without_a_warning(name, dtype):
    z = np.array(EXTREMES, dtype)
    a, da_dz = both(name, np.concatenate([-z[::-1], z]))
    assert np.isfinite(a).all()
    assert np.isfinite(da_dz).all()
    assert np.abs(da_dz).max() < 1.2


@every_activation
@given(st.data())
def test_every_finite_z_gives_finite_values(name, data):
    width = data.draw(st.sampled_from([32, 64]))
    z = np.array(data.draw(st.lists(st.floats(width=width, allow_nan=False, allow_infinity=False), min_size=1)), f"f{width // 8}")
    a, da_dz = both(name, z)
    assert a.dtype == da_dz.dtype == z.dtype
    assert np.isfinite(a).all()
    assert np.isfinite(da_dz).all()


@every_activation
@every_dtype
def test_nan_comes_out_as_nan(name, dtype):
    """A network that has diverged must not look healthy again behind an activation."""
    with np.errstate(invalid="ignore"):
        assert np.isnan(both(name, np.array([np.nan, 1.0], dtype))[0][0])


@every_activation
@every_dtype
def test_a_pair_leaves_what_it_is_given_as_it_was(name, dtype):
    rng = np.random.default_rng(0)
    given_arrays = (4 * rng.standard_normal((3, 3, 5, 7))).astype(dtype)
    before = given_arrays.copy()
    da, z, _ = given_arrays
    a = ACTIVATIONS[name].function(z)
    ACTIVATIONS[name].derivative(z, a)
    ACTIVATIONS[name].backward(da, z, a)
    assert_array_equal(given_arrays, before)


def test_jax_computes_in_float64():
    assert jax.numpy.zeros(1).dtype == np.float64


@every_activation
@every_dtype
def test_backward_is_da_times_the_slope(name, dtype):
    activation = ACTIVATIONS[name]
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max / 4
    special = np.array([0, -0.0, tiny, -tiny, huge, -huge, np.inf, -np.inf, 1, -1])
    rng = np.random.default_rng(0)
    z = np.concatenate([special, 3 * rng.standard_normal(50)]).astype(dtype) * np.ones((2, 4, 1), dtype)
    da = np.where(rng.random(z.shape) < 0.5, 1, -1).astype(dtype) * rng.choice([tiny, 1e-3, 1, 1e3], z.shape).astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        a = activation.function(z)
        assert_array_equal(activation.backward(da, z, a), da * activation.derivative(z, a))
