import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import norm
from sklearn.datasets import load_diabetes, load_digits, load_iris

from blocks import ACTIVATIONS, INITIALIZERS, Activation, GradientDescent, Network, losses, train
from blocks.theory import MeanField, critical_gain, largest_curvature, largest_stable_rate, softmax_sharpness, weight_variance
from tests.blocks import oracle, reference

SMOOTH = ["identity", "sigmoid", "tanh", "softplus", "gelu"]
CORRELATIONS = np.array([-1.0, -0.6, 0.0, 0.3, 0.99, 1.0])
LEAK = 0.01


def gaussian_mean(f):
    """E[f(z)]: Gauss-Legendre on 200 intervals, none of them across 0."""
    x, weights = np.polynomial.legendre.leggauss(20)
    ends = np.linspace(-12, 12, 201)
    half = (ends[1] - ends[0]) / 2
    z = ((ends[:-1] + half)[:, None] + half * x).ravel()
    return float(np.sum(f(z) * norm.pdf(z) * np.tile(half * weights, 200)))


def mean_of_pairs(f, c):
    """E[f(z1) f(c z1 + sqrt(1 - c^2) z2)]: the trapezoidal rule, exact to rounding for smooth f."""
    z, step = np.linspace(-9, 9, 241, retstep=True)
    u2 = c * z[:, None] + np.sqrt(1 - c * c) * z
    density = norm.pdf(z)
    return step**2 * float((f(z) * density) @ (f(u2) @ density))


def correlation_of(field, mean):
    """C(c) from E[g g]: what is asked of correlation_map."""
    return (field.weight_variance * mean + field.bias_variance) / field.fixed_point


def arc_cosine(c):
    """E[relu(u1) relu(u2)] at q = 1 (Cho and Saul 2009)."""
    return (np.sqrt(1 - c * c) + c * (np.pi - np.arccos(c))) / (2 * np.pi)


def rate_of_decay(distances):
    """xi of distances that fall as e^(-l / xi)."""
    return -1 / np.polyfit(np.arange(len(distances)), np.log(distances), 1)[0]


# Published: Schoenholz et al. 2017's theory for tanh at sigma_b^2 = 0.05.


@pytest.mark.parametrize(
    ("sw2", "q", "chi_1", "xi_c", "depth"),
    [
        (0.5, 0.087580, 0.431987, 1.19, 7.1),
        (1.0, 0.193593, 0.759032, 3.63, 21.8),
        (1.5, 0.418037, 0.938636, 15.79, 94.7),
        (2.0, 0.721762, 1.047666, 25.2, 151),
        (3.0, 1.428008, 1.208934, 9.05, 54.3),
    ],
)
def test_tanh_has_the_published_numbers(sw2, q, chi_1, xi_c, depth):
    field = MeanField("tanh", sw2, 0.05)
    assert field.fixed_point == pytest.approx(q, abs=6e-7)
    assert field.chi_1 == pytest.approx(chi_1, abs=6e-7)
    assert field.correlation_depth_scale == pytest.approx(xi_c, abs=0.02)
    assert field.trainable_depth == pytest.approx(depth, abs=0.3)


@pytest.mark.parametrize(("bias_variance", "sw2", "q"), [(0.05, 1.760955, 0.570048), (0.05**2, 1.122539**2, 0.153692)])
def test_tanh_is_critical_where_it_is_published(bias_variance, sw2, q):
    assert critical_gain("tanh", bias_variance) == pytest.approx(sw2, rel=1e-6)
    assert MeanField("tanh", critical_gain("tanh", bias_variance), bias_variance).fixed_point == pytest.approx(q, abs=1e-6)


def test_relu_gradients_have_the_published_ratio():
    """Measured elsewhere, at width 256 over 40 networks: sampling leaves them 10 % off."""
    vanishing, preserving = (MeanField("relu", weight_variance("he", gain)).gradient_ratio(22) for gain in (0.5, 1.0))
    assert vanishing == pytest.approx(2.0**-22, rel=1e-12)
    assert vanishing == pytest.approx(2.14e-7, rel=0.15)
    assert preserving == pytest.approx(1, rel=1e-12)
    assert preserving == pytest.approx(0.897, rel=0.15)


# Closed forms.


def test_relu_has_its_closed_forms():
    field, q = MeanField("relu", 1.2, 0.3), np.array([0.0, 1e-9, 0.7, 1e6])
    np.testing.assert_allclose(field.variance_map(q), 0.6 * q + 0.3, rtol=1e-13)
    assert field.fixed_point == pytest.approx(0.3 / 0.4, rel=1e-13)
    assert field.chi_1 == pytest.approx(0.6, rel=1e-13)
    assert field.variance_depth_scale == pytest.approx(-1 / np.log(0.6), rel=1e-12)
    # At c* = 1 the correlation's factor is chi_1.
    assert field.correlation_fixed_point == 1
    assert field.correlation_depth_scale == pytest.approx(-1 / np.log(0.6), rel=1e-12)
    expected = correlation_of(field, 0.75 * arc_cosine(CORRELATIONS))
    np.testing.assert_allclose(field.correlation_map(CORRELATIONS), expected, rtol=1e-12)


def test_leaky_relu_has_its_closed_forms():
    field, square = MeanField("leaky_relu", 1.2, 0.3), (1 + LEAK**2) / 2
    assert field.chi_1 == pytest.approx(1.2 * square, rel=1e-13)
    q = 0.3 / (1 - 1.2 * square)
    assert field.fixed_point == pytest.approx(q, rel=1e-13)
    # leaky_relu(u) = relu(u) - LEAK relu(-u), and -u1 has the correlation -c with u2.
    c = CORRELATIONS
    mean = (1 + LEAK**2) * arc_cosine(c) - 2 * LEAK * arc_cosine(-c)
    np.testing.assert_allclose(field.correlation_map(c), correlation_of(field, q * mean), rtol=1e-12, atol=1e-14)


def test_a_linear_network_has_its_closed_forms():
    field = MeanField("identity", 0.8, 0.1)
    assert field.variance_map(3.0) == pytest.approx(0.8 * 3 + 0.1, rel=1e-13)
    assert field.fixed_point == pytest.approx(0.5, rel=1e-13)
    assert field.chi_1 == pytest.approx(0.8, rel=1e-13)
    np.testing.assert_allclose(field.correlation_map(CORRELATIONS), 0.8 * CORRELATIONS + 0.2, rtol=1e-12)
    xi = -1 / np.log(0.8)
    assert (field.variance_depth_scale, field.correlation_depth_scale) == pytest.approx((xi, xi), rel=1e-12)
    np.testing.assert_allclose(field.gradient_ratio([0, 1, 30]), [1, 0.8, 0.8**30], rtol=1e-12)


@pytest.mark.parametrize("q", [1e-8, 0.3, 1.0, 40.0, 1000.0])
def test_the_error_function_has_its_closed_forms(q, monkeypatch):
    """E[erf(u1) erf(u2)] = 2 / pi asin(2 q c / (1 + 2 q)) (Williams 1997), and its derivative with respect to c."""
    pair = Activation("erf", lambda z, out=None: erf(z), lambda z, a, out=None: 2 / np.sqrt(np.pi) * np.exp(-z * z))
    monkeypatch.setitem(ACTIVATIONS, "erf", pair)
    # With these biases q is the fixed point.
    sw2 = 0.9 * q / (2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)))
    field = MeanField("erf", sw2, 0.1 * q)
    assert field.fixed_point == pytest.approx(q, rel=1e-11)
    assert field.variance_map(q) == pytest.approx(q, rel=1e-12)
    mean = 2 / np.pi * np.arcsin(2 * q * CORRELATIONS / (1 + 2 * q))
    np.testing.assert_allclose(field.correlation_map(CORRELATIONS), correlation_of(field, mean), rtol=1e-11)

    def chi(c):
        return sw2 * 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)

    assert field.chi_1 == pytest.approx(chi(1), rel=1e-11)
    # d/dq of 2 / pi asin(2 q / (1 + 2 q)).
    slope = sw2 * 4 / np.pi / ((1 + 2 * q) * np.sqrt(1 + 4 * q))
    assert field.variance_depth_scale == pytest.approx(-1 / np.log(slope), rel=1e-10)
    c = field.correlation_fixed_point
    assert (c == 1) == (chi(1) <= 1)
    assert sw2 * 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q)) + 0.1 * q == pytest.approx(q * c, rel=1e-11)
    assert field.correlation_depth_scale == pytest.approx(-1 / np.log(chi(c)), rel=1e-9)


# Every activation, against other quadratures and JAX's derivatives.


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("q", [0.01, 1.0, 100.0])
def test_every_activation_has_its_variance_map(name, q):
    square = gaussian_mean(lambda z: np.asarray(oracle.ACTIVATIONS[name](np.sqrt(q) * z)) ** 2)
    assert MeanField(name, 1.7, 0.2).variance_map(q) == pytest.approx(1.7 * square + 0.2, rel=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_its_fixed_point_and_chi_1(name):
    field = MeanField(name, 0.9, 0.2)
    u = np.sqrt(field.fixed_point)
    square = gaussian_mean(lambda z: np.asarray(oracle.ACTIVATIONS[name](u * z)) ** 2)
    assert 0.9 * square + 0.2 == pytest.approx(field.fixed_point, rel=1e-12)
    square = gaussian_mean(lambda z: np.asarray(reference.derivative(name)(u * z)) ** 2)
    assert field.chi_1 == pytest.approx(0.9 * square, rel=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_have_their_correlation_map(name):
    field = MeanField(name, 0.9, 0.2)
    u = np.sqrt(field.fixed_point)
    mean = np.array([mean_of_pairs(lambda z: np.asarray(oracle.ACTIVATIONS[name](u * z)), c) for c in CORRELATIONS])
    np.testing.assert_allclose(field.correlation_map(CORRELATIONS), correlation_of(field, mean), rtol=1e-11)


def test_elu_has_its_correlation_map():
    """The mean over z2 has a closed form: that of elu(mu + sigma z)."""
    field = MeanField("elu", 0.9, 0.2)
    root = np.sqrt(field.fixed_point)

    def given_z1(z, c):
        mu, sigma = root * c * z, root * np.sqrt(1 - c * c)
        above = mu * norm.cdf(mu / sigma) + sigma * norm.pdf(mu / sigma)
        return above + np.exp(mu + sigma**2 / 2) * norm.cdf(-(mu + sigma**2) / sigma) - norm.cdf(-mu / sigma)

    def elu(u):
        return np.where(u > 0, u, np.expm1(np.minimum(u, 0)))

    c = CORRELATIONS[1:-1]
    mean = np.array([gaussian_mean(lambda z, at=at: elu(root * z) * given_z1(z, at)) for at in c])
    np.testing.assert_allclose(field.correlation_map(c), correlation_of(field, mean), rtol=1e-11)
    assert field.correlation_map(1.0) == pytest.approx(1, rel=1e-12)


# Limits and fixed points.


@pytest.mark.parametrize(
    ("name", "sw2", "bias_variance", "q"),
    [
        ("relu", 2.0, 0.0, 1.0),  # every q is fixed, and q = 1 is the start
        ("relu", 2.0, 0.05, np.inf),
        ("relu", 2.1, 0.0, np.inf),
        ("relu", 1.9, 0.0, 0.0),
        ("tanh", 0.9, 0.0, 0.0),
        ("gelu", 2.2, 0.0, 0.0),
        ("gelu", 2.5, 0.0, np.inf),
        ("elu", 2.5, 0.1, np.inf),
        ("softplus", 2.5, 0.0, np.inf),
    ],
)
def test_where_there_is_no_fixed_point_it_is_a_limit(name, sw2, bias_variance, q):
    field = MeanField(name, sw2, bias_variance)
    assert field.fixed_point == q
    # The limits of all of these behave as relu or as a linear network.
    slope = {"tanh": 1.0, "gelu": 0.25 if q == 0 else 0.5}.get(name, 0.5)
    assert field.chi_1 == pytest.approx(sw2 * slope, rel=1e-12)
    assert field.variance_depth_scale == (pytest.approx(-1 / np.log(sw2 * slope), rel=1e-12) if q == 0 else np.inf)
    assert field.correlation_fixed_point == 1
    linear = q == 0 and name != "relu"
    expected = CORRELATIONS if linear else 2 * arc_cosine(CORRELATIONS)
    np.testing.assert_allclose(field.correlation_map(CORRELATIONS), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("sw2", [0.7, 1.6])
def test_the_fixed_point_is_where_iteration_leads(name, sw2):
    field, q = MeanField(name, sw2, 0.1), 1.0
    for _ in range(2000):
        q = float(np.minimum(field.variance_map(q), 1e9))
    assert min(field.fixed_point, 1e9) == pytest.approx(q, rel=1e-10)


@pytest.mark.parametrize("name", ["tanh", "gelu", "sigmoid", "elu"])
def test_the_variance_nears_its_fixed_point_at_its_depth_scale(name):
    field = MeanField(name, 1.2, 0.1)
    q = [2 * field.fixed_point]
    for _ in range(100):
        q.append(float(field.variance_map(q[-1])))
    distances = np.abs(np.array(q) - field.fixed_point) / field.fixed_point
    near = distances[(distances < 1e-5) & (distances > 1e-11)]
    assert len(near) >= 5
    assert rate_of_decay(near) == pytest.approx(field.variance_depth_scale, rel=1e-4)


@pytest.mark.parametrize(("name", "sw2"), [("tanh", 0.5), ("tanh", 3.0), ("gelu", 1.2), ("elu", 1.0), ("sigmoid", 30.0)])
def test_the_correlation_nears_its_fixed_point_at_its_depth_scale(name, sw2):
    field = MeanField(name, sw2, 0.05)
    c = [0.05]
    for _ in range(60):
        c.append(float(field.correlation_map(c[-1])))
    distances = np.abs(np.array(c) - field.correlation_fixed_point)
    near = distances[(distances < 1e-2) & (distances > 1e-9)][-20:]
    assert len(near) > 5
    assert rate_of_decay(near) == pytest.approx(field.correlation_depth_scale, rel=0.01)


def test_without_biases_tanh_loses_all_correlation_above_the_critical_point():
    assert MeanField("tanh", 1.5).correlation_fixed_point == pytest.approx(0, abs=1e-12)


# The critical gain.


@pytest.mark.parametrize(("name", "gain"), [("relu", 2), ("leaky_relu", 2 / (1 + LEAK**2)), ("identity", 1), ("softplus", 2)])
@pytest.mark.parametrize("bias_variance", [0, 0.05])
def test_what_is_linear_for_large_z_is_critical_at_one_gain(name, gain, bias_variance):
    assert critical_gain(name, bias_variance) == pytest.approx(gain, rel=1e-11)


@pytest.mark.parametrize("name", ["tanh", "elu"])
def test_without_biases_g_is_linear_at_the_critical_gain(name):
    assert critical_gain(name) == pytest.approx(1, rel=1e-11)


@pytest.mark.parametrize(
    ("name", "bias_variance"), [("sigmoid", 0.0), ("sigmoid", 0.05), ("tanh", 1.0), ("elu", 0.05), ("gelu", 1)]
)
def test_at_the_critical_gain_nothing_decays(name, bias_variance):
    field = MeanField(name, critical_gain(name, bias_variance), bias_variance)
    assert field.chi_1 == pytest.approx(1, rel=1e-9)
    assert field.correlation_depth_scale > 1e6


# Random networks.


def random_networks(name, sw2, bias_variance, lanes=8, blocks=24, width=300):
    """One example's mean of z^2, ||dJ/dz||^2 and ||dJ/dW||^2 in each block, the means over some networks."""
    rng = np.random.default_rng(1)
    net = Network.create([width] * (blocks + 1), name, "normal", gain=sw2, bias_variance=bias_variance, rng=rng, lanes=lanes)
    logits, caches = net.forward(rng.standard_normal((width, 1)))
    gradients = net.backward(rng.standard_normal(logits.shape), caches)
    # With one example, db is dz.
    squares = [[(d**2).sum((-1, -2)).mean() for d in (db, dW)] for dW, db in gradients]
    return np.array([(cache.z**2).mean() for cache in caches]), *np.array(squares).T


@pytest.mark.parametrize(("sw2", "bias_variance"), [(0.5, 0.05), (1.0, 0.3), (1.760955, 0.05), (2.5, 0.3), (3.5, 0.05)])
def test_random_tanh_networks_have_q_and_chi_1_on_both_sides_of_the_critical_line(sw2, bias_variance):
    field = MeanField("tanh", sw2, bias_variance)
    q, _, dW = random_networks("tanh", sw2, bias_variance)
    assert q[8:].mean() == pytest.approx(field.fixed_point, rel=0.04)
    # Near the data q is not yet q*.
    measured = np.exp(1 / rate_of_decay(dW[5:]))
    assert measured == pytest.approx(field.chi_1, rel=0.05)


@pytest.mark.slow
def test_the_critical_gain_is_where_measured_gradients_turn_from_vanishing_to_exploding():
    # 48 networks of 20 blocks x 300, drawn once: another gain scales their weights.
    bias_variance, x = 0.05, np.random.default_rng(0).standard_normal((300, 1)).astype(np.float32)
    drawn = [
        Network.create(
            [300] * 21, "tanh", "normal", bias_variance=bias_variance, rng=np.random.default_rng(seed), lanes=16, dtype=np.float32
        )
        for seed in range(3)
    ]

    def vanishes(gain):
        squares = np.zeros(20)
        for net in drawn:
            scaled = net.with_parameters(np.where(net.layout.is_weight, np.float32(np.sqrt(gain)), 1) * net.parameters)
            logits, caches = scaled.forward(x)
            gradients = scaled.backward(np.ones_like(logits), caches)
            squares += [np.square(dW, dtype=np.float64).sum() for dW, _ in gradients]
        return np.polyfit(np.arange(15), np.log(squares[5:]), 1)[0] > 0

    low, high = 1.0, 3.0
    while high / low > 1.002:
        middle = np.sqrt(low * high)
        low, high = (middle, high) if vanishes(middle) else (low, middle)
    assert np.sqrt(low * high) == pytest.approx(critical_gain("tanh", bias_variance), rel=0.02)


def test_random_relu_networks_have_chi_1():
    _, dz, _ = random_networks("relu", 1.0, 0.0)
    assert np.exp(1 / rate_of_decay(dz)) == pytest.approx(MeanField("relu", 1.0).chi_1, rel=0.05)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_initializer_has_its_weight_variance(name):
    n = 300
    W = INITIALIZERS[name](np.random.default_rng(0), n, n, 1.7)
    assert n * W.var() == pytest.approx(weight_variance(name, 1.7), rel=5 * np.sqrt(2 / W.size))


# Learning rates.


def standardised(load):
    x, y = load(return_X_y=True)
    deviation = x.std(axis=0)
    return ((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).T, y


@pytest.mark.parametrize(
    ("load", "shape", "curvature", "rate", "sharpness"),
    [
        (load_iris, (4, 150), 2.918498, 0.685284, 0.972833),
        (load_digits, (64, 1797), 7.340689, 0.272454, 0.734069),
        (load_diabetes, (10, 442), 4.024211, 0.496992, None),
    ],
)
def test_data_sets_have_the_published_rates(load, shape, curvature, rate, sharpness):
    x, y = standardised(load)
    assert x.shape == shape
    assert largest_curvature(x) == pytest.approx(curvature, abs=6e-7)
    assert largest_stable_rate(x) == pytest.approx(rate, abs=6e-7)
    if sharpness:
        assert softmax_sharpness(x, len(np.unique(y))) == pytest.approx(sharpness, abs=6e-7)


@pytest.mark.parametrize(("factor", "epochs"), [(0.999, 20000), (1.001, 4000)])
def test_gradient_descent_diverges_just_above_the_limit_alone(factor, epochs):
    x, y = standardised(load_diabetes)
    y = (y - y.mean()) / y.std()
    network = Network.create([10, 1], initializer="zeros", rng=np.random.default_rng(0))
    optimizer = GradientDescent(factor * largest_stable_rate(x))
    loss = train(network, x, y, loss=losses.half_mean_squared_error, optimizer=optimizer, epochs=epochs, evaluations=0).loss
    if factor < 1:
        assert loss.max() == loss[0]
        # The least squares' own loss.
        residual = y - x.T @ np.linalg.lstsq(x.T, y)[0]
        assert loss[-1] == pytest.approx((residual**2).mean() / 2, rel=1e-6)
    else:
        # Published: it passes 1e6 at update 3926.
        assert np.argmax(loss > 1e6) == 3926


def test_softmax_sharpness_is_the_hessians_largest_eigenvalue():
    x, y = standardised(load_iris)
    X = np.vstack([x, np.ones(150)])
    hessian = jax.hessian(lambda w: oracle.softmax_cross_entropy(w.reshape(3, 5) @ X, jnp.asarray(y)))(jnp.zeros(15))
    assert softmax_sharpness(x, 3) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-12)


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanField("foo", 1.0), "activation 'foo' is unknown, allowed: identity, sigmoid, tanh, relu, "),
        (lambda: MeanField("tanh", 0.0), "weight_variance is 0.0, it must be finite and above 0"),
        (lambda: MeanField("tanh", np.inf), "weight_variance is inf, it must be finite and above 0"),
        (lambda: MeanField("tanh", 1.0, -0.1), "bias_variance is -0.1, it must be finite and at least 0"),
        (lambda: MeanField("tanh", 1.0).variance_map(-1.0), "q is -1.0, it must be finite and at least 0"),
        (lambda: MeanField("tanh", 1.0).correlation_map(1.1), "c is 1.1, it must be from -1 to 1"),
        (lambda: MeanField("tanh", 1.0).correlation_map(np.nan), "c is nan, it must be from -1 to 1"),
        (lambda: weight_variance("foo"), "initializer 'foo' is unknown, allowed: zeros, normal, "),
        (lambda: weight_variance("he", -1.0), "gain is -1.0, it must be finite and at least 0"),
        (lambda: critical_gain("foo"), "activation 'foo' is unknown, allowed: "),
        (lambda: critical_gain("tanh", -0.1), "bias_variance is -0.1, it must be finite and at least 0"),
        (lambda: critical_gain("gelu"), "'gelu' with bias_variance 0.0 has chi_1 = 1 at no sigma_w\\^2 from 0.01 to 1000"),
        (lambda: critical_gain("relu", 0.5, (0.1, 1.9)), "'relu' with bias_variance 0.5 has chi_1 = 1 at no .* from 0.1 to 1.9"),
        (lambda: critical_gain("relu", search=(0.0, 2.0)), "search is \\[0. 2.\\], it must be finite and above 0"),
        (lambda: largest_stable_rate(np.ones(3)), "x has shape \\(3,\\), it must be \\(n_x, m\\)"),
        (lambda: largest_stable_rate(np.ones((3, 0))), "x has shape \\(3, 0\\), it must be \\(n_x, m\\)"),
        (lambda: largest_stable_rate(np.array([[1, np.nan]])), "x of shape \\(1, 2\\) must be finite, it has nan at \\(0, 1\\)"),
        (lambda: softmax_sharpness(np.ones((3, 2)), 1), "classes is 1, it must be a whole number of at least 2"),
    ],
)
def test_what_has_no_theory_is_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sw2", [0.1, 1.0, 20.0])
def test_standardised_inputs_make_relu_s_gradients_grow_at_any_gain(sw2):
    # pi / (pi - 1): Yang et al. 2019. A linear network keeps them.
    assert MeanField("relu", sw2).normalized_chi_1 == pytest.approx(np.pi / (np.pi - 1), rel=1e-12)
    assert MeanField("identity", sw2).normalized_chi_1 == pytest.approx(1, rel=1e-12)


def test_the_spread_of_a_jacobian_is_0_of_linear_1_of_relu_and_small_of_small_tanh_blocks():
    assert MeanField("identity", 1.0).jacobian_spread == pytest.approx(0, abs=1e-12)
    assert MeanField("relu", 2.0).jacobian_spread == pytest.approx(1, rel=1e-12)
    # g'^2 is 1 - 2 u^2 + O(u^4), whose variance is 8 q^2.
    field = MeanField("tanh", critical_gain("tanh", 1e-9), 1e-9)
    assert field.jacobian_spread == pytest.approx(8 * field.fixed_point**2, rel=0.1)
