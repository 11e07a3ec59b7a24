"""What a training allocates: nothing in its loop, and little more than parameters, caches and data altogether."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from blocks import ACTIVATIONS, LOSSES, OPTIMIZERS, Network, reshuffled, train
from blocks.tape.replay import replay_off
from tests.blocks import oracle

INPUTS, WIDTH, BATCH, BATCHES = 40, 48, 256, 4
M = BATCH * BATCHES
# Views and numbers: less than half the smallest array of a batch that has more than one row, 10 of them.
NO_ARRAY = 4096
# NumPy itself takes room for 8192 numbers where it converts booleans or goes through operands that lie differently.
NUMPYS_OWN = 8192 * 4 + NO_ARRAY
A_BLOCK_S = WIDTH * BATCH * 4


def peak_after_the_first_epoch(activation="relu", loss="softmax_cross_entropy", rule="gradient_descent", lanes=None, **rules):
    """Bytes by which the memory in use grew in epochs 2 to 4, at its highest."""
    rng = np.random.default_rng(0)
    units = 1 if loss == "sigmoid_cross_entropy" else 10
    x, y = rng.standard_normal((INPUTS, M)), oracle.targets_for(loss, rng, units, M)
    network = Network.create([INPUTS, WIDTH, WIDTH, units], activation, rng=rng, dtype=np.float32, lanes=lanes)
    orders = iter([rng.permutation(M) for _ in range(4)])
    seen = []

    def watch(step, history):
        if not seen:
            tracemalloc.reset_peak()
        seen.append(tracemalloc.get_traced_memory())

    optimizer = OPTIMIZERS[rule](np.full(lanes, 1e-3) if lanes else 1e-3, **rules)
    tracemalloc.start()
    try:
        train(
            network,
            x,
            y,
            loss=LOSSES[loss],
            optimizer=optimizer,
            epochs=4,
            batch_size=BATCH,
            orders=orders,
            evaluations=0,
            watch=watch,
        )
    finally:
        tracemalloc.stop()
    return seen[-1][1] - seen[0][0]


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What the first training of a process imports is no training's."""
    peak_after_the_first_epoch(weight_decay=0.1)


@pytest.mark.parametrize("lanes", [None, 10])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_no_block_s_array_is_allocated_after_the_first_epoch(activation, lanes):
    assert peak_after_the_first_epoch(activation, lanes=lanes) < NUMPYS_OWN < A_BLOCK_S


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_no_array_at_all_is_allocated_by_one_network(activation):
    assert peak_after_the_first_epoch(activation) < NO_ARRAY


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_no_loss_and_no_optimizer_allocates(loss, rule):
    assert peak_after_the_first_epoch(loss=loss, rule=rule, weight_decay=0.1) < NO_ARRAY


def test_an_array_in_the_loop_would_be_seen():
    with replay_off():
        assert peak_after_the_first_epoch("tanh") >= A_BLOCK_S


@pytest.mark.parametrize(
    ("sizes", "m", "batch_size", "lanes"),
    [
        pytest.param([784, 128, 128, 10], 6000, 128, None, id="data are most"),
        pytest.param([64, *[64] * 8, 10], 1437, 64, None, id="9 x 64 on digits"),
        pytest.param([64, *[64] * 32, 10], 1437, 64, None, id="33 x 64 on digits"),
        pytest.param([64, *[64] * 8, 10], 1437, 64, 16, id="a stack of 16"),
        pytest.param([64, *[64] * 8, 10], 1437, None, None, id="all examples a batch"),
    ],
)
def test_a_training_takes_little_more_than_parameters_caches_and_data(sizes, m, batch_size, lanes):
    """Caches: a_prev and z of every block. Parameters: W, b and their gradients. Data: the training's own copy."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((sizes[0], m)).astype(np.float32), rng.integers(0, 10, m)
    network = Network.create(sizes, rng=rng, dtype=np.float32, lanes=lanes)
    rule = OPTIMIZERS["gradient_descent"](1e-3)
    orders = None if batch_size is None else reshuffled(rng, m)

    def run(epochs):
        train(
            network,
            x,
            y,
            loss=LOSSES["softmax_cross_entropy"],
            optimizer=rule,
            epochs=epochs,
            batch_size=batch_size,
            orders=orders,
        )

    # What a process keeps of its first training of these shapes is no training's.
    run(1)
    tracemalloc.start()
    try:
        run(2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    caches = sum(n_prev + n for n_prev, n in pairwise(sizes)) * (batch_size or m) * (lanes or 1)
    assert peak + network.parameters.nbytes < 1.5 * (2 * network.parameters.nbytes + 4 * caches + x.nbytes)
