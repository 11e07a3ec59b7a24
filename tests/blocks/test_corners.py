"""Corners of the engine: what overflows late, what a watcher sees, and errors that name their argument."""

import numpy as np
import pytest

from blocks import LOSSES, GradientDescent, Network, losses, train

SIZES = [4, 6, 3]


def data(m=10):
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, m)), rng.integers(0, 3, m)


def fit(rate=0.1, lanes=None, x=None, y=None, **options):
    own_x, own_y = data()
    network = Network.create(SIZES, "tanh", rng=np.random.default_rng(1), lanes=lanes)
    x, y = own_x if x is None else x, own_y if y is None else y
    common = {"loss": losses.softmax_cross_entropy, "optimizer": GradientDescent(rate), "epochs": 3}
    return train(network, x, y, **{**common, **options})


def chain(activation, weights, x, epochs):
    sizes = [1] * (len(weights) + 1)
    network = Network.create(sizes, activation, "zeros", rng=np.random.default_rng(0), dtype=np.float32)
    for block, W in zip(network.blocks, weights, strict=True):
        block.W[...] = W
    x, y = np.array([[x]]), np.array([[0.0]])
    optimizer = GradientDescent(1e-3)
    return train(network, x, y, loss=losses.half_mean_squared_error, optimizer=optimizer, epochs=epochs), network


def test_a_gradient_that_overflows_at_the_last_step_has_diverged_there():
    history, _ = chain("identity", [1e-35, 1e30], 1e10, epochs=1)
    assert np.isinf(history.grad_norm[0, 0])
    assert (int(history.diverged_step), int(history.diverged_block)) == (0, 1)


def test_a_gradient_that_overflows_has_diverged_although_a_saturated_unit_hides_it():
    history, network = chain("sigmoid", [1e-38, 100.0], 3e38, epochs=4)
    assert np.isinf(history.grad_norm[0, 0])
    # It left before the update that would have made its weights infinite.
    assert np.isfinite(network.parameters).all()
    assert (int(history.diverged_step), int(history.diverged_block)) == (0, 1)


def test_the_history_watched_after_all_diverged_within_an_epoch_has_epoch_losses():
    x, y = data()
    network = Network.create(SIZES, "relu", rng=np.random.default_rng(1))
    watch = lambda step, history: history().epoch_loss()  # noqa: E731
    common = {"loss": losses.softmax_cross_entropy, "optimizer": GradientDescent(1e200), "epochs": 3}
    train(network, x, y, batch_size=2, watch=watch, **common)


def test_a_watched_history_is_of_its_moment():
    seen = []
    fit(watch=lambda step, history: seen.append(history()))
    assert np.isnan(seen[0].measures["loss/train"][-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: GradientDescent(-1), "learning_rate is -1, it must be finite and above 0", id="whole number"),
        pytest.param(lambda: fit(batch_size=np.nan), "batch_size is nan", id="batch_size nan"),
        pytest.param(lambda: fit(x=np.ones((1, 4, 10))), r"x has shape \(1, 4, 10\)", id="x with lanes"),
        pytest.param(lambda: fit(y=3), "y has shape", id="y without an axis"),
        pytest.param(lambda: fit(y=np.zeros(9, int)), r"y has shape \(9,\)", id="y's own shape"),
        pytest.param(lambda: fit(np.ones(3)), "learning_rate", id="hyperparameters for lanes there are not"),
        pytest.param(lambda: fit(np.ones(3), lanes=6), "learning_rate", id="hyperparameters for half the lanes"),
        pytest.param(lambda: fit(orders=iter([np.arange(10) + 5] * 3)), "order", id="an order past the data"),
        pytest.param(lambda: fit(orders=iter([np.arange(10) - 5] * 3)), "order", id="an order before the data"),
        pytest.param(lambda: fit(orders=iter([np.arange(9)] * 3)), "order", id="an order too short"),
        pytest.param(lambda: fit(orders=iter([np.arange(10)])), "order", id="too few orders"),
        pytest.param(lambda: Network.create(SIZES, rng=np.random.default_rng(0), lanes=0), "lanes is 0", id="no lanes"),
        pytest.param(lambda: Network.create([3, np.nan], rng=np.random.default_rng(0)), "sizes is", id="sizes nan"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_whole_numbers_may_be_floats():
    assert fit(batch_size=2.0, epochs=2.0).loss.shape == (10,)


@pytest.mark.parametrize("loss", LOSSES)
def test_integer_logits_are_refused(loss):
    with pytest.raises(ValueError, match="logits has dtype int64, it must be floating"):
        LOSSES[loss](np.array([[1, -2, 3]]), np.array([0, 0, 0]))


def test_softmax_of_logits_further_apart_than_the_largest_float_is_not_nan():
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isnan(losses.softmax_cross_entropy(np.array([[3e38], [-3e38]], np.float32), np.array([0]))[0])
