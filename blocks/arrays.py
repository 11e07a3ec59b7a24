"""The type of the engine's arrays, small functions on arrays, and checks whose errors name the argument."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from blocks.machine import Machine

Array = NDArray[Any]
# A computation that is bound to its arrays, so that it can be called again and again.
Call = Callable[[], Any]
T = TypeVar("T")
# It is False in a portable process.
AVX_512 = Machine.current().kernel in ("SkylakeX", "Cooperlake", "Sapphirerapids")
TINY, SMALL = 1200, 10**6
# A series of calls works on this many numbers at a time, so that they stay in the processor's cache from call to call.
PART = 32768


def transpose(matrices: Array) -> Array:
    """(..., n, m) -> (..., m, n), a view."""
    return matrices.mT


def times(left: Array) -> Callable[..., Array]:
    """Return `f(right, out=None)` = left right, with the bits of `np.matmul(left, right, out)`. `out` must be in C order.

    Two matrices are multiplied by `left.dot`, whose call takes half a microsecond less. The product itself takes eight
    microseconds at width 64, and one at width 16.
    """
    if left.ndim > 2:
        return partial(np.matmul, left)
    dot = left.dot

    def left_times(right: Array, out: Array | None = None) -> Array:
        return dot(right, out) if right.ndim == 2 else np.matmul(left, right, out)

    return left_times


def turning_pays(left: Array, right: Array) -> bool:
    """Return whether left right^T is faster where left is first copied into the order of its transpose.

    Without the copy, the rows of both run along the summed axis. OpenBLAS's kernels for AVX-512 have a fast way for small
    products, which they use for such a pair only where it is tiny (kernel/x86_64/sgemm_small_kernel_permit_skylakex.c). The copy
    pays for products between tiny and small.
    """
    entries = left.shape[-2] * right.shape[-2]
    return AVX_512 and entries > TINY and entries * left.shape[-1] <= SMALL


def largest(values: Array) -> float:
    """Return the largest entry, nan where one is nan. For few entries argmax takes a quarter of np.max's time."""
    return values.item(values.argmax())


def smallest(values: Array) -> float:
    """Return the smallest entry, nan where one is nan."""
    return values.item(values.argmin())


def sum_over_units(values: Array) -> Array:
    """Return the sum over the units, (..., 1, m) of (..., n, m).

    It is a product with ones, since NumPy's own sum over a middle axis may add in another order in a stack.
    """
    return np.matmul(row_of_ones(values.shape[-2], values.dtype), values)


@cache
def row_of_ones(n: int, dtype: np.dtype) -> Array:
    """Return ones (1, n), the same read-only array at every call."""
    row = np.ones((1, n), dtype)
    row.flags.writeable = False
    return row


def norm(values: Array, axis: int = -1) -> Array:
    """Return sqrt(sum of v^2) over an axis, as c ||v / c|| with c near the largest |v|, so that no square overflows.

    c is a power of two, so that it changes no digit. The result is inf where a value is, or where the norm itself overflows.
    """
    values = np.moveaxis(values, axis, -1)
    exponents = np.frexp(np.abs(values).max(axis=-1, keepdims=True))[1]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # ldexp does not form 1 / c, which would overflow for c below the smallest normal number.
        scaled = np.ascontiguousarray(np.ldexp(values, -exponents))
        return np.asarray(np.ldexp(np.sqrt((scaled * scaled).sum(axis=-1)), exponents[..., 0]))


def quiet(values: Array) -> Array:
    """Return the values with the same bits in every nan. Else these bits depend on how the computation was arranged."""
    return np.where(np.isnan(values), values.dtype.type(np.nan), values)


def check_shape(argument: str, array: Array, shape: tuple[int | str, ...]) -> None:
    """Raise ValueError unless the last axes of `array` are `shape` (a str stands for any length and is its name)."""
    has = array.shape[-len(shape) :]
    if len(has) < len(shape) or any(isinstance(n, int) and n != k for n, k in zip(shape, has, strict=True)):
        must = ", ".join(str(n) for n in ("...", *shape))
        raise ValueError(f"{argument} has shape {array.shape}, it must be ({must})")


def check_finite(argument: str, array: Array, dtype: DTypeLike | None = None) -> None:
    """Raise ValueError where `array` holds a nan or an inf, or would hold one in `dtype`, naming the first place."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(array if dtype is None else array.astype(dtype, copy=False))
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        in_dtype = f" in {np.dtype(dtype)}" if np.isfinite(array[place]) else ""
        raise ValueError(f"{argument} of shape {array.shape} must be finite{in_dtype}, it has {array[place]} at {place}")


def check_number(
    argument: str, value: ArrayLike, *, above: float | None = None, at_least: float | None = None, below: float = np.inf
) -> None:
    """Raise ValueError unless every value is finite, `above` or `at_least` one bound, and `below` another."""
    values = np.asarray(value, dtype=np.float64)
    allowed = ["finite"]
    fits = np.isfinite(values) & (values < below)
    if above is not None:
        fits &= values > above
        allowed.append(f"above {above:g}")
    if at_least is not None:
        fits &= values >= at_least
        allowed.append(f"at least {at_least:g}")
    if below < np.inf:
        allowed.append(f"below {below:g}")
    if not fits.all():
        text = " ".join(np.array2string(values, threshold=8).split()) if values.ndim else repr(value)
        raise ValueError(f"{argument} is {text}, it must be {' and '.join(allowed)}")


def whole_number(argument: str, value: float, *, at_least: int, at_most: int | None = None) -> int:
    """Return the value as an int. Raises ValueError unless it is whole and in range."""
    # An int may be larger than every number of NumPy.
    is_whole = isinstance(value, int) or (np.isfinite(value) and int(value) == value)
    if not (is_whole and value >= at_least and (at_most is None or value <= at_most)):
        allowed = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise ValueError(f"{argument} is {value}, it must be a whole number {allowed}")
    return int(value)


def choice(what: str, name: str, table: Mapping[str, T]) -> T:
    """Return table[name]. Raises ValueError with the allowed names where it is unknown. what: the argument, for the error."""
    if name not in table:
        raise ValueError(f"{what} {name!r} is unknown, allowed: {', '.join(table)}")
    return table[name]
