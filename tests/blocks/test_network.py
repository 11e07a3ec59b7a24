import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from blocks import KINDS, LOSSES, Network
from blocks.workspace import Examples, Workspace
from tests.blocks import oracle
from tests.blocks.reference import (
    ACTIVATION_NAMES,
    LOSS_NAMES,
    PAIRS,
    all_pairs,
    assert_near,
    random_network,
    sizes_for,
    value_and_gradients,
)

lanes_or_none = pytest.mark.parametrize("lanes", [(), (7,)], ids=["alone", "7 lanes"])


def assert_gradients_are_jax_s(sizes, activation, loss, lanes, m, rng, shared=True):
    """Value, dW and db of every block, and da_0, in every lane."""
    network = random_network(sizes, activation, lanes, rng)
    x = rng.standard_normal((*(() if shared else lanes), sizes[0], m))
    y = oracle.targets_for(loss, rng, sizes[-1], m)
    logits, caches = network.forward(x)
    value, dlogits = LOSSES[loss](logits, y)
    gradients, da_0 = network.backward_to_data(dlogits, caches)
    for lane in np.ndindex(lanes):
        exact, (exact_gradients, exact_da_0) = value_and_gradients(activation, loss)(
            oracle.parameters_of(network, lane), x if shared else x[lane], y
        )
        assert_near(value[lane], exact)
        assert_near(da_0[lane], exact_da_0)
        for (dW, db), (exact_dW, exact_db) in zip(gradients, exact_gradients, strict=True):
            assert_near(dW[lane], exact_dW)
            assert_near(db[lane], exact_db)


@lanes_or_none
@pytest.mark.parametrize(("activation", "loss"), PAIRS)
def test_gradients_are_those_of_automatic_differentiation(activation, loss, lanes):
    assert_gradients_are_jax_s(sizes_for(loss, (3, 5, 4, 2)), activation, loss, lanes, 6, np.random.default_rng(0))


# JAX compiles nearly every one.
@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    m=st.sampled_from([1, 1, 2, 3, 8]),
    activation=st.sampled_from(ACTIVATION_NAMES),
    loss=st.sampled_from(LOSS_NAMES),
    lanes=st.sampled_from([(), (7,)]),
    shared=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradients_are_right_for_every_shape(sizes, m, activation, loss, lanes, shared, seed):
    assert_gradients_are_jax_s(sizes_for(loss, sizes), activation, loss, lanes, m, np.random.default_rng(seed), shared)


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_gradients_are_right_twenty_blocks_down(activation):
    rng = np.random.default_rng(1)
    assert_gradients_are_jax_s((3, *[6] * 19, 2), activation, "softmax_cross_entropy", (), 4, rng)


@lanes_or_none
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_gradients_are_right_where_every_n_and_m_is_1(loss, lanes):
    assert_gradients_are_jax_s((1, 1, 1), "tanh", loss, lanes, 1, np.random.default_rng(2))


def test_backward_gives_what_backward_to_data_gives():
    rng = np.random.default_rng(3)
    network = random_network((3, 4, 2), "gelu", (7,), rng)
    logits, caches = network.forward(rng.standard_normal((3, 5)))
    dlogits = rng.standard_normal(logits.shape)
    for (dW, db), (same_dW, same_db) in zip(
        network.backward(dlogits, caches), network.backward_to_data(dlogits, caches)[0], strict=True
    ):
        assert_array_equal(dW, same_dW)
        assert_array_equal(db, same_db)


@lanes_or_none
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_then_two_backwards_in_any_order_give_the_right_gradients(order, lanes):
    rng = np.random.default_rng(4)
    network = random_network((3, 4, 4, 2), "tanh", lanes, rng)
    x, y = rng.standard_normal((2, 3, 5)), rng.integers(0, 2, (2, 5))
    forwards = [network.forward(data) for data in x]
    loss = LOSSES["softmax_cross_entropy"]
    dlogits = [loss(logits, labels)[1] for (logits, _), labels in zip(forwards, y, strict=True)]
    gradients = {k: network.backward(dlogits[k], forwards[k][1]) for k in order}
    for k, lane in ((k, lane) for k in (0, 1) for lane in np.ndindex(lanes)):
        _, (exact, _) = value_and_gradients("tanh", loss.name)(oracle.parameters_of(network, lane), x[k], y[k])
        for (dW, db), (exact_dW, exact_db) in zip(gradients[k], exact, strict=True):
            assert_near(dW[lane], exact_dW)
            assert_near(db[lane], exact_db)


@lanes_or_none
def test_backward_leaves_dlogits_the_caches_and_the_parameters_unchanged(lanes):
    rng = np.random.default_rng(5)
    network = random_network((4, 4, 4, 4), "sigmoid", lanes, rng)
    x = rng.standard_normal((4, 5))
    logits, caches = network.forward(x)
    dlogits = rng.standard_normal(logits.shape)
    kept = [x, logits, dlogits, network.parameters] + [array for c in caches for array in (c.a_prev_1, c.z, c.a)]
    before = [array.copy() for array in kept]
    network.backward_to_data(dlogits, caches)
    for array, was in zip(kept, before, strict=True):
        assert_array_equal(array, was)


SHAPES_AND_KINDS = [((3, 5, 2, 6), "plain"), ((7, 1, 1), "plain"), ((3, 2), "plain"), *[((4, 4, 4, 4), kind) for kind in KINDS]]


@pytest.mark.parametrize(
    ("shape_and_kind", "activation", "lanes", "dtype", "turns"),
    all_pairs(SHAPES_AND_KINDS, ACTIVATION_NAMES, [(), (3,)], [np.float32, np.float64], [False, True]),
)
def test_a_replayed_cycle_has_the_bits_of_forward_and_backward(monkeypatch, shape_and_kind, activation, lanes, dtype, turns):
    sizes, kind = shape_and_kind
    monkeypatch.setattr("blocks.arrays.AVX_512", turns)
    monkeypatch.setattr("blocks.arrays.TINY", 0)
    rng = np.random.default_rng(6)
    network, loss, m = random_network(sizes, activation, lanes, rng, dtype, kind), LOSSES["half_mean_squared_error"], 5
    gradient, target = np.empty_like(network.parameters), rng.standard_normal((sizes[-1], m)).astype(dtype)
    workspace = Workspace(network, loss, gradient, target, (m,))
    # Whatever an earlier batch has left.
    for rows in rng.standard_normal((3, m, sizes[0] + 1)).astype(dtype):
        rows[:, -1] = 1
        workspace.gather(Examples(rows, target), np.arange(m), None)
        # OpenBLAS multiplies an output by zero before it writes there: what memory held may be no number.
        with np.errstate(invalid="ignore"):
            workspace.cycle()
        # As the batch lies there: one example after another.
        logits, caches = network.forward(rows[:, :-1].T)
        value, dlogits = loss.value_and_gradient(logits, target)
        assert_array_equal(workspace.logits, logits)
        assert_array_equal(workspace.value, value)
        assert_array_equal(gradient, network.gradient(dlogits, caches))
        assert_array_equal(workspace.norms, network.layout.norms(gradient))


def test_two_lane_axes_are_the_lanes_in_a_row():
    rng = np.random.default_rng(7)
    flat = random_network((3, 4, 2), "relu", (6,), rng)
    stacked = Network(flat.layout.sizes, "relu", flat.parameters.reshape(2, 3, -1).copy())
    assert stacked.lanes == (2, 3)
    x, y = rng.standard_normal((3, 5)), rng.integers(0, 2, 5)
    results = []
    for network in (flat, stacked):
        logits, caches = network.forward(x)
        value, dlogits = LOSSES["softmax_cross_entropy"](logits, y)
        gradients, da_0 = network.backward_to_data(dlogits, caches)
        results.append([value, logits, da_0, *[array for pair in gradients for array in pair]])
    for one, two in zip(*results, strict=True):
        assert two.shape[:2] == (2, 3)
        assert_array_equal(one, two.reshape(one.shape))


def test_the_last_block_has_the_identity_and_all_others_the_network_s_activation():
    network = Network.create((3, 4, 5, 2), "elu", rng=np.random.default_rng(0))
    assert [block.activation.name for block in network.blocks] == ["elu", "elu", "identity"]
    assert [block.W.shape for block in network.blocks] == [(4, 3), (5, 4), (2, 5)]
    assert (network.depth, network.lanes) == (3, ())


def test_a_change_of_the_flat_parameters_changes_the_blocks_and_the_other_way_round():
    network = Network.create((3, 4, 2), rng=np.random.default_rng(0), lanes=2)
    network.parameters[1] = 0
    assert not network.blocks[1].W[1].any()
    assert network.blocks[1].W[0].any()
    network.blocks[0].b[0] = 7
    assert (network.parameters[0] == 7).sum() == 4


def test_what_a_network_says_of_itself():
    network = Network.create((3, 4, 2), "relu", rng=np.random.default_rng(0), lanes=2, dtype="float32")
    assert repr(network) == "Network(3-4-2, relu, float32, lanes=(2,), 26 parameters)"
    assert repr(network.blocks[0]) == "Block(3 -> 4, relu, float32, lanes=(2,))"
    alone = Network.create((3, 4, 2), "relu", rng=np.random.default_rng(0))
    assert repr(alone) == "Network(3-4-2, relu, float64, 26 parameters)"
    assert repr(alone.blocks[1]) == "Block(4 -> 2, identity, float64)"


@pytest.mark.parametrize("shape", [(4, 5), (3,), (5, 3)])
def test_data_that_do_not_fit_raise_and_name_x(shape):
    network = Network.create((3, 4, 2), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=rf"x has shape \({shape[0]},.*\), it must be \(\.\.\., 3, m\)"):
        network.forward(np.ones(shape))


def test_a_dlogits_that_does_not_fit_raises():
    network = Network.create((3, 4, 2), rng=np.random.default_rng(0))
    _, caches = network.forward(np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"dlogits has shape \(5, 2\), it must be \(\.\.\., 2, 5\)"):
        network.backward(np.ones((5, 2)), caches)


def test_parameters_of_another_length_raise():
    with pytest.raises(ValueError, match=r"has shape \(25,\), it must be \(\.\.\., 26\)"):
        Network((3, 4, 2), "relu", np.zeros(25))


@pytest.mark.parametrize("sizes", [(3,), (), (3, 0, 2), (3, -1), (3, 2.5)])
def test_sizes_of_which_no_network_can_be_built_raise(sizes):
    with pytest.raises(ValueError, match=r"sizes is \[.*\], it must be at least two whole numbers of at least 1"):
        Network.create(sizes, rng=np.random.default_rng(0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_computes_with_its_own_parameters(copied):
    network = Network.create([3, 4, 2], "tanh", rng=np.random.default_rng(0))
    other = copied(network)
    x = np.random.default_rng(1).standard_normal((3, 5))
    np.testing.assert_array_equal(other.forward(x)[0], network.forward(x)[0])
    other.parameters[...] = 0
    np.testing.assert_array_equal(other.forward(x)[0], np.zeros((2, 5)))
    assert network.parameters.any()
