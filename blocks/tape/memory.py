"""Where every result of a plan lies: memory that is made once, and used again as soon as nobody reads what it held."""

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
    """Memory, and the first address in it that is aligned."""

    memory: Array
    address: int


Slots = dict[tuple[Any, ...], list[Slot]]


class Memory:
    """The arrays of the results.

    placement: who lies in whom. inputs, outputs: whose memory is nobody else's.
    series: the operations in order, those together that are made part by part.
    constants: by root, what is copied into it once for all.
    transient: results of which one part at a time is needed.
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
        self._allocate(inputs)

    def _allocate(self, inputs: set[Owner]) -> None:
        """Find memory for every result, in the order in which they are computed."""
        free: Slots = defaultdict(list)
        root = self.placement.root
        roots = [[root(tracer.owner) for tracer in (*o.tracers, o.out)] for series in self.series for o in series]
        last = self._last_uses(roots, inputs)
        for owner in inputs:
            self._give(root(owner), free)
        number = 0
        for series in self.series:
            # What a part has read for the last time, the next part still reads.
            unread: list[Owner] = []
            for operation in series:
                *operands, out = roots[number]
                for owner in operands:
                    # Of what is put together of constants alone.
                    self._give(owner, free)
                if out not in self._slots:
                    self._give_over(operation, number, last)
                    self._give(out, free)
                for owner in {*operands, out}:
                    if last[owner] == number and owner in self.transient:
                        free[self._kind(owner)].append(self._slots[owner])
                    elif last[owner] == number and not owner.exists:
                        unread.append(owner)
                number += 1
            for owner in unread:
                free[self._kind(owner)].append(self._slots[owner])
        for owner in self.placement.outputs:
            # What no operation touches: constants alone, or what the caller writes.
            self._give(root(owner), free)

    def _last_uses(self, roots: Sequence[Sequence[Owner]], inputs: set[Owner]) -> dict[Owner, int]:
        """The last operation that touches each root; none is for what another stage reads, any number of times."""
        operations = [operation for series in self.series for operation in series]
        last: dict[Owner, int] = {}
        made: dict[Owner, int] = {}
        for number, operation in enumerate(operations):
            for root in roots[number]:
                last[root] = number if made.setdefault(root, operation.stage) == operation.stage else FOREVER
        for owner in (*self.placement.outputs, *inputs):
            last[self.placement.root(owner)] = FOREVER
        return last

    def _kind(self, root: Owner) -> tuple[Any, ...]:
        """What memory has to be alike in to be used again: its size, and the constants in it."""
        if root in self.transient:
            return "part", root.array.itemsize
        constants = [
            (
                operation.out.address - root.address,
                operation.out.shape,
                operation.out.array.strides,
                _value(operation.operands[0]),
            )
            for operation in self.constants.get(root, ())
        ]
        return root.array.nbytes, *constants

    def _give(self, root: Owner, free: Slots) -> None:
        if not root.exists and root not in self._slots:
            slots = free[self._kind(root)]
            nbytes = PART * root.array.itemsize if root in self.transient else root.array.nbytes
            self._slots[root] = slots.pop() if slots else _slot(nbytes)

    def _give_over(self, operation: Operation, number: int, last: dict[Owner, int]) -> None:
        """Give the result the memory of an operand that is read for the last time, where it may be written over."""
        out = operation.out
        root = out.owner
        if not operation.in_place or root.exists or root in self.placement.destinations or not out.is_owner():
            return
        if any(is_row(operand, out) for operand in operation.tracers):
            return
        for operand in operation.tracers:
            owner = operand.owner
            if last.get(owner) != number or owner not in self._slots or self._kind(owner) != self._kind(root):
                continue
            alike = operand.is_owner() and operand.array.strides == out.array.strides and operand.shape == out.shape
            if alike and all(self.placement.same(o, operand) for o in operation.tracers if self.placement.overlap(o, operand)):
                # The slot is free again when the result is no longer read.
                self._slots[root], last[owner] = self._slots[owner], FOREVER
                return

    def array(self, tracer: Tracer) -> Array:
        """The array that a tracer stands for."""
        if tracer.owner.exists:
            return self.unique(tracer.array)
        home, own_strides = self._home(tracer.owner)
        view, imagined = tracer.array, tracer.owner.array
        strides: Sequence[int] = view.strides
        offset = tracer.address - tracer.owner.address
        if own_strides != imagined.strides:
            axes = joined_axes(imagined.shape, imagined.strides, own_strides)
            offset, *strides = [_real_distance(distance, axes) for distance in (offset, *strides)]
        return self._at(home.memory, home.address + offset, view.shape, tuple(strides), view.dtype)

    def part(self, tracer: Tracer, shape: tuple[int, ...]) -> Array:
        """A part of a transient result."""
        return self._at(*self._slots[tracer.owner], shape, tuple(strides_for(shape, tracer.itemsize)), tracer.dtype)

    def unique(self, array: Array) -> Array:
        """The same array for all that stand for the same numbers: NumPy is quicker with one that stands twice in a call."""
        key = address_of(array), array.shape, array.strides, array.dtype, array.flags.writeable
        return self._arrays.setdefault(key, array)

    def _at(self, memory: Array, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> Array:
        key = address, shape, strides, dtype, True
        if key not in self._arrays:
            self._arrays[key] = array_at(address, shape, strides, dtype, memory)
        return self._arrays[key]

    def _home(self, owner: Owner) -> tuple[Slot, tuple[int, ...]]:
        """Where an owner lies, and its strides."""
        if owner not in self._homes:
            array = owner.array
            if owner in self.placement.destinations:
                place, order, _ = self.placement.destinations[owner]
                axes = axes_by_stride(array)
                turned = self.array(place).transpose(order).reshape([array.shape[axis] for axis in axes], copy=False)
                self._homes[owner] = Slot(turned, address_of(turned)), turned.transpose(np.argsort(axes)).strides
            else:
                self._homes[owner] = self._slots[owner], array.strides
        return self._homes[owner]


def _slot(nbytes: int) -> Slot:
    memory = np.empty(nbytes + ALIGNED, np.uint8)
    return Slot(memory, -(-address_of(memory) // ALIGNED) * ALIGNED)


def is_row(operand: Any, out: Any) -> bool:
    """Whether an operand is one row of the result's shape, for all units."""
    if getattr(operand, "shape", ()) == out.shape or out.ndim < 2:
        return False
    row = (*out.shape[:-2], 1, out.shape[-1])
    return bool(getattr(operand, "shape", ()) == row != out.shape and operand.dtype == out.dtype)


def _value(constant: Any) -> Any:
    return constant.tobytes() if isinstance(constant, np.ndarray) else constant


def _real_distance(distance: int, axes: Sequence[tuple[int, int, int]]) -> int:
    """A distance between imagined numbers as one between the real ones."""
    if distance < 0:
        return -_real_distance(-distance, axes)
    real = 0
    for _, imagined_stride, real_stride in axes:
        steps, distance = divmod(distance, imagined_stride)
        real += steps * real_stride
    return real + distance
