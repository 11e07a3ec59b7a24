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


def filled(index, number, target):
    target[index] = number


def over_itself(ufunc, target, operand):
    ufunc(target, operand, out=target)


def with_number(ufunc, number, first, a):
    return ufunc(number, a) if first else ufunc(a, number)


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


def where_positive(a, b, c):
    return np.where(a > 0, b, c)


def stacked(size, a):
    """A new array, partly written twice."""
    out = np.empty_like(a, shape=(size, *a.shape))
    out[...] = a
    out[0] = 1
    out[-1:] = a
    return out


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


class Draw:
    """What is drawn, step by step, on a program that grows.

    late: the place of an array that stage 0 must not read.
    """

    def __init__(self, draw, written, dtype, late=None):
        self.draw, self.written, self.dtype, self.late = draw, written, dtype, late

    def of(self, choices):
        return self.draw(st.sampled_from(choices))

    def value(self, fits=lambda value: True):
        """The place of a value; None where there is none that fits."""
        places = [i for i, value in enumerate(self.written.values) if fits(value)]
        if self.written.stage == 0 and self.late in places:
            places.remove(self.late)
        # The last ones are likelier, so that chains grow.
        return self.of(places + places[-3:]) if places else None

    def target(self):
        """The place of an array that may be written into: in stages, one of this stage."""
        written = self.written

        def fits(value):
            if not (isinstance(value, np.ndarray) and value.flags.writeable and value.dtype == self.dtype):
                return False
            return self.late is None or written.stage_of.get(written.root(value)) == written.stage

        return self.value(fits)

    def index(self, shape):
        """A slice an axis, or a number in place of the first, nothing empty."""
        parts = []
        for n in shape:
            start = self.draw(st.integers(0, n - 1))
            stop = self.draw(st.integers(start + 1, n))
            parts.append(self.of([slice(None), slice(start, stop), slice(start, stop, 2), slice(None, None, -1)]))
        if parts and self.draw(st.booleans()):
            parts[0] = self.draw(st.integers(0, shape[0] - 1))
        return tuple(parts[: self.draw(st.integers(0, len(parts)))])

    def step(self):
        """Append a step, if one is found."""
        kind = self.of(KINDS)
        i = self.target() if kind in ("assign", "fill", "in_place") else self.value()
        if i is not None:
            function, others = getattr(self, kind)(self.written.values[i])
            if None not in others:
                self.written.add(function, i, *others, writes=kind in ("assign", "fill", "in_place"))

    def binary(self, a):
        return self.of(BINARY), [self.value()]

    def number(self, a):
        return partial(with_number, self.of(BINARY), self.of(NUMBERS), self.draw(st.booleans())), []

    def unary(self, a):
        return self.of(UNARY), []

    def matmul(self, a):
        return np.matmul, [self.value(lambda b: min(a.ndim, b.ndim) > 1 and a.shape[-1] == b.shape[-2])]

    def vecdot(self, a):
        return np.vecdot, [self.value(lambda b: min(a.ndim, b.ndim) > 0 and a.shape[-1] == b.shape[-1])]

    def join(self, a):
        others = [self.value(lambda b: b.ndim == a.ndim) for _ in range(self.draw(st.integers(1, 2)))]
        return partial(joined, self.draw(st.integers(-max(a.ndim, 1), -1))), others

    def view(self, a):
        index = self.index(a.shape)
        return partial(chosen, (*index, ...) if self.draw(st.booleans()) else index), []

    def turn(self, a):
        return self.of([turned, partial(np.moveaxis, source=0, destination=-1)]), []

    def reshape(self, a):
        return partial(reshaped, self.of([(-1,), (a.size, 1), (1, *a.shape), a.shape[::-1]])), []

    def broadcast(self, a):
        return partial(np.broadcast_to, shape=self.of(SHAPES)), []

    def copy(self, a):
        return self.of([copied, partial(converted, self.dtype), partial(stacked, self.draw(st.integers(1, 3)))]), []

    def where(self, a):
        return where_positive, [self.value(), self.value()]

    def mask(self, a):
        return masked, [self.value(lambda b: b.shape == a.shape)]

    def extremum(self, a):
        axis = self.draw(st.integers(-a.ndim, -1)) if a.ndim else None
        return partial(extremum, self.of([np.maximum, np.minimum]), axis), [] if a.ndim else [None]

    def assign(self, a):
        index = (*self.index(a.shape), ...)
        return partial(assigned, index), [self.value(lambda b: broadcasts(b.shape, a[index].shape))]

    def fill(self, a):
        return partial(filled, (*self.index(a.shape), ...), self.of(NUMBERS)), []

    def in_place(self, a):
        return partial(over_itself, self.of(BINARY)), [self.value(lambda b: broadcasts(b.shape, a.shape))]


KINDS = (
    *("binary", "binary", "number", "number", "unary", "matmul", "matmul", "vecdot", "join", "join", "view", "turn", "reshape"),
    *("broadcast", "copy", "copy", "where", "mask", "extremum", "assign", "assign", "assign", "fill", "in_place", "in_place"),
)


@st.composite
def programs(draw, in_stages=False):
    """A program, the arrays that it is called with, and which of its values are wanted."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    arrays = [
        np.array(rng.standard_normal(shape).astype(dtype), order="F" if draw(st.booleans()) else "C", copy=True)
        for shape in shapes
    ]
    written = Written(arrays)
    steps = Draw(draw, written, dtype, late=len(arrays) - 1 if in_stages else None)
    second = draw(st.integers(2, 8)) if in_stages else None
    for number in range(draw(st.integers(3, 14))):
        if number == second:
            written.stage = 1
        steps.step()
    made = range(len(arrays), len(written.values))
    assume(len(made))
    return written, arrays, draw(st.lists(st.sampled_from(made), min_size=1, max_size=4, unique=True))


def broadcasts(own, shape):
    """Whether an array of its own shape fits into one of that shape."""
    try:
        return np.broadcast_shapes(own, shape) == shape
    except ValueError:
        return False


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
@settings(max_examples=60)
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
@settings(max_examples=60)
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
