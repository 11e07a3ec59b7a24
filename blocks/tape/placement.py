"""The placement of results: a result that is copied can be computed at the place of the copy, which is then left out."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blocks.tape.addresses import axes_by_stride
from blocks.tape.recorder import Operation, Owner, Tracer, lies_like


class Destination(NamedTuple):
    """The place where a result is computed: the memory of `tracer`, with the axes in that order. source: the whole result."""

    tracer: Tracer
    order: list[int]
    source: Tracer


# A note that operation `number` reads or writes a tracer: (number, tracer, whether it writes).
Touch = tuple[int, Tracer, bool]


class Destinations:
    """The results that are computed in the memory of another result. destinations: by the results' owners."""

    def __init__(self) -> None:
        self.destinations: dict[Owner, Destination] = {}

    def root(self, owner: Owner) -> Owner:
        """Return the owner whose memory it is in which an owner lies."""
        while owner in self.destinations:
            owner = self.destinations[owner].tracer.owner
        return owner

    def _key(self, owner: Owner) -> Owner | None:
        """Return the root, or None for all arrays of the caller, which may be views of each other."""
        root = self.root(owner)
        return None if root.exists else root

    def overlap(self, one: Tracer, other: Tracer) -> bool:
        """Return whether both have a number in common."""
        while one.owner is not other.owner and one.owner in self.destinations:
            one = self.destinations[one.owner].tracer
        while one.owner is not other.owner and other.owner in self.destinations:
            other = self.destinations[other.owner].tracer
        same = one.owner is other.owner or (one.owner.exists and other.owner.exists)
        return same and np.shares_memory(one.array, other.array)

    def same(self, one: Tracer, other: Tracer) -> bool:
        """Return whether both are the same numbers with the same strides."""
        return lies_like(self._at_destination(one), self._at_destination(other))

    def _at_destination(self, tracer: Tracer) -> Tracer:
        while (destination := self.destinations.get(tracer.owner)) and lies_like(tracer, destination.source):
            tracer = destination.tracer
        return tracer


class Placement(Destinations):
    """The results of operations that have a destination.

    - A result that is copied as a whole to a place, such as the next block's a_prev above its row of ones, is computed there.
    - The operand that an elementwise operation with such a result reads for the last time is computed there, too.

    operations: all operations but the copies that are left out.
    """

    def __init__(self, operations: Sequence[Operation], outputs: set[Owner]) -> None:
        super().__init__()
        self.outputs = outputs
        self._numbered = dict(enumerate(operations))
        self._dropped: set[int] = set()
        self._first: dict[Owner, int] = {}
        self._last: dict[Owner, int] = {}
        self._touches: dict[Owner | None, list[Touch]] = defaultdict(list)
        for number, operation in self._numbered.items():
            self._first.setdefault(operation.out.owner, number)
            for tracer in (*operation.tracers, operation.out):
                owner = tracer.owner
                self._last[owner] = number
                # As `_key`, while no result has a destination yet.
                self._touches[None if owner.exists else owner].append((number, tracer, tracer is operation.out))
        for number, operation in self._numbered.items():
            self._place_copied(number, operation)
        for number, operation in reversed(self._numbered.items()):
            if number not in self._dropped:
                self._place_operand(number, operation)
        self.operations = [operation for number, operation in self._numbered.items() if number not in self._dropped]
        # The touches take as much memory as a small network's arrays.
        self._touches.clear()

    def _place_copied(self, number: int, copy: Operation) -> None:
        """Place a result that is copied as a whole where its copy is, and leave the copy out."""
        source = copy.operands[0]
        if copy.function is not np.copyto or not isinstance(source, Tracer):
            return
        start = -1 if source.owner.is_input else self._first.get(source.owner, -1)
        order = axes_by_stride(source.array)
        fits = self._fits(source, copy.out, order) and self._is_free(copy.out, start, number, for_good=True)
        changes = any(writes and other > number for other, _, writes in self._touches[source.owner])
        if changes or not fits or self._are_multiplied(source, copy.out):
            return
        if not self.root(copy.out.owner).exists if start < 0 else self._may_write_over(start, number, copy.out):
            self._dropped.add(number)
            self._place(source, copy.out, order)

    def _place_operand(self, number: int, operation: Operation) -> None:
        """Place the operand that an elementwise operation reads last at the destination of its result."""
        out = operation.out
        if not operation.in_place or out.owner not in self.destinations or not out.is_owner():
            return
        for operand in operation.tracers:
            start = self._first.get(operand.owner, number)
            is_last = start < number == self._last[operand.owner] and operand.owner not in self.outputs
            if not (is_last and operand.is_owner() and self._fits(operand, out, order := axes_by_stride(operand.array))):
                continue
            other_operands = [other for other in operation.tracers if other.owner is not operand.owner]
            if any(self.overlap(other, out) for other in other_operands) or not self._is_free(out, start, number, for_good=False):
                continue
            if self._may_write_over(start, number, out):
                self._place(operand, out, order)
                return

    def _place(self, source: Tracer, place: Tracer, order: list[int]) -> None:
        touches = self._touches.pop(source.owner, [])
        self.destinations[source.owner] = Destination(place, order, source)
        self._touches[self._key(place.owner)] += touches
        # A touch of the result is now a touch of the place.
        first, last = self._first.get(source.owner, -1), self._last[source.owner]
        self._first[place.owner] = min(first, self._first.get(place.owner, first))
        self._last[place.owner] = max(last, self._last[place.owner])
        if source.owner in self.outputs:
            self.outputs.add(place.owner)

    def _fits(self, source: Tracer, place: Tracer, order: list[int]) -> bool:
        """Return whether the source's owner can lie in the place with the same order of its numbers."""
        owner = source.owner
        if owner.exists or owner in self.destinations or owner is place.owner or source.dtype != place.dtype:
            return False
        if source.array.nbytes != owner.array.nbytes or source.shape != place.shape:
            return False
        # Every number must be read once and in order: reversed or repeated, it would have another place.
        if any(stride <= 0 for n, stride in zip(source.shape, source.array.strides, strict=True) if n > 1):
            return False
        steps = [stride for n, stride in zip(place.shape, place.array.strides, strict=True) if n > 1]
        if min(map(abs, steps), default=place.itemsize) > place.itemsize and any(map(self._is_multiplied, self._touches[owner])):
            return False
        turned = place.array.transpose(order)
        # BLAS uses other kernels for a matrix in the other order, which may round differently.
        if list(turned.strides) != sorted(turned.strides, reverse=True):
            return False
        imagined = owner.array.transpose(axes_by_stride(owner.array))
        try:
            real = turned.reshape(imagined.shape, copy=False)
        except ValueError:
            return False
        axes = joined_axes(imagined.shape, imagined.strides, real.strides)
        if len(axes) < 2:
            return True
        # The caller may read any view of an output.
        return owner not in self.outputs and all(self._has_view(owner, tracer, axes) for _, tracer, _ in self._touches[owner])

    def _is_multiplied(self, touch: Touch) -> bool:
        """Return whether a product reads it, or writes it as a matrix: with gaps between numbers, BLAS may round differently."""
        number, _, writes = touch
        function = self._numbered[number].function
        return function is np.matmul or (function is np.vecdot and not writes)

    def _has_view(self, owner: Owner, tracer: Tracer, axes: Sequence[tuple[int, int, int]]) -> bool:
        """Return whether a view of an owner is still a view with gaps between the rows: no axis may go on into the next row."""
        if tracer.owner is not owner:
            # This is a result that lies in the owner, at a place that is checked itself.
            return tracer.is_owner()
        first = last = np.array(_digits(tracer.address - owner.address, axes))
        for n, stride in zip(tracer.shape, tracer.array.strides, strict=True):
            steps = (n - 1) * np.array(_digits(abs(stride), axes))
            first, last = (first - steps, last) if stride < 0 else (first, last + steps)
        return bool((first >= 0).all() and (last < [n for n, _, _ in axes]).all())

    def _is_free(self, place: Tracer, start: int, number: int, for_good: bool) -> bool:
        """Return whether nothing touches the place between two operations, nor, with for_good, writes to it after them."""
        for other, tracer, writes in self._touches[self._key(place.owner)]:
            if other not in self._dropped and other != number:
                between = start < other < number
                later = for_good and writes and other > number
                if (between or later) and self.overlap(tracer, place):
                    return False
        return True

    def _may_write_over(self, start: int, number: int, place: Tracer) -> bool:
        """Return whether operation `start` may write to the place although it reads there: each number overwrites only itself."""
        producer = self._numbered[start]
        reads = [operand for operand in producer.tracers if self.overlap(operand, place)]
        same_layout = all(producer.in_place and self.same(operand, place) for operand in reads)
        # Both must be in one stage, since a stage can be replayed alone, and any number of times.
        return same_layout and producer.stage == self._numbered[number].stage

    def _are_multiplied(self, source: Tracer, place: Tracer) -> bool:
        """Return whether a product has both as its operands: BLAS multiplies a matrix with itself by another kernel."""
        products = [
            {number for number, *_ in self._touches[self._key(tracer.owner)] if self._numbered[number].function is np.matmul}
            for tracer in (source, place)
        ]
        return not products[0].isdisjoint(products[1])


def joined_axes(shape: Sequence[int], imagined: Sequence[int], real: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (length, imagined stride, real stride) of the axes, longest stride first; axes contiguous in both are joined."""
    axes: list[tuple[int, int, int]] = []
    for n, s, r in sorted(zip(shape, imagined, real, strict=True), key=lambda axis: -axis[1]):
        if axes and axes[-1][1:] == (n * s, n * r):
            axes[-1] = (axes[-1][0] * n, s, r)
        elif n > 1:
            axes.append((n, s, r))
    return axes


def _digits(distance: int, axes: Sequence[tuple[int, int, int]]) -> list[int]:
    """Return the number of steps along each axis that make up a distance."""
    digits = []
    for _, stride, _ in axes:
        steps, distance = divmod(distance, stride)
        digits.append(steps)
    return digits
