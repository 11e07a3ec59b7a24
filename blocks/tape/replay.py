"""The replay: a tape's operations as calls on arrays that are planned once.

- An operation that no output needs is left out.
- A result that is copied as a whole is computed at the place of the copy, see `placement`.
- Memory is reused, see `memory`.
- A long series of elementwise operations works on a part of the numbers at a time, which stays in the processor's cache.

A replay makes the calls that the plain function would make, on the same numbers, and has the same bits. The next replay
overwrites its results.
"""

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from blocks.arrays import PART, Array, Call
from blocks.tape.memory import Memory, is_row
from blocks.tape.placement import Placement
from blocks.tape.program import joined, program
from blocks.tape.recorder import Operation, Owner, Tape, Tracer, needed_operations


class Replay:
    """A recorded computation in planned arrays.

    tape: the operations. The tape is empty afterwards.
    outputs: the tracers of the arrays that the caller reads after a replay, or writes before it. The caller's own arrays are
        always written.
    """

    def __init__(self, tape: Tape, outputs: Sequence[Any]) -> None:
        stages = self._plan(tape, outputs)
        # Tracers and operations refer to each other, which would keep them in memory.
        tape.operations.clear()
        self.stages = [program(calls) for calls in stages]
        self.calls = joined([call for stage in self.stages for call in stage])

    def _plan(self, tape: Tape, outputs: Sequence[Any]) -> list[list[Call]]:
        """Return the calls of every stage, in planned memory."""
        owners = {output.owner for output in outputs}
        operations = sorted(needed_operations(tape.operations, owners), key=lambda operation: operation.stage)
        inputs = {tracer.owner for operation in operations for tracer in operation.tracers if tracer.owner.is_input}
        placement = Placement(operations, owners)
        operations, constants = _split_constants(placement)
        series = _series(operations, placement)
        memory = Memory(placement, inputs, series, constants, _transient(series, placement))
        for constant in (constant for series in constants.values() for constant in series):
            np.copyto(memory.array(constant.out), constant.operands[0])
        stages: list[list[Call]] = [[] for _ in range(tape.stage + 1)]
        for part in series:
            stages[part[0].stage] += _calls_in_parts(part, memory)
        self._results = [(output, memory.array(output)) for output in outputs]
        return stages

    def __call__(self, stage: int | None = None) -> None:
        """Replay one stage, or all stages."""
        for call in self.calls if stage is None else self.stages[stage]:
            call()

    def array(self, output: Any) -> Array:
        """Return the array of an output. output: its tracer."""
        return next(array for tracer, array in self._results if tracer is output)


def _calls_in_parts(series: Sequence[Operation], memory: Memory) -> list[Call]:
    shape = series[0].out.shape
    calls: list[Call] = []
    for index in _parts(shape) if series[0].elementwise else [(...,)]:
        for operation in series:
            operands = [_part(operand, index, shape, memory) for operand in operation.operands]
            calls += _calls(operation, operands, _part(operation.out, index, shape, memory))
    return calls


def _part(operand: Any, index: tuple[Any, ...], shape: tuple[int, ...], memory: Memory) -> Any:
    """Return the part of an operand at an index of the result's shape, to which the operand broadcasts."""
    if isinstance(operand, Tracer):
        if operand.owner in memory.transient:
            return memory.part(operand, np.broadcast_to(0, shape)[index].shape)
        operand = memory.array(operand)
    # An index turns an array without axes into a number, which would stay the same in every replay.
    if index == (...,) or not (isinstance(operand, np.ndarray) and operand.ndim):
        return operand
    own_index = index[len(shape) - operand.ndim :] if operand.ndim < len(shape) else index
    place = [slice(None) if n == 1 else part for n, part in zip(operand.shape, own_index, strict=False)]
    return memory.unique(operand[tuple(place)])


def _split_constants(placement: Placement) -> tuple[list[Operation], dict[Owner, list[Operation]]]:
    """Return the operations, and separately, by result, the copies of constants that nothing overwrites. They are made once."""
    operations: list[Operation] = []
    constants: dict[Owner, list[Operation]] = defaultdict(list)
    writes: dict[Owner, list[Operation]] = defaultdict(list)
    for operation in placement.operations:
        writes[placement.root(operation.out.owner)].append(operation)
    for operation in placement.operations:
        out = operation.out
        is_fixed = operation.function is np.copyto and not operation.tracers
        is_own = placement.root(out.owner) is out.owner and not out.owner.exists
        other_writes = (other for other in writes[out.owner] if other is not operation)
        if is_fixed and is_own and not any(placement.overlap(other.out, out) for other in other_writes):
            constants[out.owner].append(operation)
        else:
            operations.append(operation)
    return operations, constants


def _series(operations: Sequence[Operation], placement: Placement) -> list[list[Operation]]:
    """Return the operations in order, as series. Consecutive elementwise operations on many numbers are one series."""
    series: list[list[Operation]] = []
    for operation in operations:
        if series and _fits_behind(series[-1], operation, placement):
            series[-1].append(operation)
        else:
            series.append([operation])
    return series


def _fits_behind(series: Sequence[Operation], operation: Operation, placement: Placement) -> bool:
    """Return whether an operation can be computed part by part with a series: each part reads only its own numbers."""
    first, out = series[0], operation.out
    same_form = first.elementwise and operation.elementwise and first.stage == operation.stage
    if not (same_form and out.size > PART and out.shape == first.out.shape):
        return False
    pairs = [(earlier.out, tracer) for earlier in series for tracer in (*operation.tracers, out)]
    pairs += [(tracer, out) for earlier in series for tracer in earlier.tracers]
    return all(placement.same(one, other) for one, other in pairs if placement.overlap(one, other))


def _transient(series: Sequence[Sequence[Operation]], placement: Placement) -> set[Owner]:
    """Return the results that are written and read in only one series. They need memory for only one part."""
    used: dict[Owner, int] = {}
    permanent = {*placement.outputs, *placement.destinations, *(place.tracer.owner for place in placement.destinations.values())}
    for number, operations in enumerate(series):
        for tracer in (tracer for operation in operations for tracer in (*operation.tracers, operation.out)):
            local = used.setdefault(tracer.owner, number) == number and len(operations) > 1
            if not local or tracer.owner.exists or tracer.shape != operations[0].out.shape or not tracer.array.flags.c_contiguous:
                permanent.add(tracer.owner)
    return used.keys() - permanent


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the indices of parts with at most PART numbers, each of whole rows where these are short enough."""
    row_size = prod(shape[1:])
    if not shape or shape[0] * row_size <= PART:
        yield (...,)
        return
    rows = max(1, PART // row_size)
    for start in range(0, shape[0], rows):
        for inner in _parts(shape[1:]) if row_size > PART else [()]:
            yield (slice(start, start + rows), *inner)


def _calls(operation: Operation, operands: Sequence[Any], out: Array) -> list[Call]:
    """Return the calls that write the operation's result to `out`, in a faster form with the same bits where there is one."""
    function = operation.function
    if function is np.where:
        condition, x, y = operands
        return [partial(np.copyto, out, y), partial(np.copyto, out, x, where=condition)]
    if function is np.copyto:
        return [partial(np.copyto, out, *operands)]
    if function is np.matmul:
        # Two matrices are multiplied by `dot`, whose call takes half a microsecond less.
        left, right = operands
        single = out.flags.c_contiguous and all(operand.ndim == 2 and _has_rows(operand) for operand in (left, right))
        return [partial(left.dot, right, out) if single else partial(np.matmul, left, right, out)]
    if function is np.vecdot:
        left, right = operands
        single = 1 < left.size == right.size == left.shape[-1] and min(left.strides[-1], right.strides[-1]) > 0
        return [
            partial(left.reshape(-1).dot, right.reshape(-1), out.reshape(())) if single else partial(function, left, right, out)
        ]
    if isinstance(function, np.ufunc):
        return _elementwise_calls(function, operands, out)
    return [partial(function, *operands, **operation.keywords, out=out)]


def _has_rows(matrix: Array) -> bool:
    """Return whether `dot` and `matmul` have the same bits: BLAS reads the matrix without a copy, and it is no single number."""
    return matrix.size > 1 and min(matrix.strides) == matrix.itemsize


# The Python numbers that take an array's dtype, by its kind. With bool arrays, NumPy gives an int its own integer type.
NUMBERS = {"f": (int, float), "i": (int,), "u": (int,)}


def _elementwise_calls(ufunc: np.ufunc, operands: Sequence[Any], out: Array) -> list[Call]:
    if ufunc is np.negative and not all(array.flags.c_contiguous for array in (*operands, out)):
        # NumPy 2.4's loop gives wrong numbers for some strides, for example from every fourth float to every second one.
        ufunc, operands = np.multiply, [*operands, -1]
    # NumPy's maximum with an array is twice as fast as with one number.
    is_extremum = ufunc in (np.maximum, np.minimum)
    shape = out.shape if is_extremum else ()
    dtype = next(operand.dtype for operand in operands if isinstance(operand, np.ndarray))
    numbers = NUMBERS.get(dtype.kind, ())
    operands = [_full(operand, shape, dtype) if type(operand) in numbers else operand for operand in operands]
    calls: list[Call] = []
    for operand in operands:
        if is_row(operand, out) and not any(np.may_share_memory(other, out) for other in operands):
            # Copying a row to every unit takes less time than broadcasting it.
            calls = [partial(np.copyto, out, operand)]
            operands = [out if other is operand else other for other in operands]
    # A keyword takes time, but NumPy's maximum warns without it.
    return [*calls, partial(ufunc, *operands, out=out) if is_extremum else partial(ufunc, *operands, out)]


# The arrays of `_full`, which calls on arrays of one shape share, as long as one of them exists.
CONSTANTS: WeakValueDictionary[tuple[Any, ...], Array] = WeakValueDictionary()


def _full(value: float, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Return a read-only array that is full of `value`, the same one at every call."""
    key = repr(value), shape, dtype
    array = CONSTANTS.get(key)
    if array is None:
        array = CONSTANTS[key] = np.full(shape, value, dtype)
        array.flags.writeable = False
    return array


@contextmanager
def collector_off() -> Iterator[None]:
    """Within this context, Python's garbage collector does not run.

    A recording and its plan are many objects, but no garbage. Every few hundred new objects the collector would start, and
    sometimes search all objects of the process.
    """
    was_on = gc.isenabled()
    try:
        # Another thread, within this context, will turn on what it has turned off.
        if was_on:
            gc.disable()
        yield
    finally:
        if was_on:
            gc.enable()


_REPLAY = True


@contextmanager
def replay_off() -> Iterator[None]:
    """Within this context, every call is made as it is written and none is recorded. It helps to find an error, and in tests."""
    global _REPLAY
    was_on, _REPLAY = _REPLAY, False
    try:
        yield
    finally:
        _REPLAY = was_on


def replay_is_on() -> bool:
    """Return whether computations are recorded and replayed."""
    return _REPLAY
