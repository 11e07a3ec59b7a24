"""A program has the bits of the calls it is made of, and is made of no call that it could not have them of."""

import gc
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks import ACTIVATIONS, KINDS, LOSSES, OPTIMIZERS, Network, reshuffled, train
from blocks.tape import program as module
from blocks.tape.program import _Program, program
from blocks.tape.replay import replay_off
from blocks.workspace import Workspace
from tests.blocks import oracle
from tests.blocks.reference import all_pairs

LANES, DTYPES = [None, 3], [np.float32, np.float64]
ELEMENTWISE = (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.tanh, np.exp, np.log1p, np.sqrt, np.negative)


@pytest.fixture
def plain(monkeypatch):
    """`plain(f)` calls f where llvmlite is not installed."""

    def called(function):
        with monkeypatch.context() as context:
            context.setattr(module, "_machine", lambda: None)
            return function()

    return called


def trained(
    *, sizes=(7, 33, 33, 33, 10), activation="relu", kind="plain", loss="softmax_cross_entropy", lanes=None, dtype, **rule
):
    """The bytes of all that a training gives."""
    rng = np.random.default_rng(0)
    sizes = (*sizes[:-1], 1) if loss == "sigmoid_cross_entropy" else sizes
    m = 37
    x, y = rng.standard_normal((sizes[0], m)), oracle.targets_for(loss, rng, sizes[-1], m)
    network = Network.create(sizes, activation, rng=rng, dtype=dtype, lanes=lanes, kind=kind)
    rate = 0.1 if lanes is None else np.geomspace(0.01, 1, lanes)
    optimizer = OPTIMIZERS[rule.pop("rule", "gradient_descent")](rate, **rule)
    orders = reshuffled(np.random.default_rng(1), m)
    common = {"epochs": 3, "batch_size": 16, "orders": orders, "evaluations": 2, "schedule": "cosine"}
    history = train(network, x, y, loss=LOSSES[loss], optimizer=optimizer, **common)
    results = (
        history.loss,
        history.grad_norm,
        history.grad_norm_b,
        *history.measures.values(),
        history.diverged_step,
        network.parameters,
    )
    return [np.asarray(result).tobytes() for result in results]


def by_itself(function):
    """The function called with every computation as it is written, none replayed."""
    with replay_off():
        return function()


# Every loss with one activation: a loss sees logits, whatever they come from.
NETWORKS = [
    *((activation, "softmax_cross_entropy", *row) for activation, *row in all_pairs([*ACTIVATIONS], [*KINDS], LANES, DTYPES)),
    *(("tanh", *row) for row in all_pairs([*LOSSES], [*KINDS], LANES, DTYPES)),
]


@pytest.mark.parametrize(("activation", "loss", "kind", "lanes", "dtype"), NETWORKS)
def test_every_network_trains_to_the_same_bits(plain, activation, loss, kind, lanes, dtype):
    run = partial(trained, activation=activation, kind=kind, loss=loss, lanes=lanes, dtype=dtype)
    assert run() == plain(run) == by_itself(run)


@pytest.mark.parametrize("lanes", [None, 3])
@pytest.mark.parametrize("weight_decay", [0, 0.01])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_optimizer_makes_the_same_bits(plain, monkeypatch, rule, weight_decay, lanes):
    # Parameters, and activations, in several parts.
    for user in ("replay", "memory"):
        monkeypatch.setattr(f"blocks.tape.{user}.PART", 200)
    run = partial(trained, rule=rule, weight_decay=weight_decay, lanes=lanes, dtype=np.float32)
    assert run() == plain(run) == by_itself(run)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1, 1, 2), (64, 64, 64, 10), (40, 200, 5)])
def test_every_shape_trains_to_the_same_bits(plain, sizes):
    for lanes in (None, 1, 2):
        run = partial(trained, sizes=sizes, activation="tanh", loss="half_mean_squared_error", lanes=lanes, dtype=np.float32)
        assert run() == plain(run) == by_itself(run)


def test_a_lane_that_diverges_does_so_at_the_same_step(plain):
    run = partial(trained, activation="relu", loss="half_mean_squared_error", lanes=4, dtype=np.float32, rule="momentum")
    results = run()
    assert results == plain(run) == by_itself(run)
    assert 0 < (np.frombuffer(results[-2], np.int64) >= 0).sum() < 4


@pytest.mark.parametrize(("activation", "loss", "kind"), all_pairs([*ACTIVATIONS], [*LOSSES], [*KINDS]))
def test_a_whole_pass_is_one_program(activation, kind, loss):
    network = Network.create((4, 5, 5, 1), activation, rng=np.random.default_rng(0), dtype=np.float32, kind=kind)
    gradient, target = np.empty_like(network.parameters), np.zeros((1, 8), np.float32)
    for (calls,) in Workspace(network, LOSSES[loss], gradient, target, (8,)).replay.stages:
        assert isinstance(calls, _Program)


@st.composite
def laid(draw, shape, dtype):
    """An array of that shape, or one that broadcasts to it, its axes in memory in any order, with gaps."""
    own = tuple(1 if draw(st.integers(0, 4)) == 0 else n for n in shape)
    own = own[draw(st.integers(0, len(own))) :]
    order = draw(st.permutations(range(len(own))))
    gaps = [draw(st.integers(1, 2)) for _ in own]
    stored = np.random.default_rng(draw(st.integers(0, 99))).standard_normal([own[axis] * gaps[axis] for axis in order])
    return stored.astype(dtype).transpose(np.argsort(order))[tuple(slice(None, None, gap) for gap in gaps)]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(ELEMENTWISE), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from("fd"))
def test_operands_may_lie_as_they_like(data, ufunc, shape, dtype):
    operands = [data.draw(laid(shape, dtype)) for _ in range(ufunc.nin)]
    out = np.full(shape, 7, dtype)
    with np.errstate(all="ignore"):
        expected = ufunc(*np.broadcast_arrays(*operands, out)[:-1])
        (part,) = program([partial(ufunc, *operands, out=out)])
        part()
    assert isinstance(part, _Program)
    assert out.tobytes() == expected.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(1, 3), max_size=3), *[st.integers(1, 9)] * 3)
def test_products_may_have_any_lanes(data, lanes, n, k, m):
    left, right, out = (np.zeros((*lanes, *shape)) for shape in ((n, k), (k, m), (n, m)))
    left[...], right[...] = data.draw(laid((*lanes, n, k), "d")), data.draw(laid((*lanes, k, m), "d"))
    vector = np.zeros((*lanes, n))
    parts = program([partial(np.matmul, left, right, out), partial(np.vecdot, left, left, vector)])
    for part in parts:
        part()
    assert len(parts) == 1
    assert out.tobytes() == np.matmul(left, right).tobytes()
    assert vector.tobytes() == np.vecdot(left, left).tobytes()


A = np.linspace(-1, 1, 12).reshape(3, 4)
FROZEN = A.copy()
FROZEN.flags.writeable = False
NOT_NUMPYS = {
    "a function": lambda: np.tanh(A),
    "types to be converted": partial(np.greater, A, 0.0, np.empty_like(A)),
    "another type of result": partial(np.add, A, A, np.empty(A.shape, np.float32)),
    "a copy to another type": partial(np.copyto, np.empty(A.shape, np.float32), A),
    "a mask": partial(np.add, A, A, out=np.zeros_like(A), where=A > 0),
    "nowhere to put it": partial(np.add, A, A),
    "a sum": partial(np.add.reduce, A, axis=-2, keepdims=True, out=np.empty((1, 4))),
    "the maximum of all": partial(np.maximum.reduce, A, axis=None, out=np.empty(())),
    "a number of NumPy's own type": partial(np.multiply, A.astype("f"), np.float64(0.1), np.empty(A.shape, "f")),
    "a fraction of whole numbers": partial(np.multiply, np.arange(4), 0.5, np.empty(4)),
    "no array at all": partial(np.add, 1, 2),
    "nothing": partial(np.add, A[:0], A[:0], np.empty((0, 4))),
    "a method": partial(A.take, [1], 0),
}


@pytest.mark.parametrize("call", NOT_NUMPYS.values(), ids=NOT_NUMPYS)
def test_another_call_stays_what_it_is(call):
    (part,) = program([call])
    assert part is call
    part()


def test_results_that_overlap_their_operands_stay_with_numpy():
    values = np.arange(8.0)
    call = partial(np.add, values[:-1], values[1:], values[1:])
    assert program([call]) == [call]


def test_types_that_numpy_has_no_loop_for_are_its_own_to_refuse():
    (part,) = program([partial(np.sqrt, np.array(["a"]), np.empty(1))])
    with pytest.raises(TypeError):
        part()


@pytest.mark.parametrize(
    "call",
    [
        partial(np.add, A, A, FROZEN),
        partial(np.add, A, A[:2], np.empty_like(A)),
        partial(np.add, A, A, np.empty((1, 4))),
        partial(np.matmul, A, A, np.empty((3, 4))),
        partial(np.matmul, A[0], A.T, np.empty(4)),
    ],
)
def test_what_numpy_refuses_it_refuses_still(call):
    (part,) = program([call])
    with pytest.raises(ValueError):  # noqa: PT011 - NumPy's own words
        part()


def test_calls_are_made_in_their_order():
    a, seen = np.zeros(3), []
    calls = [
        partial(np.add, a, 1, a),
        lambda: seen.append(a.copy()),
        partial(np.multiply, a, 2, a),
        partial(np.add, a, 1, a),
        lambda: seen.append(a.copy()),
    ]
    parts = program(calls)
    assert [isinstance(part, _Program) for part in parts] == [True, False, True, False]
    for part in (*parts, *parts):
        part()
    assert [values[0] for values in seen] == [1, 3, 4, 9]


def test_a_program_keeps_its_arrays():
    def made():
        ones = np.ones(10**6)
        total = np.zeros(())
        return program([partial(ones.dot, ones, total), partial(np.add, total, total, total)]), total

    parts, total = made()
    gc.collect()
    np.full(10**6, 3.0)
    for part in parts:
        part()
    assert total == 2e6


def test_an_overflow_in_a_program_is_no_later_call_s():
    big, small = np.full(4, 1e200), np.ones(4)
    (part,) = program([partial(np.multiply, big, big, np.empty(4))])
    with np.errstate(all="raise"):
        part()
        assert (small + small).tolist() == [2] * 4


@pytest.mark.parametrize("missing", ["llvmlite", "NumPy's loops"])
def test_without_what_it_needs_calls_are_made_one_by_one(monkeypatch, missing):
    if missing == "llvmlite":
        monkeypatch.setitem(sys.modules, "llvmlite", None)
        monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    else:
        monkeypatch.setattr(module, "CAPSULE", b"of another NumPy")
        module._loop.cache_clear()
    module._machine.cache_clear()
    try:
        calls = [partial(np.add, A, A, np.empty_like(A))]
        assert program(calls) == calls
    finally:
        module._machine.cache_clear()
        module._loop.cache_clear()
