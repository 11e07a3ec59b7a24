"""Addresses and strides of arrays, and arrays at a given address."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from blocks.arrays import Array


class _Place:
    """The object through which `array_at` creates an array. It keeps `memory` alive as long as the array exists."""

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
    """Return an array at an address. memory: the object that owns the memory there, None where there is none."""
    place = _Place(address, shape, strides, dtype, memory)
    array = np.asarray(place)
    # The array keeps the place alive, but does not need its description any more.
    del place.__array_interface__
    return array


# An address where no process has memory. An array there has a shape and strides, and NumPy makes views of it as of any array.
NOWHERE = 2**60
EVERYTHING = array_at(NOWHERE, (NOWHERE,), (1,), np.dtype(np.uint8))


def strides_for(shape: Sequence[int], itemsize: int, order: Sequence[int] | None = None) -> list[int]:
    """Return the strides of an array without gaps. order: the axes from the longest stride to the shortest, None for C order."""
    strides = [0] * len(shape)
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis], itemsize = itemsize, itemsize * shape[axis]
    return strides


def address_of(array: Array) -> int:
    """Return the address of the array's first number."""
    return cast(int, array.__array_interface__["data"][0])


def axes_by_stride(array: Array) -> list[int]:
    """Return the axes, from the one with the longest stride to the shortest."""
    return sorted(range(array.ndim), key=[-abs(stride) for stride in array.strides].__getitem__)


def may_change(array: Any) -> bool:
    """Return whether an array's memory may be written to."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return True
        memory = memory.base
    return memory is not None
