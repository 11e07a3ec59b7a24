"""The memory of every result of a replay. It is allocated once, and reused as soon as nothing reads its last result."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blocks.arrays import PART, Array
from blocks.tape.addresses import address_of, array_at, axes_by_stride, strides_for
from blocks.tape.placement import Placement, joined_axes
from blocks.tape.recorder import ALIGNED, Operation, Owner, Tracer

FOREVER = 2**60


class Slot(NamedTuple):
    """A piece of memory, and the first aligned address in it."""

    memory: Array
    address: int


Slots = dict[tuple[Any, ...], list[Slot]]


class Memory:
    """The arrays of the results.

    placement: which results lie in the memory of others. inputs: the results that the caller writes, whose memory is not reused.
    series: the operations in order, where operations that are computed part by part are one series.
    constants: by root, the operations that copy constants into it, once.
    transient: the results that need memory for only one part.
    """

    def __init__(
        self,
        placement: Placement,
        inputs: set[Owner],
        series: Sequence[Sequence[Operation]],
        constants: dict[Owner, list[Operation]],
        transient: set[Owner],
    ) -> None:
        self.placement, self.series, self.constants, self.transient = placement, series, constants, transient
        self._slots: dict[Owner, Slot] = {}
        self._homes: dict[Owner, tuple[Slot, tuple[int, ...]]] = {}
        self._arrays: dict[tuple[Any, ...], Array] = {}
        self._arrays_by_tracer: dict[int, Array] = {}
        self._allocate(inputs)

    def _allocate(self, inputs: set[Owner]) -> None:
        """Find memory for every result, in the order in which they are computed."""
        free: Slots = defaultdict(list)
        root = self.placement.root
        roots = [[root(tracer.owner) for tracer in (*o.tracers, o.out)] for series in self.series for o in series]
        last = _last_uses(self.series, roots, [root(owner) for owner in (*self.placement.outputs, *inputs)])
        for owner in inputs:
            self._allocate_slot(root(owner), free)
        number = 0
        for series in self.series:
            # The next part still reads what a part has read for the last time.
            unread: list[Owner] = []
            for operation in series:
                *operands, out = roots[number]
                for owner in operands:
                    # An operand that consists only of constants has no slot yet.
                    self._allocate_slot(owner, free)
                if out not in self._slots:
                    self._reuse_operand(operation, number, last)
                    self._allocate_slot(out, free)
                for owner in {*operands, out}:
                    if last[owner] == number and owner in self.transient:
                        free[self._kind(owner)].append(self._slots[owner])
                    elif last[owner] == number and not owner.exists:
                        unread.append(owner)
                number += 1
            for owner in unread:
                free[self._kind(owner)].append(self._slots[owner])
        for owner in self.placement.outputs:
            # No operation uses an output that consists only of constants, or that the caller writes.
            self._allocate_slot(root(owner), free)

    def _kind(self, root: Owner) -> tuple[Any, ...]:
        """Return the key by which memory is reused: its size and the constants in it must be the same."""
        if root in self.transient:
            return "part", root.array.itemsize
        constants = [
            (copy.out.address - root.address, copy.out.shape, copy.out.array.strides, _value(copy.operands[0]))
            for copy in self.constants.get(root, ())
        ]
        return root.array.nbytes, *constants

    def _allocate_slot(self, root: Owner, free: Slots) -> None:
        if not root.exists and root not in self._slots:
            slots = free[self._kind(root)]
            nbytes = PART * root.array.itemsize if root in self.transient else root.array.nbytes
            self._slots[root] = slots.pop() if slots else _slot(nbytes)

    def _reuse_operand(self, operation: Operation, number: int, last: dict[Owner, int]) -> None:
        """Give the result the memory of an operand that is read for the last time, where it may be overwritten."""
        out = operation.out
        root = out.owner
        if not operation.in_place or root.exists or root in self.placement.destinations or not out.is_owner():
            return
        for operand in operation.tracers:
            owner = operand.owner
            if last.get(owner) != number or owner not in self._slots or self._kind(owner) != self._kind(root):
                continue
            if any(is_row(other, out) for other in operation.tracers):
                return
            fits = operand.is_owner() and operand.array.strides == out.array.strides and operand.shape == out.shape
            others = [other for other in operation.tracers if other is not operand and self.placement.overlap(other, operand)]
            if fits and all(self.placement.same(other, operand) for other in others):
                # The slot becomes free when the result is read for the last time, not the operand.
                self._slots[root], last[owner] = self._slots[owner], FOREVER
                return

    def array(self, tracer: Tracer) -> Array:
        """Return the array that a tracer stands for."""
        # By id, since tracers have no hash. All of them live until the plan is made.
        if id(tracer) not in self._arrays_by_tracer:
            self._arrays_by_tracer[id(tracer)] = self._planned(tracer)
        return self._arrays_by_tracer[id(tracer)]

    def _planned(self, tracer: Tracer) -> Array:
        if tracer.owner.exists:
            return self.unique(tracer.array)
        home, own_strides = self._home(tracer.owner)
        view, imagined = tracer.array, tracer.owner.array
        strides: Sequence[int] = view.strides
        offset = tracer.address - tracer.owner.address
        if own_strides != imagined.strides:
            axes = joined_axes(imagined.shape, imagined.strides, own_strides)
            offset, *strides = [_real_distance(distance, axes) for distance in (offset, *strides)]
        return self._array_at(home.memory, home.address + offset, view.shape, tuple(strides), view.dtype)

    def part(self, tracer: Tracer, shape: tuple[int, ...]) -> Array:
        """Return a part of a transient result."""
        return self._array_at(*self._slots[tracer.owner], shape, tuple(strides_for(shape, tracer.itemsize)), tracer.dtype)

    def unique(self, array: Array) -> Array:
        """Return one array object for all that are equal views. NumPy is faster where an object stands twice in a call."""
        key = address_of(array), array.shape, array.strides, array.dtype, array.flags.writeable
        return self._arrays.setdefault(key, array)

    def _array_at(self, memory: Array, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> Array:
        key = address, shape, strides, dtype, True
        if key not in self._arrays:
            self._arrays[key] = array_at(address, shape, strides, dtype, memory)
        return self._arrays[key]

    def _home(self, owner: Owner) -> tuple[Slot, tuple[int, ...]]:
        """Return the memory of an owner, and its strides there."""
        if owner not in self._homes:
            array = owner.array
            if owner in self.placement.destinations:
                place, order, _ = self.placement.destinations[owner]
                axes = axes_by_stride(array)
                transposed = self.array(place).transpose(order).reshape([array.shape[axis] for axis in axes], copy=False)
                self._homes[owner] = Slot(transposed, address_of(transposed)), transposed.transpose(np.argsort(axes)).strides
            else:
                self._homes[owner] = self._slots[owner], array.strides
        return self._homes[owner]


def _last_uses(
    series: Sequence[Sequence[Operation]], roots: Sequence[Sequence[Owner]], shared_roots: Sequence[Owner]
) -> dict[Owner, int]:
    """Return the last operation that uses each root; FOREVER where another stage uses it, or the caller.

    roots: of every operation's operands and result. shared_roots: those that the caller reads or writes.
    """
    last: dict[Owner, int] = {}
    first_stages: dict[Owner, int] = {}
    for number, operation in enumerate(operation for operations in series for operation in operations):
        for root in roots[number]:
            last[root] = number if first_stages.setdefault(root, operation.stage) == operation.stage else FOREVER
    return last | dict.fromkeys(shared_roots, FOREVER)


def _slot(nbytes: int) -> Slot:
    memory = np.empty(nbytes + ALIGNED, np.uint8)
    return Slot(memory, -(-address_of(memory) // ALIGNED) * ALIGNED)


def is_row(operand: Any, out: Any) -> bool:
    """Return whether an operand is one row that broadcasts to all units of the result."""
    if getattr(operand, "shape", ()) == out.shape or out.ndim < 2:
        return False
    row = (*out.shape[:-2], 1, out.shape[-1])
    return bool(getattr(operand, "shape", ()) == row != out.shape and operand.dtype == out.dtype)


def _value(constant: Any) -> Any:
    return constant.tobytes() if isinstance(constant, np.ndarray) else constant


def _real_distance(distance: int, axes: Sequence[tuple[int, int, int]]) -> int:
    """Return the distance between two numbers in real memory, from their distance in the imagined memory of tracers."""
    if distance < 0:
        return -_real_distance(-distance, axes)
    real_distance = 0
    for _, imagined_stride, real_stride in axes:
        steps, distance = divmod(distance, imagined_stride)
        real_distance += steps * real_stride
    return real_distance + distance
