"""When a lane counts as diverged, at which step and in which block: chains of one unit a block, worked out by hand.

z_l = W_l z_{l-1} + b_l with the identity, b = 0, one example x and the target 0: J = z_L^2 / 2, dJ/dz_L = z_L. In float32,
whose numbers end at 3.4e38.
"""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning

from blocks import OPTIMIZERS, GradientDescent, Instrument, Network, losses, train
from blocks.arrays import Array
from blocks.estimators import NetworkClassifier

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


def test_every_lane_has_its_own_bound():
    # z = 3 in all: J = 4.5.
    history = fit(chains(*[[1, 1, 1, 3]] * 4), loss_bound=np.array([4.4, np.inf, 4.5, 1.0]))
    assert history.diverged_step.tolist() == [0, -1, -1, 0]
    assert history.diverged_block.tolist() == [0, -1, -1, 0]


@pytest.mark.parametrize("bound", [0.0, np.nan, [1.0, 0.0], [1.0, 1.0, 1.0]])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match=r"loss_bound is .*, it must be above 0, a number or one a lane"):
        fit(chains(ONE, ONE), loss_bound=np.array(bound))


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


# What the last update led to: no step comes after it.


@pytest.mark.parametrize("evaluations", [0, 2, 10])
@pytest.mark.parametrize(
    ("weights", "rate", "block"),
    [
        pytest.param([1e5, 1, 1, 1], 1e35, 1, id="the update overflows"),
        pytest.param(ONE, 1e15, 3, id="weights whose product overflows"),
        # All are -1e5 then: z_4 = 2e20 and some, and its square is above 3.4e38.
        pytest.param(ONE, 1e5, 0, id="every z is finite, its square in the loss is not"),
        # W = -2, b = -3: z is -5, 7, -17, 31, and J = 480.5.
        pytest.param(ONE, 3, 0, id="the loss is above its bound"),
        pytest.param(ONE, 0.1, -1, id="it trains"),
    ],
)
def test_what_the_last_update_led_to_is_judged(weights, rate, block, evaluations):
    common = {"epochs": 1, "evaluations": evaluations, "loss_bound": 480.0}
    if block != 0 or rate > 3:
        common["loss_bound"] = np.inf
    network = chains(weights, ONE)
    history = fit(network, rate=np.array([rate, 1e-30]), **common)
    assert history.diverged_step.tolist() == [-1 if block < 0 else 1, -1]
    assert history.diverged_block.tolist() == [block, -1]
    alone = Network(network.layout.sizes, "identity", chains(weights).parameters[0])
    lone = fit(alone, rate=rate, **common)
    assert (int(lone.diverged_step), int(lone.diverged_block)) == (int(history.diverged_step[0]), block)
    assert alone.parameters.tobytes() == network.parameters[0].tobytes()
    if evaluations:
        assert np.isnan(lone.final("loss/train")) == (block >= 0)
    if evaluations and rate == 3:
        # What was measured stays, as a step's loss does.
        assert lone.measures["loss/train"][-1] == 480.5


def test_weights_that_are_not_finite_behind_a_loss_that_is_have_diverged():
    # W_1 (1 - alpha lambda) = -1e40, of which tanh is -1; W_2 stays small.
    network = Network([1, 1, 1], "tanh", np.array([1e30, 0, 1e-20, 0], np.float32))
    history = fit(network, optimizer=GradientDescent(1.0, weight_decay=1e10), epochs=1)
    assert np.isfinite(history.measures["loss/train"]).all()
    assert (int(history.diverged_step), int(history.diverged_block)) == (1, 1)


def test_the_loss_of_the_validation_data_judges_nothing():
    history = fit(chains(ONE), epochs=2, validation=(np.array([[1e30]]), np.array([[0.0]])), loss_bound=10.0)
    assert history.measures["loss/validation"].tolist() == [[np.inf, np.inf, np.inf]]
    assert history.diverged_step.tolist() == [-1]


def test_an_estimator_warns_of_what_its_last_update_led_to():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 3)), rng.integers(0, 2, 40)
    model = NetworkClassifier(depth=2, width=4, optimizer="gradient_descent", learning_rate=1e300, epochs=1, batch_size=40)
    with pytest.warns(ConvergenceWarning, match="training diverged at step 1 in "):
        model.fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize("rate", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_nan_is_the_quiet_one(tmp_path, seed, rate):
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).T
    network = Network.create([30, 38, 38, 38, 2], "gelu", "he", rng=np.random.default_rng(seed))
    common = {
        "loss": losses.softmax_cross_entropy,
        "epochs": 6,
        "batch_size": 64,
        "instruments": [Instrument("update_ratio", "1")],
    }
    stack = network.with_parameters(np.stack([network.parameters] * 2))
    history = train(stack, x, y, optimizer=GradientDescent(np.array([rate, 0.1])), **common).lane(0)
    alone = train(network, x, y, optimizer=GradientDescent(rate), **common)
    for name, each in {"stack": history, "alone": alone}.items():
        each.save(tmp_path / name)
    stacked, lone = ((tmp_path / f"{name}.npz").read_bytes() for name in ("stack", "alone"))
    assert stacked == lone
    assert stack.parameters[0].tobytes() == network.parameters.tobytes()
    with np.load(tmp_path / "alone.npz") as arrays:
        values = [array for array in arrays.values() if array.dtype == np.float64]
    assert np.isnan(values[0]).any()
    for array in values:
        assert (array[np.isnan(array)].view("u8") == 0x7FF8000000000000).all()
