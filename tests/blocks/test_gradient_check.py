import numpy as np
import pytest

from blocks import ACTIVATIONS, LOSSES, Activation, Block, check_block, check_network
from tests.blocks import oracle
from tests.blocks.reference import ACTIVATION_NAMES, LOSS_NAMES, random_network, sizes_for

CURVED = [name for name in ACTIVATION_NAMES if name != "identity"]

# Each takes g' as it is and makes it wrong.
MISTAKES = {
    "its sign": lambda slope: -slope,
    "a hundredth": lambda slope: 1.01 * slope,
    "a constant": lambda slope: np.ones_like(slope),
}


def some_block(activation, n=4, n_prev=3):
    rng = np.random.default_rng(1)
    return Block(rng.standard_normal((n, n_prev)), rng.standard_normal((n, 1)), activation), rng.standard_normal((n_prev, 5))


def break_derivative(monkeypatch, name, mistake):
    g, slope = ACTIVATIONS[name].function, ACTIVATIONS[name].derivative

    def wrong(z, a, out=None):
        values = mistake(slope(z, a))
        if out is not None:
            out[...] = values
        return values if out is None else out

    monkeypatch.setitem(ACTIVATIONS, name, Activation(name, g, wrong))


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (1, 6), (6, 1)])
def test_every_block_agrees_with_central_differences(activation, shape):
    block, a_prev = some_block(activation, *shape)
    errors = check_block(block, a_prev, np.random.default_rng(2))
    assert list(errors) == ["da_prev", "dW", "db"]
    assert max(errors.values()) < 1e-7


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("activation", CURVED)
def test_a_wrong_derivative_is_seen_in_a_block(monkeypatch, activation, mistake):
    break_derivative(monkeypatch, activation, MISTAKES[mistake])
    block, a_prev = some_block(activation)
    assert min(check_block(block, a_prev, np.random.default_rng(2)).values()) > 1e-4


def test_the_block_and_the_data_are_put_back():
    block, a_prev = some_block("tanh")
    W, b, data = block.W.copy(), block.b.copy(), a_prev.copy()
    check_block(block, a_prev, np.random.default_rng(2))
    assert (np.array_equal(block.W, W), np.array_equal(block.b, b), np.array_equal(a_prev, data)) == (True, True, True)


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 4, 2), (2, 4, 4, 4, 4, 4, 4, 3)])
def test_every_network_agrees_with_central_differences(activation, loss, sizes):
    rng = np.random.default_rng(3)
    sizes = sizes_for(loss, sizes)
    network = random_network(sizes, activation, (), rng)
    x, y = rng.standard_normal((sizes[0], 6)), oracle.targets_for(loss, rng, sizes[-1], 6)
    before = network.parameters.copy()
    assert check_network(network, LOSSES[loss], x, y, rng) < 1e-6
    assert np.array_equal(network.parameters, before)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("activation", CURVED)
def test_a_wrong_derivative_is_seen_in_a_network(monkeypatch, activation, mistake):
    break_derivative(monkeypatch, activation, MISTAKES[mistake])
    rng = np.random.default_rng(4)
    network = random_network((3, 5, 4, 2), activation, (), rng)
    x, y = rng.standard_normal((3, 6)), rng.integers(0, 2, 6)
    assert check_network(network, LOSSES["softmax_cross_entropy"], x, y, rng) > 1e-5


def test_a_lost_bias_gradient_is_seen(monkeypatch):
    backward = Block.backward
    block, a_prev = some_block("tanh")
    monkeypatch.setattr(Block, "backward", lambda *arguments: (*backward(*arguments)[:2], np.zeros((4, 1))))
    errors = check_block(block, a_prev, np.random.default_rng(2))
    assert errors["db"] == 1
    assert max(errors["da_prev"], errors["dW"]) < 1e-7
