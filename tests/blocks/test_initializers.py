import os
import subprocess
import sys

import numpy as np
import pytest

from blocks.initializers import INITIALIZERS, _orthonormal, initialize
from blocks.network import Network
from blocks.parameters import Layout, split

# Variance of W_ij from n inputs to k units at gain 1, as the papers state it; and whether the law is uniform.
VARIANCES = {
    "normal": (lambda n, k: 1 / n, False),
    "lecun": (lambda n, k: 1 / n, False),
    "glorot": (lambda n, k: 2 / (n + k), False),
    "glorot_uniform": (lambda n, k: 2 / (n + k), True),
    "he": (lambda n, k: 2 / n, False),
    "he_uniform": (lambda n, k: 2 / n, True),
}


def drawn(name, n, k, gain=1.0, bias_variance=0.0, seed=0):
    layout = Layout([n, k])
    return split(layout.blocks(initialize(layout, name, np.random.default_rng(seed), gain, bias_variance))[0])


@pytest.mark.parametrize("gain", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", VARIANCES)
def test_weights_follow_the_published_law(name, gain):
    n, k = 300, 200
    W, b = drawn(name, n, k, gain)
    variance, uniform = VARIANCES[name]
    expected = gain * variance(n, k)
    # The sample variance of N draws has relative standard error sqrt(2 / N) at most: 5 of them.
    assert W.var() == pytest.approx(expected, rel=5 * np.sqrt(2 / W.size))
    assert abs(W.mean()) < 5 * np.sqrt(expected / W.size)
    bound = np.sqrt(3 * expected)
    assert (np.abs(W).max() <= bound) == uniform
    assert (b == 0).all()


@pytest.mark.parametrize(("n", "k"), [(6, 6), (3, 8), (8, 3)])
def test_orthogonal_has_orthonormal_rows_or_columns_times_the_gain(n, k):
    W, _ = drawn("orthogonal", n, k, gain=2.0)
    product = W @ W.T if k <= n else W.T @ W
    np.testing.assert_allclose(product, 2 * np.eye(min(n, k)), atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 6), (6, 1), (64, 64), (64, 10), (10, 64), (200, 200)])
def test_orthogonal_weights_are_lapack_s_with_the_signs_of_a_positive_diagonal(n, k):
    W, _ = drawn("orthogonal", n, k, gain=2.0, seed=3)
    tall = np.random.default_rng(3).normal(size=(max(n, k), min(n, k)))
    Q, R = np.linalg.qr(tall)
    Q = np.sqrt(2) * Q * np.sign(np.diag(R))
    np.testing.assert_allclose(W, Q if k >= n else Q.T, rtol=0, atol=1e-12)


def test_orthogonal_weights_of_a_matrix_that_is_nearly_singular_are_orthogonal():
    """Of columns that are alike but for 1e-9, Gram-Schmidt once gives rows that are 1e-7 off."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=20) + 1e-9 * rng.normal(size=(5, 20))
    Q = _orthonormal(rows)
    np.testing.assert_allclose(Q @ Q.T, np.eye(5), rtol=0, atol=1e-14)


ORTHOGONAL = """
import hashlib, numpy as np
from blocks.initializers import orthogonal
weights = [orthogonal(np.random.default_rng(n), n, k, 2.0) for n, k in ((64, 64), (3, 8), (100, 37), (129, 129), (10, 64))]
print(hashlib.sha256(b"".join(W.tobytes() for W in weights)).hexdigest())
"""


def test_orthogonal_weights_have_the_same_bits_whatever_code_the_processor_runs():
    machines = [
        {"OPENBLAS_CORETYPE": "Haswell"},
        {"OPENBLAS_CORETYPE": "SandyBridge"},
        {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"},
    ]
    command = [sys.executable, "-c", ORTHOGONAL]
    bits = {subprocess.run(command, env=os.environ | environ, capture_output=True, check=True).stdout for environ in machines}
    assert len(bits) == 1


def test_zeros_and_gain_zero_are_zero():
    assert (drawn("zeros", 4, 5)[0] == 0).all()
    assert all((drawn(name, 4, 5, gain=0.0)[0] == 0).all() for name in INITIALIZERS)


def test_biases_have_the_variance_asked_for():
    _, b = drawn("normal", 2, 20000, bias_variance=0.05)
    assert b.var() == pytest.approx(0.05, rel=5 * np.sqrt(2 / b.size))


def test_a_lane_has_the_bits_of_the_network_created_with_its_own_generator():
    stack = Network.create([5, 4, 3], rng=np.random.default_rng(9), bias_variance=0.1, lanes=3)
    for lane, rng in enumerate(np.random.default_rng(9).spawn(3)):
        alone = Network.create([5, 4, 3], rng=rng, bias_variance=0.1)
        np.testing.assert_array_equal(stack.parameters[lane], alone.parameters)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_lanes_are_spawned_under_every_law(name):
    stack = Network.create([5, 4, 4, 3], "tanh", name, rng=np.random.default_rng(9), gain=1.7, lanes=2, dtype=np.float32)
    assert stack.parameters.dtype == np.float32
    for lane, rng in enumerate(np.random.default_rng(9).spawn(2)):
        alone = Network.create([5, 4, 4, 3], "tanh", name, rng=rng, gain=1.7, dtype=np.float32)
        np.testing.assert_array_equal(stack.parameters[lane], alone.parameters)
    assert name == "zeros" or not np.array_equal(stack.parameters[0], stack.parameters[1])


def test_orthogonal_matrices_are_drawn_uniformly():
    """A 1 x 1 orthogonal matrix is 1 or -1, each half of the time: 400 draws have a mean of standard error 1 / 20."""
    rng = np.random.default_rng(0)
    draws = np.array([INITIALIZERS["orthogonal"](rng, 1, 1, 1.0).item() for _ in range(400)])
    np.testing.assert_allclose(np.abs(draws), 1, rtol=1e-15)
    assert abs(draws.mean()) < 5 / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initializer": "foo"}, "initializer 'foo' is unknown, allowed: zeros, normal, lecun, glorot, glorot_uniform, he, "),
        ({"gain": -0.5}, "gain is -0.5, it must be finite and at least 0"),
        ({"gain": np.inf}, "gain is inf, it must be finite and at least 0"),
        ({"bias_variance": -0.5}, "bias_variance is -0.5, it must be finite and at least 0"),
        ({"bias_variance": np.nan}, "bias_variance is nan, it must be finite and at least 0"),
        ({"dtype": "int32"}, "dtype is int32, it must be float32 or float64"),
    ],
)
def test_what_cannot_be_drawn_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Network.create([5, 4, 3], rng=np.random.default_rng(0), **options)
