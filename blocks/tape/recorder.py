"""The recorder: a computation that is written for arrays becomes a list of operations, whose memory is planned later.

A plain function is called once with tracers in place of its arrays. A `Tracer` has an array's shape and dtype, but no
numbers. Every call of a ufunc and every copy is noted on the `Tape`, and nothing is computed. An operation that cannot be noted
raises TypeError with its name. So does reading a number, which would then be the same in every replay.
"""

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from operator import attrgetter
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from blocks.arrays import Array
from blocks.tape.addresses import EVERYTHING, NOWHERE, address_of, array_at, axes_by_stride, may_change, strides_for
from blocks.tape.layout import Kind, axes_order, refuse, result_layout

ALIGNED = 64


class Owner:
    """The memory of a result, or of an array of the caller.

    array: for a result, an array without memory; else the caller's array.
    exists: whether it is the caller's array.
    is_input: whether the caller writes it before every replay.
    """

    __slots__ = ("address", "array", "exists", "is_input")

    def __init__(self, array: Array, address: int, exists: bool = False) -> None:
        self.array, self.address, self.exists, self.is_input = array, address, exists, False


class Operation:
    """out = function(*operands, **keywords).

    function: an elementwise ufunc, matmul, vecdot, a maximum's `reduce`, np.copyto (out = the one operand) or np.where.
    operands: tracers, read-only arrays, and numbers; tracers: those that are tracers.
    stage: the series of calls to which it belongs.
    in_place: whether it may write its result over an operand.
    """

    __slots__ = ("function", "in_place", "keywords", "operands", "out", "stage", "tracers")

    def __init__(
        self, function: Callable[..., Any], operands: Sequence[Any], out: "Tracer", stage: int, keywords: dict[str, Any]
    ) -> None:
        self.function, self.operands, self.out, self.stage, self.keywords = function, tuple(operands), out, stage, keywords
        self.tracers = [operand for operand in operands if isinstance(operand, Tracer)]
        self.in_place = function is np.copyto or (isinstance(function, np.ufunc) and function.signature is None)

    @property
    def elementwise(self) -> bool:
        """Whether each number of out depends only on the operands' numbers at the same place."""
        return self.in_place or self.function is np.where


class Tape:
    """The operations of one computation, in order.

    stage: the stage of the operations that are noted next. Every stage can be replayed alone, after the stages before it.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.stage = 0
        self._numbers: set[Owner] = set()
        self._size = 0

    def watch(self, array: Array) -> Any:
        """Return the tracer of an array of the caller, which every replay reads, and writes where the computation does."""
        address = address_of(array)
        return Tracer(self, Owner(array, address, exists=True), array, address)

    def input(self, shape: Sequence[int], dtype: np.dtype, order: Sequence[int] | None = None) -> Any:
        """Return the tracer of a planned array that the caller writes before every replay. order: see `new`."""
        tracer = self.new(shape, dtype, order)
        tracer.owner.is_input = True
        return tracer

    def new(self, shape: Sequence[int], dtype: np.dtype, order: Sequence[int] | None = None) -> "Tracer":
        """Return the tracer of a result. order: its axes from the longest stride to the shortest, None for C order."""
        array = np.ndarray(shape, dtype, EVERYTHING, self._size, strides_for(shape, dtype.itemsize, order))
        address = NOWHERE + self._size
        self._size += -(-array.nbytes // ALIGNED) * ALIGNED
        return Tracer(self, Owner(array, address), array, address)

    def note(self, function: Callable[..., Any], operands: Sequence[Any], out: "Tracer", **keywords: Any) -> "Tracer":
        """Append an operation and return `out`. Raises TypeError for an operation that cannot be recorded."""
        operands = [operand if type(operand) is Tracer else self._operand(operand) for operand in operands]
        if any(type(operand) is Tracer and operand.tape is not self for operand in (*operands, out)):
            raise TypeError("a tracer of another recording cannot be recorded")
        if not out.array.flags.writeable:
            refuse(f"{function.__name__} into a read-only array")
        if not out.owner.array.ndim and not out.owner.exists:
            # A result without axes is a number in NumPy, and a number that is stored elsewhere would keep its old value.
            if out.owner in self._numbers:
                refuse(f"{function.__name__} into a number")
            self._numbers.add(out.owner)
        self.operations.append(Operation(function, operands, out, self.stage, keywords))
        return out

    def _operand(self, operand: Any) -> Any:
        """Return an operand as it is noted. An array that may change is watched."""
        if isinstance(operand, Tracer | np.generic | int | float | complex):
            return operand
        array = np.asarray(operand)
        return self.watch(array) if may_change(array) else array

    def call(self, ufunc: np.ufunc, operands: Sequence[Any], out: "Tracer | None") -> "Tracer":
        """Note a call of a ufunc. Its result has the layout that NumPy would give it."""
        shape, dtype, order = result_layout(ufunc, tuple(map(_kind, operands)))
        if out is None:
            return self.note(ufunc, operands, self.new(shape, dtype, order))
        if (out.shape, out.dtype) != (shape, dtype):
            refuse(f"{ufunc.__name__} of {dtype} {shape} into an array of {out.dtype} {out.shape}")
        if ufunc.signature is None and not _read_elsewhere(operands, out):
            return self.note(ufunc, operands, out)
        self.note(np.copyto, [self.note(ufunc, operands, self.new(shape, dtype, order))], out)
        return out

    def copy(self, destination: "Tracer", source: Any) -> None:
        """Note a copy of the source to the destination."""
        shape, number = np.shape(_array(source)), type(source) in (int, float)
        dtype = np.result_type(source, destination.dtype) if number else np.asarray(_array(source)).dtype
        if np.broadcast_shapes(shape, destination.shape) != destination.shape or not np.can_cast(
            dtype, destination.dtype, "same_kind"
        ):
            refuse(f"a copy of {dtype} {shape} into an array of {destination.dtype} {destination.shape}")
        if _read_elsewhere([source], destination):
            source = source.copy()
        self.note(np.copyto, [source], destination)


def needed_operations(operations: Sequence[Operation], outputs: Iterable[Owner]) -> list[Operation]:
    """Return the operations that compute the outputs, and those that write to arrays of the caller."""
    needed_owners, selected = set(outputs), []
    for operation in reversed(operations):
        if operation.out.owner.exists or operation.out.owner in needed_owners:
            needed_owners.update(tracer.owner for tracer in operation.tracers)
            selected.append(operation)
    return selected[::-1]


def _array(operand: Any) -> Any:
    return operand.array if isinstance(operand, Tracer) else operand


def _kind(operand: Any) -> Kind:
    """Return an operand's dtype, shape and strides; for a Python number its type."""
    if type(operand) in (int, float):
        return type(operand), (), ()
    array = np.asarray(_array(operand))
    return array.dtype, array.shape, array.strides


def _read_elsewhere(operands: Sequence[Any], out: "Tracer") -> bool:
    """Return whether an operation also reads the memory it writes, but at other places. NumPy then silently copies it first."""

    def overlaps(operand: "Tracer") -> bool:
        one_memory = operand.owner is out.owner or (operand.owner.exists and out.owner.exists)
        return one_memory and not lies_like(operand, out) and np.shares_memory(operand.array, out.array)

    return any(overlaps(operand) for operand in map(out.tape._operand, operands) if isinstance(operand, Tracer))


def lies_like(one: "Tracer", other: "Tracer") -> bool:
    """Return whether two views of the same memory start at the same entry, and have the same shape and strides."""
    return (one.address, one.shape, one.array.strides) == (other.address, other.shape, other.array.strides)


class Tracer(NDArrayOperatorsMixin):
    """Stands for an array while a computation is recorded.

    owner: the owner of its memory. The tracer is all of that memory, or a view of it.
    array: an array with the same shape, dtype and strides.
    """

    __slots__ = ("address", "array", "owner", "tape")

    def __init__(self, tape: Tape, owner: Owner, array: Array, address: int | None = None) -> None:
        self.tape, self.owner, self.array = tape, owner, array
        self.address = address_of(array) if address is None else address

    shape, dtype, ndim, size, itemsize = (
        property(attrgetter(f"array.{name}")) for name in ("shape", "dtype", "ndim", "size", "itemsize")
    )

    def is_owner(self) -> bool:
        """Return whether it is all of its owner with the same strides, in any dtype."""
        other = self.owner.array
        return (self.address, self.shape, self.array.strides) == (self.owner.address, other.shape, other.strides)

    def _view(self, array: Array) -> "Tracer":
        return Tracer(self.tape, self.owner, array)

    @property
    def mT(self) -> "Tracer":
        """The view with the last two axes exchanged."""
        return self._view(self.array.mT)

    def reshape(self, *shape: int) -> "Tracer":
        """Return a view. Raises ValueError where it would have to be a copy."""
        return self._view(self.array.reshape(*shape, copy=False))

    def view(self, dtype: Any) -> "Tracer":
        """Return a view of the same bits as another dtype of the same size."""
        if np.dtype(dtype).itemsize != self.itemsize:
            refuse(f"a view as {np.dtype(dtype)}")
        return self._view(self.array.view(dtype))

    def astype(self, dtype: Any, copy: bool = True) -> "Tracer":
        """Return a copy in that dtype. Without `copy`, return the tracer itself where it already has the dtype."""
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        converted = self.tape.new(self.shape, np.dtype(dtype), axes_by_stride(self.array))
        self.tape.copy(converted, self)
        return converted

    def copy(self) -> "Tracer":
        """Return a copy in C order."""
        copied = self.tape.new(self.shape, self.dtype)
        self.tape.note(np.copyto, [self], copied)
        return copied

    def __getitem__(self, index: Any) -> "Tracer":
        place = self._place(index)
        # A single number is a copy, unless an ellipsis asks for an array without axes.
        is_number = not place.ndim and Ellipsis not in (index if isinstance(index, tuple) else (index,))
        return place.copy() if is_number else place

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tape.copy(self._place(index), value)

    def _place(self, index: Any) -> "Tracer":
        parts = index if isinstance(index, tuple) else (index,)
        for part in parts:
            if not (part is None or part is Ellipsis or type(part) in (slice, int)):
                refuse(f"an index of type {type(part).__name__}")
        return self._view(self.array[parts if Ellipsis in parts else (*parts, ...)])

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *operands: Any, out: Any = None, **keywords: Any) -> "Tracer":
        if method == "reduce" and ufunc in (np.maximum, np.minimum) and out is None and keywords.keys() == {"axis", "keepdims"}:
            return self._extremum(ufunc, **keywords)
        if method != "__call__" or keywords or ufunc.nout != 1:
            refuse(f"{ufunc.__name__}{'' if method == '__call__' else '.' + method} with {', '.join(keywords) or 'no keywords'}")
        target = out[0] if isinstance(out, tuple) else out
        if target is not None and not isinstance(target, Tracer):
            refuse(f"{ufunc.__name__} into an array that is not watched")
        return self.tape.call(ufunc, operands, target)

    def _extremum(self, ufunc: np.ufunc, axis: Any, keepdims: Any) -> "Tracer":
        if type(axis) is not int or keepdims is not True or not -self.ndim <= axis < self.ndim:
            refuse(f"{ufunc.__name__}.reduce with axis={axis} and keepdims={keepdims}")
        shape = list(self.shape)
        shape[axis] = 1
        out = self.tape.new(shape, self.dtype, axes_by_stride(self.array))
        return self.tape.note(ufunc.reduce, [self], out, axis=axis, keepdims=True)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in FUNCTIONS:
            refuse(f"np.{function.__name__}")
        try:
            signature(FUNCTIONS[function]).bind(self.tape, *args, **kwargs)
        except TypeError:
            refuse(f"np.{function.__name__} of {len(args)} arguments with {', '.join(kwargs) or 'no keywords'}")
        return FUNCTIONS[function](self.tape, *args, **kwargs)

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        refuse("an array made from a recorded one")

    def __bool__(self) -> NoReturn:
        refuse("a branch on a recorded number")

    def __float__(self) -> NoReturn:
        refuse("a number read from a recorded array")

    __int__ = __index__ = __complex__ = __float__

    def __iter__(self) -> NoReturn:
        refuse("a loop over a recorded array")

    def __getattr__(self, name: str) -> NoReturn:
        # Python and NumPy look up optional methods, and go on without them.
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(f"the array's {name}")


def _concatenate(tape: Tape, arrays: Sequence[Any], axis: int = 0) -> Tracer:
    """Note that the arrays are copied one behind the other into a new array, and return its tracer."""
    shape = list(_array(arrays[0]).shape)
    shape[axis] = sum(_array(array).shape[axis] for array in arrays)
    pieces = [np.asarray(_array(array)) for array in arrays]
    strides = [[0 if n == 1 else stride for n, stride in zip(piece.shape, piece.strides, strict=True)] for piece in pieces]
    order = axes_order(array_at(NOWHERE, shape, steps, piece.dtype) for steps, piece in zip(strides, pieces, strict=True))
    joined = tape.new(shape, np.result_type(*pieces), order)
    end = 0
    for array in arrays:
        start, end = end, end + _array(array).shape[axis]
        place: list[slice] = [slice(None)] * len(shape)
        place[axis] = slice(start, end)
        joined[tuple(place)] = array
    return joined


def _where(tape: Tape, condition: Any, x: Any, y: Any) -> Tracer:
    operands = [_array(operand) for operand in (condition, x, y)]
    shape = np.broadcast_shapes(*(np.shape(operand) for operand in operands))
    if operands[0].dtype != bool:
        refuse(f"np.where with a condition of {operands[0].dtype}")
    return tape.note(np.where, [condition, x, y], tape.new(shape, np.result_type(*operands[1:]), axes_order(operands)))


def _copyto(tape: Tape, destination: Any, source: Any) -> None:
    if not isinstance(destination, Tracer):
        refuse("np.copyto into an array that is not watched")
    tape.copy(destination, source)


def _empty_like(tape: Tape, prototype: Tracer, dtype: Any = None, shape: Any = None) -> Tracer:
    return tape.new(prototype.shape if shape is None else shape, prototype.dtype if dtype is None else np.dtype(dtype))


def _of_views(function: Callable[..., Array]) -> Callable[..., Tracer]:
    def view(tape: Tape, tracer: Tracer, *args: Any, **kwargs: Any) -> Tracer:
        return Tracer(tape, tracer.owner, function(tracer.array, *args, **kwargs))

    return view


# What these functions of NumPy do with tracers. All others are refused.
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    np.concatenate: _concatenate,
    np.where: _where,
    np.empty_like: _empty_like,
    np.copyto: _copyto,
    np.ones_like: lambda tape, prototype: np.ones(prototype.shape, prototype.dtype),
    np.broadcast_to: _of_views(np.broadcast_to),
    np.moveaxis: _of_views(np.moveaxis),
    np.expand_dims: _of_views(np.expand_dims),
}
