"""Lane k of a stack has the same bits as the network alone, whatever the network and however long it trains."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blocks import ACTIVATIONS, KINDS, OPTIMIZERS, Adam, GradientDescent, Momentum, Nesterov, Network, losses, reshuffled, train
from blocks.losses import LOSSES
from tests.blocks import oracle
from tests.blocks.reference import all_pairs

OTHER_KINDS = [kind for kind in KINDS if kind != "plain"]
DTYPES = [np.float32, np.float64]
RULES = {"gradient_descent": GradientDescent, "momentum": Momentum, "nesterov": Nesterov, "adam": Adam}


def compare(
    sizes,
    activation,
    dtype,
    rates,
    *,
    m=11,
    epochs=2,
    batch_size=4,
    rule=GradientDescent,
    loss="softmax_cross_entropy",
    kind="plain",
    weights=None,
    seeds=None,
    **rules,
):
    """Train a stack with one lane a rate, and every lane alone; returns the stack's history.

    seeds: of each lane's order of the batches; None is one order for all.
    """
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((sizes[0], m)), oracle.targets_for(loss, rng, sizes[-1], m)

    def trained(network, orders, **values):
        optimizer = rule(**values)
        common = {"loss": LOSSES[loss], "epochs": epochs, "batch_size": batch_size, "orders": orders, "evaluations": 2}
        common["weights"] = weights
        return train(network, x, y, optimizer=optimizer, validation=(x[:, :3], y[..., :3]), **common)

    lanes = len(rates)
    stack = Network.create(
        sizes,
        activation,
        "normal",
        rng=np.random.default_rng(5),
        gain=2.0,
        bias_variance=0.1,
        dtype=dtype,
        lanes=lanes,
        kind=kind,
    )
    alone = [Network(sizes, activation, stack.parameters[k].copy(), kind) for k in range(lanes)]
    series = [reshuffled(np.random.default_rng(seed), m) for seed in seeds or [3]]
    orders = map(np.stack, zip(*series, strict=True)) if seeds else series[0]
    history = trained(stack, orders, learning_rate=np.array(rates), **{name: np.array(value) for name, value in rules.items()})
    for k in range(lanes):
        own = reshuffled(np.random.default_rng(seeds[k] if seeds else 3), m)
        single = trained(alone[k], own, learning_rate=rates[k], **{name: value[k] for name, value in rules.items()})
        lane = history.lane(k)
        assert stack.parameters[k].tobytes() == alone[k].parameters.tobytes()
        for name in ("loss", "grad_norm", "grad_norm_b"):
            np.testing.assert_array_equal(getattr(lane, name), getattr(single, name), err_msg=f"{name} of lane {k}")
        for name, values in single.measures.items():
            np.testing.assert_array_equal(lane.measures[name], values)
        assert (lane.diverged_step, lane.diverged_block) == (single.diverged_step, single.diverged_block)
    return history


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_every_activation(depth, activation, dtype):
    compare([5, *[8] * (depth - 1), 3], activation, dtype, [0.01, 0.1, 0.3])


@pytest.mark.parametrize(
    ("kind", "activation", "dtype", "rule"), all_pairs(OTHER_KINDS, [*ACTIVATIONS], DTYPES, [GradientDescent, Adam])
)
def test_every_kind_with_a_lane_that_diverges(kind, activation, dtype, rule):
    rates = [0.01, float(np.finfo(dtype).max) / 1e3, 0.1, 0.3]
    history = compare([5, *[8] * 6, 3], activation, dtype, rates, kind=kind, rule=rule, m=12, epochs=6)
    # What normalisation and a bounded activation leave finite stays so at any rate; units that are saturated for all examples
    # but one are multiplied by 300, and may leave the range.
    bounded = kind.endswith("normalized") and activation in ("sigmoid", "tanh")
    assert kind == "batch_normalized" or (history.diverged_step[:2] >= 0).tolist() == [False, not bounded]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_kind_at_the_width_that_is_used(kind, dtype):
    compare([64, *[64] * 6, 10], "relu", dtype, [1e-3, 1e-2, 1e-1], m=70, batch_size=64, epochs=3, kind=kind)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [1, 2, 5, 33])
def test_every_depth_at_the_width_that_is_used(depth, dtype):
    compare([64, *[64] * (depth - 1), 10], "relu", dtype, [1e-3, 1e-2, 1e-1], m=70, batch_size=64, epochs=3)


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 16])
def test_every_number_of_lanes(lanes):
    compare([9, 17, 4], "tanh", np.float32, list(np.geomspace(1e-3, 1, lanes)), epochs=5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_every_optimizer_with_weight_decay_in_some_lanes(rule, dtype):
    momentum = {"momentum": [0.0, 0.5, 0.9]} if rule in ("momentum", "nesterov") else {}
    compare([6, 8, 8, 3], "relu", dtype, [0.01, 0.1, 0.05], rule=RULES[rule], weight_decay=[0.0, 0.1, 0.0], epochs=20, **momentum)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    compare([6, 8, 1 if loss == "sigmoid_cross_entropy" else 3], "elu", np.float32, [0.01, 0.1], loss=loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_diverging_lanes_leave_and_change_nothing_in_the_others(dtype):
    history = compare([6, 16, 16, 3], "relu", dtype, [0.1, 1e25, 0.01, 1e30, 1e3, 0.3], m=40, epochs=30)
    steps = history.diverged_step
    assert (steps[[0, 2]] == -1).all()
    assert (steps[[1, 3]] >= 0).all()
    assert (history.diverged_block[[1, 3]] >= 0).all()
    for lane in (1, 3):
        assert np.isnan(history.loss[lane, steps[lane] + 2 :]).all()
        assert np.isfinite(history.loss[lane, : steps[lane]]).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape(data):
    sizes = [data.draw(st.integers(1, 20)), *data.draw(st.lists(st.integers(1, 20), max_size=3)), data.draw(st.integers(1, 5))]
    m = data.draw(st.integers(1, 20))
    rates = data.draw(st.lists(st.sampled_from([1e-3, 0.1, 1.0, 1e9]), min_size=1, max_size=5))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    compare(sizes, data.draw(st.sampled_from(list(ACTIVATIONS))), dtype, rates, m=m, batch_size=data.draw(st.integers(1, m)))


@pytest.mark.parametrize(("rule", "kind", "dtype"), all_pairs([*OPTIMIZERS], [*KINDS], DTYPES))
def test_lanes_with_orders_of_their_own_and_some_that_leave(rule, kind, dtype):
    huge = float(np.finfo(dtype).max)
    rates, seeds = [0.01, huge / 10, 0.02, 0.01, huge / 1e5, 0.02], [3, 1, 4, 1, 5, 2**100]
    history = compare(
        [6, 8, 8, 8, 3], "relu", dtype, rates, rule=OPTIMIZERS[rule], kind=kind, seeds=seeds, weight_decay=[0.1, 0, 0, 0, 0, 0]
    )
    assert (history.diverged_step >= 0).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [None, np.arange(1.0, 12.0)])
def test_every_loss_with_orders_of_their_own(loss, weights):
    sizes = [6, 8, 1 if loss == "sigmoid_cross_entropy" else 3]
    compare(sizes, "tanh", np.float32, [0.01, 0.1, 0.1], loss=loss, seeds=[1, 2, 2], weights=weights)


def test_labels_too_many_to_encode_at_once_with_orders_of_their_own(monkeypatch):
    monkeypatch.setattr("blocks.workspace.ENCODED_AT_ONCE", 0)
    compare([6, 8, 3], "tanh", np.float32, [0.01, 1e30, 0.1], seeds=[1, 2, 3])


@pytest.mark.parametrize(
    "orders",
    [
        pytest.param([[[0, 1, 2]] * 3], id="three orders for two lanes"),
        pytest.param([[[0, 1, 2], [0, 1, 3]]], id="an example that there is not"),
        pytest.param([[0, 1, 2], [[0, 1, 2]] * 2], id="one order, and then two"),
    ],
)
def test_orders_that_do_not_fit_the_lanes_are_refused(orders):
    network = Network.create([2, 2], rng=np.random.default_rng(0), lanes=2)
    data = {"x": np.eye(2, 3), "y": np.array([0, 1, 0]), "loss": "softmax_cross_entropy"}
    with pytest.raises(ValueError, match="is no order of 3 examples, it must hold 0 to 2"):
        train(network, **data, optimizer=GradientDescent(0.1), epochs=2, orders=map(np.array, orders))


def test_lanes_may_have_two_axes():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 9)), rng.integers(0, 3, 9)
    flat = Network.create([4, 5, 3], rng=rng, lanes=6)
    square = Network([4, 5, 3], "relu", flat.parameters.reshape(2, 3, -1).copy())
    rates = np.geomspace(0.01, 1e10, 6)
    common = {"loss": losses.softmax_cross_entropy, "epochs": 4, "batch_size": 4}
    orders = [np.stack([rng.permutation(9) for _ in rates]) for _ in range(4)]
    one = train(flat, x, y, optimizer=GradientDescent(rates), orders=iter(orders), **common)
    turned = (order.reshape(2, 3, 9) for order in orders)
    two = train(square, x, y, optimizer=GradientDescent(rates.reshape(2, 3)), orders=turned, **common)
    np.testing.assert_array_equal(one.loss.reshape(2, 3, -1), two.loss)
    np.testing.assert_array_equal(one.diverged_step.reshape(2, 3), two.diverged_step)
    np.testing.assert_array_equal(flat.parameters.reshape(2, 3, -1), square.parameters)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_diverging_lanes_leave_whatever_the_optimizer_carries(rule, dtype):
    huge = float(np.finfo(dtype).max)
    momentum = {"momentum": [0.9, 0.0, 0.5, 0.9, 0.3]} if rule in ("momentum", "nesterov") else {}
    decay = [0.1, 0.0, 0.0, 0.1, 0.2]
    rates = [0.05, huge / 10, 0.01, huge / 1e5, 0.02]
    history = compare([6, 8, 8, 3], "relu", dtype, rates, rule=RULES[rule], weight_decay=decay, epochs=10, **momentum)
    assert (history.diverged_step >= 0).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "batch_size"), [(1, 1), (5, 1), (9, 8), (9, 9)])
def test_one_example_one_a_batch_and_one_left_over(m, batch_size, dtype):
    compare([4, 6, 6, 3], "sigmoid", dtype, [0.01, 0.1, 1.0], m=m, batch_size=batch_size, epochs=4)


@settings(max_examples=15)
@given(st.data())
def test_any_setting(data):
    depth, width, m = (data.draw(st.sampled_from(values)) for values in ([1, 2, 3, 8, 20], [1, 2, 5, 9, 16], [1, 2, 7, 12]))
    lanes = data.draw(st.sampled_from([1, 2, 7, 16]))
    loss, rule = data.draw(st.sampled_from(list(LOSSES))), data.draw(st.sampled_from(list(RULES)))

    def by_lane(values):
        return data.draw(st.lists(st.sampled_from(values), min_size=lanes, max_size=lanes))

    kind, batch_size = data.draw(st.sampled_from(list(KINDS))), data.draw(st.integers(1, m))
    # No batch of one example can be standardised.
    assume(kind != "batch_normalized" or 1 not in (m, batch_size, m % batch_size))
    rules = {"weight_decay": by_lane([0.0, 0.0, 0.1])}
    if rule in ("momentum", "nesterov"):
        rules["momentum"] = by_lane([0.0, 0.5, 0.9])
    compare(
        [data.draw(st.integers(1, 9)), *[width] * (depth - 1), 1 if loss == "sigmoid_cross_entropy" else 3],
        data.draw(st.sampled_from(list(ACTIVATIONS))),
        data.draw(st.sampled_from([np.float32, np.float64])),
        by_lane([1e-3, 0.1, 1.0, 1e9, 1e30]),
        m=m,
        batch_size=batch_size,
        rule=RULES[rule],
        loss=loss,
        kind=kind,
        **rules,
    )
