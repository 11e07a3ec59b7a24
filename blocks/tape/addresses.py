"""Where arrays lie: addresses, strides, and arrays at an address of one's own."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from blocks.arrays import Array


class _Place:
    """What `array_at` asks NumPy to look through; `memory` lives as long as the array does."""

    __slots__ = ("__array_interface__", "memory")

    def __init__(self, address: int, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype, memory: object) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": tuple(shape),
            "strides": tuple(strides),
            "typestr": dtype.str,
            "version": 3,
        }
        self.memory = memory


def array_at(address: int, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype, memory: object = None) -> Array:
    """The array that lies at an address, in memory that somebody else made."""
    place = _Place(address, shape, strides, dtype, memory)
    array = np.asarray(place)
    # The array holds on to the place, and needs what was said there no more.
    del place.__array_interface__
    return array


# Where no process has memory: arrays that lie there have shapes and strides, and NumPy's own rules for views of them.
NOWHERE = 2**60
EVERYTHING = array_at(NOWHERE, (NOWHERE,), (1,), np.dtype(np.uint8))


def strides_for(shape: Sequence[int], itemsize: int, order: Sequence[int] | None = None) -> list[int]:
    """The strides of an array without gaps, its axes in that order from the longest stride to the shortest; None is C order."""
    strides = [0] * len(shape)
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis], itemsize = itemsize, itemsize * shape[axis]
    return strides


def address_of(array: Array) -> int:
    """Where the array's first number lies."""
    return cast(int, array.__array_interface__["data"][0])


def axes_by_stride(array: Array) -> list[int]:
    """The axes from the one with the longest stride to the shortest."""
    return sorted(range(array.ndim), key=[-abs(stride) for stride in array.strides].__getitem__)


def may_change(array: Any) -> bool:
    """Whether anybody may write into an array's memory."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return True
        memory = memory.base
    return memory is not None
