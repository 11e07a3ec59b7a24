import jax
import numpy as np
import pytest

from blocks import ACTIVATIONS, KINDS, LOSSES, Activation, Block, Network, check_block, check_network
from blocks.residual import Residual
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


# Kinks: a difference across one is between two derivatives, whatever backward gives.

KINKED = ["relu", "leaky_relu"]
KINK = r"the kink of (leaky_)?relu at 0 lies within the step of {}: there is no derivative to compare with"


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_the_kinks_are_where_jaxs_derivative_jumps(activation):
    slope = jax.vmap(jax.grad(oracle.ACTIVATIONS[activation]))
    at = np.linspace(-4, 4, 801)
    jumps = np.abs(slope(at + 1e-9) - slope(at - 1e-9)) > 1e-3
    np.testing.assert_allclose(at[jumps], ACTIVATIONS[activation].kinks, atol=1e-12)


@pytest.mark.parametrize("activation", KINKED)
@pytest.mark.parametrize(
    ("example", "b", "place"),
    [
        ([0.0, 0.0], 0.0, r"da_prev\[0, 0\]"),
        # W_00 = 2 takes z = 3e-7 across, however da_prev is found.
        ([1.0, -2.0], 3e-7, r"da_prev\[0, 0\]"),
        # da_prev moves z by 2e-6 at most, and z is 1e-5; W by the example's 30.
        ([30.0, -60.0], 1e-5, r"dW\[0, 0\]"),
    ],
)
def test_a_kink_within_the_step_is_said(activation, example, b, place):
    block = Block(np.array([[2.0, 1.0], [1.0, 0.5]]), np.array([[b], [1.0]]), activation)
    before = block.joined.copy()
    with pytest.raises(ValueError, match=KINK.format(place)):
        check_block(block, np.array(example)[:, None], np.random.default_rng(0))
    assert np.array_equal(block.joined, before)


def test_a_kink_of_what_a_residual_block_is_given_is_said():
    block = Residual(np.eye(2), np.ones((2, 1)), "relu")
    with pytest.raises(ValueError, match=KINK.format(r"da_prev\[1, 0\]")):
        check_block(block, np.array([[1.0], [0.0]]), np.random.default_rng(0))
    # Its z has no kink: z = 1 - 1 = 0 there.
    errors = check_block(Residual(-np.eye(2), np.ones((2, 1)), "relu"), np.ones((2, 1)), np.random.default_rng(0))
    assert max(errors.values()) < 1e-7


@pytest.mark.parametrize("activation", KINKED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kink_within_a_networks_step_is_said(activation, kind):
    network = Network.create([3, 4, 4, 2], activation, "he", rng=np.random.default_rng(0), kind=kind)
    x, y = np.ones((3, 2)), np.array([0, 1])
    x[:, 1] = 0
    with pytest.raises(ValueError, match=KINK.format("the parameters")):
        check_network(network, LOSSES["softmax_cross_entropy"], x, y, np.random.default_rng(0))


@pytest.mark.parametrize("activation", sorted(set(ACTIVATION_NAMES) - set(KINKED)))
def test_a_smooth_activation_has_no_kink_at_zero(activation):
    block = Block(np.ones((2, 2)), np.zeros((2, 1)), activation)
    assert max(check_block(block, np.zeros((2, 3)), np.random.default_rng(0)).values()) < 1e-5


def test_a_wrong_gradient_beside_a_kink_is_no_kink(monkeypatch):
    # z = 2e-5 and -2e-5: near the kink, and none within the step.
    break_derivative(monkeypatch, "relu", MISTAKES["its sign"])
    block = Block(np.array([[1.0], [-1.0]]), np.zeros((2, 1)), "relu")
    assert min(check_block(block, np.array([[2e-5]]), np.random.default_rng(0)).values()) > 0.1


def test_float32_is_refused():
    block, a_prev = some_block("tanh")
    single = Block(block.W.astype(np.float32), block.b.astype(np.float32), "tanh")
    with pytest.raises(ValueError, match="dtype is float32, central differences need float64"):
        check_block(single, a_prev, np.random.default_rng(0))
    network = Network.create([3, 2], rng=np.random.default_rng(0), dtype=np.float32)
    with pytest.raises(ValueError, match="dtype is float32, central differences need float64"):
        check_network(network, LOSSES["softmax_cross_entropy"], a_prev, np.zeros(5, int), np.random.default_rng(0))


@pytest.mark.parametrize("step", [0, -1e-6, np.nan, np.inf])
def test_a_step_that_is_none_is_refused(step):
    block, a_prev = some_block("tanh")
    with pytest.raises(ValueError, match=r"step is .*, it must be finite and above 0"):
        check_block(block, a_prev, np.random.default_rng(0), step)
    network = Network.create([3, 2], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"step is .*, it must be finite and above 0"):
        check_network(network, LOSSES["softmax_cross_entropy"], a_prev, np.zeros(5, int), np.random.default_rng(0), step)


@pytest.mark.parametrize("dtype", [np.float32, int])
def test_data_of_another_type_are_moved_in_float64(dtype):
    block, a_prev = some_block("tanh")
    assert max(check_block(block, (3 * a_prev).astype(dtype), np.random.default_rng(2)).values()) < 1e-7
