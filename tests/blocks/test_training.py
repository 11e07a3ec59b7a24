import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from blocks import OPTIMIZERS, GradientDescent, Instrument, Network, losses, reshuffled, train, workspace
from blocks.history import History, log_spaced
from tests.blocks import oracle
from tests.blocks.reference import value_and_gradients

SIZES = [4, 6, 5, 3]


def data(m=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((SIZES[0], m)), rng.integers(0, SIZES[-1], m)


def a_network(**options):
    return Network.create(SIZES, "tanh", rng=np.random.default_rng(1), **options)


def fit(network, x, y, rate=0.1, **options):
    return train(
        network, x, y, **{"loss": losses.softmax_cross_entropy, "optimizer": GradientDescent(rate), "epochs": 3, **options}
    )


def test_a_training_is_the_gradient_descent_of_jaxs_gradients():
    x, y = data()
    network = a_network()
    parameters = oracle.parameters_of(network)
    rng = np.random.default_rng(2)
    orders = [rng.permutation(10) for _ in range(3)]
    history = fit(network, x, y, batch_size=4, orders=iter(orders))
    assert history.batch_sizes.tolist() == [4, 4, 2] * 3
    by_jax, step = value_and_gradients("tanh", "softmax_cross_entropy"), 0
    for order in orders:
        for start in (0, 4, 8):
            batch = order[start : start + 4]
            value, (gradients, _) = jax.device_get(by_jax(parameters, x[:, batch], y[batch]))
            assert history.loss[step] == pytest.approx(value, rel=1e-10)
            for block, (dW, db) in enumerate(gradients):
                assert history.grad_norm[step, block] == pytest.approx(np.linalg.norm(dW), rel=1e-10)
                assert history.grad_norm_b[step, block] == pytest.approx(np.linalg.norm(db), rel=1e-10)
            parameters = [(W - 0.1 * dW, b - 0.1 * db) for (W, b), (dW, db) in zip(parameters, gradients, strict=True)]
            step += 1
    for block, (W, b) in zip(network.blocks, parameters, strict=True):
        np.testing.assert_allclose(block.W, W, rtol=1e-10)
        np.testing.assert_allclose(block.b, b, rtol=1e-10)


def test_an_epochs_loss_weighs_the_short_last_batch_by_its_size():
    x, y = data()
    history = fit(a_network(), x, y, batch_size=4, orders=reshuffled(np.random.default_rng(0), 10))
    by_hand = [(4 * a + 4 * b + 2 * c) / 10 for a, b, c in history.loss.reshape(3, 3)]
    np.testing.assert_allclose(history.epoch_loss(), by_hand, rtol=1e-14)


def test_the_whole_sets_are_measured_as_written_down_by_hand():
    x, y = data(23)
    held = data(7, seed=5)
    network = a_network()
    history = fit(network, x, y, batch_size=4, validation=held, epochs=4)
    assert history.evaluated.tolist() == [0, 6, 12, 18, 24]
    for name, (inputs, labels) in {"train": (x, y), "validation": held}.items():
        logits = np.asarray(oracle.logits_of(oracle.parameters_of(network), inputs, "tanh"))
        assert history.measures[f"loss/{name}"][-1] == pytest.approx(
            float(oracle.softmax_cross_entropy(logits, labels)), rel=1e-10
        )
        assert history.measures[f"accuracy/{name}"][-1] == np.mean(logits.argmax(axis=0) == labels)


def test_measuring_and_watching_change_no_bit():
    x, y = data()
    seen = []
    watched, plain = a_network(), a_network()
    fit(watched, x, y, epochs=20, evaluations=20, watch=lambda step, history: seen.append((step, history())))
    fit(plain, x, y, epochs=20, evaluations=0)
    assert watched.parameters.tobytes() == plain.parameters.tobytes()
    assert [step for step, _ in seen] == list(range(1, 21))
    assert [history.loss.shape[-1] for _, history in seen] == list(range(1, 21))


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_training_that_is_left_off_is_the_beginning_of_the_whole_one(rule):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 11)), rng.integers(0, 3, 11)

    def trained(**options):
        network = Network.create([4, 8, 3], rng=np.random.default_rng(1), lanes=3)
        history = train(
            network,
            x,
            y,
            loss=losses.softmax_cross_entropy,
            optimizer=OPTIMIZERS[rule](np.array([0.01, 1e300, 0.1])),
            epochs=6,
            batch_size=4,
            orders=reshuffled(np.random.default_rng(2), 11),
            schedule="cosine",
            evaluations=7,
            instruments=[Instrument("update_ratio", "2")],
            **options,
        )
        return history, network

    whole, _ = trained()
    part, network = trained(until=2)
    steps, made = 6, whole.evaluated <= 6
    assert whole.evaluated.tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert np.isnan(part.loss[:, steps:]).all()
    assert np.isnan(part.grad_norm[:, steps:]).all()
    np.testing.assert_array_equal(part.loss[:, :steps], whole.loss[:, :steps])
    np.testing.assert_array_equal(part.grad_norm[:, :steps], whole.grad_norm[:, :steps])
    np.testing.assert_array_equal(part.quantities["update_ratio"].values[:, :3], whole.quantities["update_ratio"].values[:, :3])
    for name, values in whole.measures.items():
        np.testing.assert_array_equal(part.measures[name], np.where(made, values, np.nan))
    values, _ = losses.softmax_cross_entropy(network.with_parameters(network.parameters[[0, 2]]).forward(x)[0], y)
    np.testing.assert_allclose(values, whole.measures["loss/train"][[0, 2], 2], rtol=1e-12)
    assert part.diverged_step.tolist() == whole.diverged_step.tolist()
    assert [part.lane(k).steps_made for k in (0, 2)] == [6, 6]


def test_the_same_seed_twice_is_the_same_bits():
    x, y = data()
    runs = []
    for _ in range(2):
        network = a_network(dtype=np.float32)
        history = fit(network, x, y, batch_size=3, orders=reshuffled(np.random.default_rng(4), 10))
        runs.append((network.parameters.tobytes(), history.loss.tobytes(), history.grad_norm.tobytes()))
    assert runs[0] == runs[1]


def test_a_forward_pass_that_overflows_is_noted_with_its_block():
    x, y = data()
    network = a_network(lanes=2)
    network = Network(SIZES, "relu", network.parameters)
    # Blocks 1 and 2 multiply to more than a float64 holds; block 1 alone does not.
    network.blocks[0].W[1] = 1e200
    network.blocks[1].W[1] = 1e200
    history = fit(network, np.abs(x), y)
    assert history.diverged_step.tolist() == [-1, 0]
    assert history.diverged_block.tolist() == [-1, 2]


def test_a_gradient_that_overflows_before_the_loss_is_noted_with_its_block():
    x, y = data()
    network = Network(SIZES, "identity", a_network().parameters)
    # z stays small, but da_prev = W^T dz of block 3 and then of block 2 is more than a float64 holds.
    network.blocks[0].W[...] = 0
    network.blocks[1].W[...] = 1e160
    network.blocks[2].W[...] = np.array([[1e160], [-1e160], [1e160]])
    history = fit(network, x, y)
    assert (int(history.diverged_step), int(history.diverged_block)) == (0, 1)


def test_a_loss_above_its_bound_has_diverged_in_no_block():
    x, y = data()
    history = fit(a_network(lanes=2), x, y, np.array([0.1, 500.0]), loss_bound=50.0, epochs=30)
    assert history.diverged_step[0] == -1
    assert history.loss[1, history.diverged_step[1]] > 50
    assert history.diverged_block.tolist() == [-1, 0]


@given(st.integers(1, 10**6), st.integers(2, 50))
def test_log_spaced_points_begin_and_end_where_they_should(count, points):
    at = log_spaced(count, points)
    assert len(at) <= points
    assert (at[0], at[-1]) == (0, count - 1)
    assert (np.diff(at) > 0).all()


def test_a_history_read_back_is_the_history(tmp_path):
    x, y = data()
    history = fit(a_network(lanes=2), x, y, validation=(x, y))
    history.save(tmp_path / "history.npz")
    back = History.load(tmp_path / "history.npz")
    assert vars(back).keys() == vars(history).keys()
    np.testing.assert_array_equal(back.grad_norm, history.grad_norm)
    np.testing.assert_array_equal(back.measures["accuracy/validation"], history.measures["accuracy/validation"])
    assert back.steps_an_epoch == history.steps_an_epoch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, it must be a whole number from 1 to 10"),
        ({"batch_size": 11}, "batch_size is 11, it must be a whole number from 1 to 10"),
        ({"epochs": 0}, "epochs is 0, it must be a whole number of at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"evaluations": 1}, "evaluations is 1, it must be a whole number of at least 2"),
        ({"loss_bound": -1.0}, "loss_bound is -1.0"),
        ({"schedule": "foo"}, "schedule 'foo' is unknown, allowed: constant"),
        ({"warmup": 4}, "warmup is 4, it must be at most 3, the updates of the training"),
        ({"x": np.full((4, 10), np.nan)}, r"x of shape \(4, 10\) must be finite, it has nan at \(0, 0\)"),
        ({"x": np.ones((5, 10))}, r"x has shape \(5, 10\), it must be \(4, m\)"),
        ({"y": np.zeros(9, int)}, r"y has shape \(9,\), it must be \(\.\.\., 10\)"),
        ({"loss": "cross_entropy"}, "loss 'cross_entropy' is unknown, allowed: softmax_cross_entropy, sigmoid"),
        ({"loss": None}, "loss is None, it must be one of blocks.losses, or its name"),
        ({"optimizer": "adam"}, "optimizer is 'adam', it must be an Optimizer, such as GradientDescent"),
        ({"optimizer": GradientDescent}, "it must be an Optimizer, such as GradientDescent"),
        ({"y": np.full(10, 3)}, "labels 3 to 3, they must be 0 to 2"),
    ],
)
def test_what_cannot_be_trained_is_named(options, message):
    x, y = data()
    with pytest.raises(ValueError, match=message):
        fit(a_network(), **{"x": x, "y": y, **options})


def test_a_loss_may_be_named():
    x, y = data()
    by_name, itself = (
        train(a_network(), x, y, loss=loss, optimizer=GradientDescent(0.1), epochs=3)
        for loss in ("softmax_cross_entropy", losses.softmax_cross_entropy)
    )
    assert by_name.loss.tobytes() == itself.loss.tobytes()


def test_the_readme_s_blocks_learn_what_it_says(capsys):
    """The loss at the start is about log 2, and ends near 0: the data can be learned."""
    section = (Path(__file__).parents[2] / "README.md").read_text().split("A network is a chain of blocks:\n\n")[1]
    code = list(itertools.takewhile(lambda line: not line or line.startswith("    "), section.splitlines()))[:-1]
    exec("\n".join(line[4:] for line in code), {})
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed in code[-1]
    first, last = (float(number) for number in printed.strip("[").split("]")[0].split())
    assert abs(first - np.log(2)) < 0.1
    assert last < 0.1


# The factor on the learning rate at update t of T.
FACTORS = {
    "constant": lambda t, T: 1.0,
    "inverse_scaling": lambda t, T: (t + 1) ** -0.5,
    "cosine": lambda t, T: (1 + np.cos(np.pi * t / T)) / 2,
    "linear_warm_up": lambda t, T: min(1.0, (t + 1) / np.ceil(T / 10)),
}


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("schedule", FACTORS)
def test_a_schedule_multiplies_the_learning_rate_of_its_update(schedule, warmup):
    """z = W x + b of one example, J = (z - y)^2 / 2, both parameters from 0, 24 updates by hand."""
    network = Network.create([1, 1], "identity", "zeros", rng=np.random.default_rng(0))
    loss = losses.half_mean_squared_error
    history = fit(network, np.array([[2.0]]), np.array([[3.0]]), 0.05, loss=loss, epochs=24, schedule=schedule, warmup=warmup)
    W = b = 0.0
    for t in range(24):
        dz = W * 2.0 + b - 3.0
        assert history.loss[t] == pytest.approx(dz**2 / 2, rel=1e-10)
        rate = 0.05 * ((t + 1) / warmup if t < warmup else FACTORS[schedule](t - warmup, 24 - warmup))
        W, b = W - rate * dz * 2.0, b - rate * dz
    assert network.parameters.tolist() == pytest.approx([W, b], rel=1e-12)


def test_r2_is_scikit_learns_over_all_outputs():
    x, _ = data(23)
    y = np.random.default_rng(3).standard_normal((3, 23)) * [[1], [2], [3]] + 5
    network = a_network()
    history = fit(network, x, y, loss=losses.half_mean_squared_error, batch_size=4, validation=(x[:, :6], y[:, :6]))
    outputs = np.asarray(oracle.logits_of(oracle.parameters_of(network), x, "tanh"))
    for name, count in (("train", 23), ("validation", 6)):
        expected = r2_score(y[:, :count].T, outputs[:, :count].T)
        assert history.measures[f"r2/{name}"][-1] == pytest.approx(expected, rel=1e-10)


def test_accuracy_of_one_logit_counts_those_above_0():
    x, _ = data(23)
    y = np.random.default_rng(3).integers(0, 2, 23)
    network = Network.create([4, 6, 1], "tanh", rng=np.random.default_rng(1))
    history = fit(network, x, y, loss=losses.sigmoid_cross_entropy, batch_size=5)
    logits = np.asarray(oracle.logits_of(oracle.parameters_of(network), x, "tanh"))[0]
    assert history.measures["accuracy/train"][-1] == np.mean((logits > 0) == (y == 1))


def test_the_first_evaluation_is_the_network_as_it_was_handed_in():
    x, y = data()
    network = a_network()
    logits = oracle.logits_of(oracle.parameters_of(network), x, "tanh")
    history = fit(network, x, y, batch_size=4)
    assert history.evaluated[0] == 0
    assert history.measures["loss/train"][0] == pytest.approx(float(oracle.softmax_cross_entropy(logits, y)), rel=1e-10)


def test_the_data_are_left_as_they_were():
    x, y = data()
    kept = x.copy(), y.copy()
    fit(a_network(), x, y, batch_size=4, orders=reshuffled(np.random.default_rng(0), 10))
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])


def test_without_orders_the_batches_are_the_data_from_the_left():
    x, y = data()
    own, given_order = a_network(), a_network()
    fit(own, x, y, batch_size=4)
    fit(given_order, x, y, batch_size=4, orders=iter([np.arange(10)] * 3))
    assert own.parameters.tobytes() == given_order.parameters.tobytes()


def test_every_epoch_sees_every_example_once_in_a_new_order():
    orders = reshuffled(np.random.default_rng(0), 50)
    first, second = next(orders), next(orders)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()


def test_one_lane_of_a_history_is_on_arrays_of_its_own():
    x, y = data()
    history = fit(a_network(lanes=3), x, y, np.array([0.1, 0.2, 0.3]))
    lane = history.lane(1)
    np.testing.assert_array_equal(lane.loss, history.loss[1])
    np.testing.assert_array_equal(lane.epoch_loss(), history.epoch_loss()[1])
    np.testing.assert_array_equal(lane.measures["loss/train"], history.measures["loss/train"][1])
    lane.loss[...] = lane.measures["loss/train"][...] = 0
    assert (history.loss > 0).all()
    assert (history.measures["loss/train"] > 0).all()
    assert repr(history) == "History(3 steps, 3 blocks, lanes=(3,), 0 diverged)"
    assert repr(lane) == "History(3 steps, 3 blocks, 0 diverged)"


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((np.ones((5, 2)), np.zeros(2, int)), r"validation x has shape \(5, 2\), it must be \(4, m\)"),
        ((np.full((4, 2), np.inf), np.zeros(2, int)), r"validation x of shape \(4, 2\) must be finite, it has inf at \(0, 0\)"),
        ((np.ones((4, 2)), np.zeros(3, int)), r"validation y has shape \(3,\), it must be \(\.\.\., 2\)"),
        ((np.ones((4, 2)), np.zeros(2)), "y has dtype float64, it must hold integer labels"),
    ],
)
def test_validation_data_that_do_not_fit_are_named(validation, message):
    x, y = data()
    with pytest.raises(ValueError, match=message):
        fit(a_network(), x, y, validation=validation)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "half_mean_squared_error"])
def test_an_example_of_weight_k_is_k_examples(loss):
    x, _ = data(5)
    y = oracle.targets_for(loss, np.random.default_rng(3), 3, 5)
    counts = np.array([1, 3, 1, 2, 1])
    once, repeated = a_network(), a_network()
    weighted = fit(once, x, y, loss=losses.LOSSES[loss], weights=7.5 * counts)
    plain = fit(repeated, np.repeat(x, counts, axis=1), np.repeat(y, counts, axis=-1), loss=losses.LOSSES[loss])
    np.testing.assert_allclose(weighted.loss, plain.loss, rtol=1e-12)
    np.testing.assert_allclose(weighted.grad_norm, plain.grad_norm, rtol=1e-11)
    np.testing.assert_allclose(once.parameters, repeated.parameters, rtol=1e-11)


def test_with_weights_lanes_have_the_bits_of_the_network_alone_and_batches_weights_of_their_own():
    x, y = data(11)
    weights = np.random.default_rng(4).uniform(0.1, 9, 11)
    options = {"batch_size": 4, "weights": weights}
    stack = a_network(lanes=2)
    order = [np.random.default_rng(5).permutation(11) for _ in range(3)]
    history = fit(stack, x, y, np.array([0.1, 0.3]), orders=iter(order), **options)
    for k, rate in enumerate((0.1, 0.3)):
        alone = a_network(lanes=2)
        alone = alone.with_parameters(alone.parameters[k].copy())
        own = fit(alone, x, y, rate, orders=iter(order), **options)
        assert own.loss.tobytes() == history.loss[k].tobytes()
        assert alone.parameters.tobytes() == stack.parameters[k].tobytes()
    # Each step's loss by JAX, of the first step of the first lane: the batch's own weighted mean.
    start, batch = a_network(lanes=2), order[0][:4]
    logits = oracle.logits_of(oracle.parameters_of(start, 0), x[:, batch], "tanh")
    each = [float(oracle.softmax_cross_entropy(logits[:, i : i + 1], y[batch][i : i + 1])) for i in range(4)]
    assert history.loss[0, 0] == pytest.approx(np.average(each, weights=weights[batch]), rel=1e-12)
    # What is measured beside the steps counts every example alike.
    whole = oracle.logits_of(oracle.parameters_of(start, 0), x, "tanh")
    assert history.measures["loss/train"][0, 0] == pytest.approx(float(oracle.softmax_cross_entropy(whole, y)), rel=1e-12)


@pytest.mark.parametrize("lanes", [None, 2])
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_targets_encoded_batch_by_batch_give_the_same_bytes(loss, lanes, monkeypatch):
    x, _ = data(11)
    units = 1 if loss == "sigmoid_cross_entropy" else 3
    y = oracle.targets_for(loss, np.random.default_rng(3), units, 11)
    histories = []
    for limit in (workspace.ENCODED_AT_ONCE, 0):
        monkeypatch.setattr(workspace, "ENCODED_AT_ONCE", limit)
        network = Network.create([4, 6, units], "tanh", rng=np.random.default_rng(1), lanes=lanes)
        history = fit(network, x, y, loss=losses.LOSSES[loss], batch_size=4, validation=(x[:, :3], y[..., :3]))
        histories.append((history.loss.tobytes(), [values.tobytes() for values in history.measures.values()]))
    assert histories[0] == histories[1]


@pytest.mark.parametrize("where", ["x", "y", "validation x"])
def test_a_number_that_is_infinite_in_the_networks_dtype_is_named(where):
    x, values = np.ones((4, 3)), np.ones((3, 3))
    large = {name: np.where(np.eye(*array.shape) > 0, 1e39, array) for name, array in (("x", x), ("y", values))}
    own = {"x": (large["x"], values, None), "y": (x, large["y"], None), "validation x": (x, values, (large["x"], values))}[where]
    with pytest.raises(ValueError, match=rf"{where} of shape .* must be finite in float32, it has 1e\+39 at \(0, 0\)"):
        fit(a_network(dtype="float32"), *own[:2], validation=own[2], loss=losses.half_mean_squared_error)
    fit(a_network(), *own[:2], rate=1e-90, validation=own[2], loss=losses.half_mean_squared_error, epochs=1)


def test_the_r2_of_constant_targets_is_scikit_learns():
    x, _ = data(6)
    y = np.stack([np.full(6, 2.0), np.arange(6.0), np.arange(6.0) ** 2])
    network = a_network()
    history = fit(network, x, y, loss=losses.half_mean_squared_error, validation=(x[:, :1], y[:, :1]))
    outputs = np.asarray(oracle.logits_of(oracle.parameters_of(network), x, "tanh"))
    assert history.measures["r2/train"][-1] == pytest.approx(r2_score(y.T, outputs.T), rel=1e-10)
    assert np.isnan(history.measures["r2/validation"]).all()
