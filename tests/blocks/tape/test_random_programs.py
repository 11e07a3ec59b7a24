"""Random small programs: the replay has the bytes of the plain calls, whatever is a view of what, written twice or read late."""

from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blocks.tape import memory, program, replay
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay

BINARY = (np.add, np.subtract, np.multiply, np.maximum, np.minimum)
UNARY = (np.tanh, np.negative, np.sign, np.absolute, np.cos, np.square, np.positive)
NUMBERS = (0, 1, 2, 0.5, -1.5, np.float32(0.25), 0.0, -0.0)
SHAPES = ((), (4,), (3, 4), (4, 3), (1, 4), (3, 1), (4, 4), (2, 3, 4), (2, 1, 4), (2, 1, 1), (5, 4))
LARGE = 1e6


def masked(a, b):
    """a where b > 0, else 0, by the bits, as relu's derivative has it."""
    whole = f"i{a.itemsize}"
    return (a.view(whole) * np.minimum(np.maximum(b, 0).view(whole), 1)).view(a.dtype)


def joined(axis, *pieces):
    return np.concatenate(pieces, axis=axis)


def assigned(index, target, source):
    target[index] = source


def in_place(ufunc, target, operand):
    ufunc(target, operand, out=target)


def chosen(index, a):
    return a[index]


def extremum(ufunc, axis, a):
    return ufunc.reduce(a, axis=axis, keepdims=True)


def turned(a):
    return a.mT


def copied(a):
    return a.copy()


def converted(dtype, a):
    return a.astype(dtype)


def reshaped(shape, a):
    return a.reshape(shape, copy=False) if isinstance(a, np.ndarray) else a.reshape(shape)


def truth(a, b, c):
    return np.where(a > 0, b, c)


def kept(size, a):
    """A new array, partly written twice."""
    out = np.empty_like(a, shape=(size, *a.shape))
    out[...] = a
    out[0] = 1
    out[-1:] = a
    return out


def indices(draw, shape):
    """A slice an axis, or a number in place of the first, nothing empty."""
    parts = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        parts.append(draw(st.sampled_from([slice(None), slice(start, stop), slice(start, stop, 2), slice(None, None, -1)])))
    if parts and draw(st.booleans()):
        parts[0] = draw(st.integers(0, shape[0] - 1))
    return tuple(parts[: draw(st.integers(0, len(parts)))])


class Written:
    """A program as it is written: `steps` are (function, indices of values that it is given, stage).

    values: those of the plain call by which it was found.
    """

    def __init__(self, arrays):
        self.values = [*arrays]
        self.steps = []
        self.stage = 0
        self.stage_of = {id(array): None for array in arrays}

    def add(self, function, *operands, writes=False):
        """Append a step if NumPy makes it."""
        given = [self.values[i] for i in operands]
        before = given[0].copy() if writes else None
        try:
            result = function(*given)
        except (ValueError, IndexError, TypeError, AttributeError):
            return
        changed = given[0] if writes else result
        if not (np.isfinite(changed).all() and np.abs(changed).max(initial=0) < LARGE):
            if writes:
                given[0][...] = before
            return
        self.steps.append((function, operands, self.stage))
        if not writes:
            self.values.append(result)
            self.stage_of.setdefault(self.root(result), self.stage)

    def root(self, value):
        while isinstance(value, np.ndarray) and value.base is not None:
            value = value.base
        return id(value)

    def __repr__(self):
        return "\n".join(
            f"  {getattr(f, 'func', f).__name__}{getattr(f, 'args', ())}{getattr(f, 'keywords', '')}{operands} in {stage}"
            for f, operands, stage in self.steps
        )

    def __call__(self, arrays, tape=None):
        values = [*arrays]
        for function, operands, stage in self.steps:
            if tape is not None:
                tape.stage = stage
            result = function(*(values[i] for i in operands))
            if result is not None:
                values.append(result)
        return values


@st.composite
def programs(draw, in_stages=False):
    """A program, what it is called with, and which of its values are wanted."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    arrays = [np.array(a.mT.copy().mT) if a.ndim > 1 and draw(st.booleans()) else a for a in arrays]
    written = Written(arrays)
    inputs = len(arrays)
    switch = draw(st.integers(2, 8)) if in_stages else None

    def pick(condition=lambda value: True):
        good = [
            i
            for i, value in enumerate(written.values)
            if condition(value) and not (in_stages and written.stage == 0 and i == inputs - 1)
        ]
        # The last ones are likelier: chains.
        return draw(st.sampled_from(good + good[-3:])) if good else None

    def writable(value):
        if not (isinstance(value, np.ndarray) and value.flags.writeable and value.dtype == dtype):
            return False
        if not value.ndim and value.base is None and all(value is not a for a in arrays):
            return False
        return not in_stages or written.stage_of.get(written.root(value)) == written.stage

    for number in range(draw(st.integers(3, 14))):
        if number == switch:
            written.stage = 1
        kind = draw(
            st.sampled_from(
                [
                    "binary",
                    "binary",
                    "number",
                    "number",
                    "unary",
                    "matmul",
                    "matmul",
                    "join",
                    "join",
                    "index",
                    "turn",
                    "reshape",
                    "assign",
                    "assign",
                    "assign",
                    "in_place",
                    "in_place",
                    "copy",
                    "where",
                    "masked",
                    "extremum",
                    "vecdot",
                    "broadcast",
                    "kept",
                    "lanes",
                    "convert",
                ]
            )
        )
        i = pick()
        if i is None:
            continue
        a = written.values[i]
        if kind == "binary":
            written.add(draw(st.sampled_from(BINARY)), i, pick())
        elif kind == "number":
            ufunc, value = draw(st.sampled_from((*BINARY, np.divide))), draw(st.sampled_from(NUMBERS))
            if ufunc is np.divide or draw(st.booleans()):
                written.add(
                    partial(lambda ufunc, value, a: ufunc(a, value), ufunc, value if value or ufunc is not np.divide else 2), i
                )
            else:
                written.add(partial(ufunc, value), i)
        elif kind == "unary":
            written.add(draw(st.sampled_from(UNARY)), i)
        elif kind == "matmul" and a.ndim > 1:
            j = pick(lambda b: b.ndim > 1 and a.shape[-1] == b.shape[-2])
            if j is not None:
                written.add(np.matmul, i, j)
        elif kind == "vecdot" and a.ndim:
            j = pick(lambda b: b.ndim and a.shape[-1] == b.shape[-1])
            if j is not None:
                written.add(np.vecdot, i, j)
        elif kind == "join" and a.ndim:
            axis = draw(st.integers(-a.ndim, -1))
            others = [pick(lambda b: b.ndim == a.ndim) for _ in range(draw(st.integers(1, 2)))]
            written.add(partial(joined, axis), i, *others)
        elif kind == "index":
            index = indices(draw, a.shape)
            written.add(partial(chosen, (*index, ...) if draw(st.booleans()) else index), i)
        elif kind == "turn":
            written.add(turned, i)
        elif kind == "lanes":
            written.add(partial(np.moveaxis, source=0, destination=-1), i)
        elif kind == "reshape":
            written.add(partial(reshaped, draw(st.sampled_from([(-1,), (a.size, 1), (1, *a.shape), a.shape[::-1]]))), i)
        elif kind == "copy":
            written.add(copied, i)
        elif kind == "convert":
            written.add(partial(converted, dtype), i)
        elif kind == "where":
            written.add(truth, i, pick(), pick())
        elif kind == "masked":
            written.add(masked, i, pick(lambda b: b.shape == a.shape))
        elif kind == "extremum" and a.ndim:
            written.add(partial(extremum, draw(st.sampled_from([np.maximum, np.minimum])), draw(st.integers(-a.ndim, -1))), i)
        elif kind == "broadcast":
            written.add(partial(np.broadcast_to, shape=draw(st.sampled_from(SHAPES))), i)
        elif kind == "kept":
            written.add(partial(kept, draw(st.integers(1, 3))), i)
        elif kind == "assign":
            i = pick(writable)
            if i is not None:
                index, value = (*indices(draw, written.values[i].shape), ...), draw(st.sampled_from(NUMBERS))
                if draw(st.integers(0, 4)):
                    shape = written.values[i][index].shape
                    j = pick(lambda b: np.broadcast_shapes(b.shape, shape) == shape if _broadcast(b.shape, shape) else False)
                    if j is not None:
                        written.add(partial(assigned, index), i, j, writes=True)
                else:
                    written.add(
                        partial(lambda index, value, target: assigned(index, target, value), index, value), i, writes=True
                    )
        elif kind == "in_place":
            i = pick(writable)
            if i is not None:
                shape = written.values[i].shape
                j = pick(lambda b: _broadcast(b.shape, shape) and np.broadcast_shapes(b.shape, shape) == shape)
                if j is not None:
                    written.add(partial(in_place, draw(st.sampled_from(BINARY))), i, j, writes=True)
    made = range(inputs, len(written.values))
    assume(len(made))
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=4, unique=True))
    return written, arrays, outputs


def _broadcast(one, other):
    try:
        np.broadcast_shapes(one, other)
    except ValueError:
        return False
    return True


def others(arrays, seed):
    """Other numbers in arrays that lie alike, -0.0 and 0.0 among them."""
    rng = np.random.default_rng(seed)
    for array in arrays:
        array[...] = np.where(
            rng.random(array.shape) < 0.1, np.copysign(0, rng.standard_normal(array.shape)), rng.standard_normal(array.shape)
        )


def traced_values(written, watched, tape):
    """Its values while it is recorded; no example where it writes into a result without axes, which is no array."""
    try:
        return written([tape.watch(a) for a in watched], tape)
    except TypeError as error:
        assume("into a number" not in str(error))
        raise


def assert_same_bytes(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


@pytest.fixture(params=["compiled", "call by call"], scope="module")
def machine(request):
    with pytest.MonkeyPatch.context() as context:
        if request.param != "compiled":
            context.setattr(program, "_machine", lambda: None)
        yield


@pytest.fixture(params=[5, 32768], scope="module")
def part(request):
    """How many numbers a part has."""
    with pytest.MonkeyPatch.context() as context:
        for module in (replay, memory):
            context.setattr(module, "PART", request.param)
        yield


@pytest.mark.usefixtures("machine", "part")
@settings(max_examples=300)
@given(programs())
def test_a_replay_has_the_bytes_of_the_plain_calls(case):
    written, arrays, outputs = case
    tape = Tape()
    watched = [np.array(a) for a in arrays]
    traced = traced_values(written, watched, tape)
    wanted = [traced[i] for i in outputs]
    recorded = Replay(tape, wanted)
    for seed in (1, 2, 3):
        others(watched, seed)
        plain = [np.array(a) for a in watched]
        values = written(plain)
        expected = [np.array(values[i]) for i in outputs]
        assume(all(np.isfinite(value).all() for value in (*values, *plain)))
        recorded()
        for tracer, value in zip(wanted, expected, strict=True):
            assert_same_bytes(recorded.array(tracer), value)
        for mine, value in zip(watched, plain, strict=True):
            assert_same_bytes(mine, value)


@pytest.mark.usefixtures("machine", "part")
@settings(max_examples=300)
@given(programs(in_stages=True))
def test_a_stage_is_replayed_as_often_as_one_likes(case):
    """The last of the arrays is read in stage 1 alone."""
    written, arrays, outputs = case
    tape = Tape()
    watched = [np.array(a) for a in arrays]
    traced = traced_values(written, watched, tape)
    wanted = [traced[i] for i in outputs]
    tape.stage = 1
    recorded = Replay(tape, wanted)
    for seed in (1, 2):
        others(watched, seed)
        recorded(0)
        for again in (3, 4, 5):
            others(watched[-1:], again)
            plain = [np.array(a) for a in watched]
            values = written(plain)
            expected = [np.array(values[i]) for i in outputs]
            assume(all(np.isfinite(value).all() for value in (*values, *plain)))
            recorded(1)
            for tracer, value in zip(wanted, expected, strict=True):
                assert_same_bytes(recorded.array(tracer), value)
