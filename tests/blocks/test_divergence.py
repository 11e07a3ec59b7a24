"""When a lane counts as diverged, at which step and in which block: chains of one unit a block, worked out by hand.

z_l = W_l z_{l-1} + b_l with the identity, b = 0, one example x and the target 0: J = z_L^2 / 2, dJ/dz_L = z_L. In float32,
whose numbers end at 3.4e38.
"""

import numpy as np
import pytest

from blocks import OPTIMIZERS, GradientDescent, Network, losses, train
from blocks.arrays import Array

ONE = [1.0, 1.0, 1.0, 1.0]


def chains(*weights):
    """A stack with one lane for every list of weights."""
    network = Network.create([1] * (len(weights[0]) + 1), "identity", "zeros", rng=np.random.default_rng(0), dtype=np.float32)
    stack = Network(network.layout.sizes, "identity", np.zeros((len(weights), network.layout.size), np.float32))
    for block, values in zip(stack.blocks, np.array(weights).T, strict=True):
        block.W[:, 0, 0] = values
    return stack


def fit(network, x=1.0, rate: float | Array = 1e-3, epochs=4, **options):
    data = np.array([[x]]), np.array([[0.0]])
    common = {"loss": losses.half_mean_squared_error, "optimizer": GradientDescent(rate), "epochs": epochs}
    return train(network, *data, **{**common, **options})


@pytest.mark.parametrize(
    ("weights", "x", "rate", "step", "block"),
    [
        pytest.param([1e10, 1e30, 1, 1], 1, 1e-3, 0, 2, id="z of block 2 overflows, and with it every one behind"),
        pytest.param([1, 1, 1e10, 1e30], 1, 1e-3, 0, 4, id="z of the last block overflows"),
        pytest.param([1e10, 1e10, 1e10, 1e10], 1, 1e-3, 0, 4, id="z grows by 1e10 a block"),
        pytest.param([1, 1, 1, 1e30], 1, 1e-3, 0, 0, id="every z is finite, its square in the loss is not"),
        # dJ/dz_4 = 1e5: W_4 carries it to 1e43 in block 3, and from there down nothing is finite.
        pytest.param([1, 1, 1e-33, 1e38], 1, 1e-3, 0, 3, id="the gradient overflows in block 3 and then below"),
        # dW_1 = dz_1 x = 1e35 * 1e10, while dz_1 and so db_1 are finite.
        pytest.param([1e-35, 1, 1, 1e30], 1e10, 1e-3, 0, 1, id="the gradient overflows in block 1 alone"),
        # z_4 = 1e5, dW_1 = 1e5: alpha dW_1 = 1e40.
        pytest.param([1e5, 1, 1, 1], 1, 1e35, 1, 1, id="the first update overflows"),
        # z_4 = 1, all gradients 1: after one update all are -1e15, and z_3 = 1e45.
        pytest.param(ONE, 1, 1e15, 1, 3, id="the first update leads to weights whose product overflows"),
    ],
)
def test_divergence_is_noted_at_its_first_step_and_block(weights, x, rate, step, block):
    history = fit(chains(weights, ONE), x, np.array([rate, 1e-30]))
    assert history.diverged_step.tolist() == [step, -1]
    assert history.diverged_block.tolist() == [block, -1]


def test_a_loss_above_its_bound_is_kept_and_the_lane_stays_where_it_stands():
    network = chains([1, 1, 1, 3], ONE)
    before = network.parameters[0].copy()
    history = fit(network, loss_bound=4.0)
    assert history.loss[0, 0] == 4.5
    assert np.isnan(history.loss[0, 1:]).all()
    assert np.isnan(history.grad_norm[0]).all()
    np.testing.assert_array_equal(network.parameters[0], before)
    assert (history.diverged_step.tolist(), history.diverged_block.tolist()) == ([0, -1], [0, -1])


def test_a_loss_on_its_bound_has_not_diverged():
    assert fit(chains([1, 1, 1, 3]), loss_bound=4.5).diverged_step.tolist() == [-1]


def test_after_divergence_everything_of_that_lane_is_nan_and_the_others_go_on():
    history = fit(chains([1e10, 1e30, 1, 1], ONE), epochs=4, evaluations=5)
    assert not np.isfinite(history.loss[0]).any()
    assert np.isnan(history.loss[0, 1:]).all()
    assert np.isnan(history.measures["loss/train"][0, 1:]).all()
    for values in (history.loss[1], history.grad_norm[1], history.measures["loss/train"][1]):
        assert np.isfinite(values).all()


def test_training_ends_in_good_order_where_every_lane_has_diverged():
    steps = []
    network = chains([1e10, 1e30, 1, 1], [1e5, 1, 1, 1])
    history = fit(network, rate=np.array([1e-3, 1e35]), epochs=6, watch=lambda step, _: steps.append(step))
    assert history.diverged_step.tolist() == [0, 1]
    assert history.loss.shape == (2, 6)
    assert np.isnan(history.loss[:, 2:]).all()
    assert steps[-1] == max(steps) == 2


def test_one_network_diverges_like_a_lane():
    stack = chains([1e10, 1e30, 1, 1])
    alone = Network(stack.layout.sizes, "identity", stack.parameters[0].copy())
    history = fit(alone)
    assert (history.diverged_step.shape, int(history.diverged_step), int(history.diverged_block)) == ((), 0, 2)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_lanes_that_leave_at_different_steps_each_keep_their_own_place(rule):
    """Of five lanes the odd ones leave, one after the other; every lane is told by its weights."""
    weights = [[1, 1, 1, 0.25 * k] for k in range(1, 6)]
    weights[1], weights[3] = [1e10, 1e30, 1, 1], [1, 1, 1, 1e15]
    rates = np.array([1e-5, 1e-5, 2e-5, 1e30, 3e-5])
    network = chains(*weights)
    history = fit(network, rate=rates, optimizer=OPTIMIZERS[rule](rates), epochs=8)
    assert (history.diverged_step >= 0).tolist() == [False, True, False, True, False]
    assert history.diverged_step[1] < history.diverged_step[3]
    for lane in (0, 2, 4):
        # z_4 = W_4 at first, and small rates have not moved it far.
        assert history.loss[lane] == pytest.approx(weights[lane][3] ** 2 / 2, rel=0.05)
        assert network.blocks[3].W[lane] == pytest.approx(weights[lane][3], rel=0.05)
