"""The hidden blocks' Jacobian beside automatic differentiation's."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from blocks import KINDS, Network
from blocks.measure.jacobian import jacobian, singular_values
from tests.blocks import oracle
from tests.blocks.reference import random_network

SIZES = {"residual": (4, 6, 6, 6, 3)}


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "batch_normalized"])
def test_it_is_jaxs_of_every_example_and_lane(kind, activation):
    rng = np.random.default_rng(0)
    network = random_network(SIZES.get(kind, (4, 6, 7, 5, 3)), activation, (2,), rng, kind=kind)
    x = rng.standard_normal((4, 3))
    J = jacobian(network, x)
    a_1 = network.forward(x)[1][0].a

    def last(a, parameters):
        for W, b in parameters[1:-1]:
            if kind == "residual":
                a = oracle.residual(W, b, a, activation, 1 / np.sqrt(4))
            elif kind == "normalized":
                a = oracle.normalized(W, b, a, activation)
            else:
                a = oracle.ACTIVATIONS[activation](W @ a + b)
        return a[:, 0]

    by_jax = jax.jit(jax.jacobian(last))
    for lane in range(2):
        parameters = oracle.parameters_of(network, (lane,))
        for example in range(3):
            expected = by_jax(a_1[lane, :, example : example + 1], parameters)[..., 0]
            assert_allclose(J[lane, example], expected, rtol=1e-10, atol=1e-13)
    expected = np.linalg.svd(J, compute_uv=False).mean(axis=1)
    assert_allclose(singular_values(network, x), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_lane_has_the_bits_of_the_network_alone(dtype):
    network = Network.create([4, 16, 9, 16, 3], "relu", rng=np.random.default_rng(0), lanes=3, dtype=dtype)
    network.parameters[2] = np.inf
    x = np.random.default_rng(1).standard_normal((4, 5))
    together = singular_values(network, x)
    assert np.isnan(together[2]).all()
    for lane in range(2):
        assert singular_values(network.with_parameters(network.parameters[lane]), x).tobytes() == together[lane].tobytes()


def test_a_network_that_has_none_is_named():
    network = Network.create([4, 5, 5, 3], rng=np.random.default_rng(0), kind="batch_normalized")
    with pytest.raises(ValueError, match="jacobian is of single examples, but kind 'batch_normalized' mixes those of a batch"):
        jacobian(network, np.ones((4, 2)))
    with pytest.raises(ValueError, match="jacobian is of hidden blocks, the network has none"):
        jacobian(Network.create([4, 3], rng=np.random.default_rng(0)), np.ones((4, 2)))
