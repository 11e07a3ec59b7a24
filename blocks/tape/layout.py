"""The layout that NumPy gives to the result of a ufunc."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from blocks.tape.addresses import EVERYTHING, NOWHERE, axes_by_stride

# What decides the layout of a result: an operand's dtype, or a Python number's type; its shape and its strides.
Kind = tuple[Any, tuple[int, ...], tuple[int, ...]]


def refuse(what: str) -> NoReturn:
    """Raise TypeError, which says that something cannot be recorded. what: the operation, for the error."""
    raise TypeError(f"{what} cannot be recorded: write it with ufuncs, operators and views of whole arrays")


@lru_cache(1024)
def result_layout(ufunc: np.ufunc, kinds: tuple[Kind, ...]) -> tuple[tuple[int, ...], np.dtype, list[int]]:
    """Return shape, dtype and order of axes that NumPy gives to a ufunc's result."""
    dtype = ufunc.resolve_dtypes((*(kind for kind, _, _ in kinds), None))[-1]
    shapes = [shape for _, shape, _ in kinds]
    operands = [np.ndarray(shape, np.uint8, EVERYTHING, NOWHERE // 2, strides) for _, shape, strides in kinds]
    if ufunc.signature is None:
        return np.broadcast_shapes(*shapes), dtype, axes_order(operands)
    if ufunc is np.matmul and min(map(len, shapes)) > 1 and shapes[0][-1] == shapes[1][-2]:
        shape = (*np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2]), shapes[0][-2], shapes[1][-1])
        return shape, dtype, [*axes_order(operand[..., 0, 0] for operand in operands), len(shape) - 2, len(shape) - 1]
    if ufunc is np.vecdot and shapes[0][-1] == shapes[1][-1]:
        return np.broadcast_shapes(shapes[0][:-1], shapes[1][:-1]), dtype, axes_order(operand[..., 0] for operand in operands)
    refuse(f"{ufunc.__name__} of shapes {shapes}")


def axes_order(operands: Iterable[Any]) -> list[int]:
    """Return the order of axes that NumPy gives to an elementwise result, from the longest stride to the shortest."""
    # NumPy allocates the result. Its order is the same for two numbers along every axis.
    small = [_corner(np.asarray(operand)) for operand in operands]
    return axes_by_stride(np.nditer([*small, None], flags=["zerosize_ok"]).operands[-1])


def _corner(array: Any) -> Any:
    """Return a view of at most the first two numbers along every axis."""
    return array[..., *[slice(2)] * array.ndim]
