"""All blocks' W and b in one flat vector per lane. Only this module knows how they are stored in it.

Block l is the matrix [W b] of shape (n_l, n_{l-1} + 1), stored column by column, block after block. Since the bias is the last
column, W a_prev + b is one product, [W b] [a_prev; 1], and so are dW and db. Since columns are stored one after another, a
block's W is contiguous and is followed by b. The norms of all W of equal successive blocks are then one call of a vector product.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from blocks.arrays import Array, check_shape, largest, row_of_ones, smallest, transpose, turning_pays

# In a sum of squares below this, squares that contribute to it may be subnormal numbers, which have fewer digits.
SAFE = {np.dtype(dtype): float(np.finfo(dtype).tiny / np.finfo(dtype).eps ** 2) for dtype in (np.float32, np.float64)}


def join(W: Array, b: Array) -> Array:
    """Return [W b], (..., n_l, n_{l-1} + 1), from W (..., n_l, n_{l-1}) and b (..., n_l, 1)."""
    check_shape("W", W, ("n_l", "n_{l-1}"))
    check_shape("b", b, (W.shape[-2], 1))
    return np.concatenate([W, b], axis=-1)


def split(joined: Array) -> tuple[Array, Array]:
    """Return W (..., n_l, n_{l-1}) and b (..., n_l, 1), views into [W b]."""
    return joined[..., :-1], joined[..., -1:]


class Part:
    """A block's W or b: a view into its `joined` = [W b]. Assigned values are written there, and so into its network."""

    def __init__(self, place: int) -> None:
        self.place = place

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: Any, owner: type) -> Any:
        return self if block is None else split(block.joined)[self.place]

    def __set__(self, block: Any, values: Array) -> None:
        parameters = split(block.joined)[self.place]
        if np.shape(values) != parameters.shape:
            raise ValueError(f"{self.name} has shape {np.shape(values)}, it must be {parameters.shape}")
        parameters[...] = values


def above_ones(a_prev: Array) -> Array:
    """Return [a_prev; 1], (..., n_{l-1} + 1, m): a_prev above a row of ones."""
    ones = np.broadcast_to(row_of_ones(a_prev.shape[-1], a_prev.dtype), (*a_prev.shape[:-2], 1, a_prev.shape[-1]))
    return np.concatenate([a_prev, ones], axis=-2)


def joined_gradient(dz: Array, a_prev_1: Array) -> Array:
    """[dW db] = dz [a_prev; 1]^T

    The row of ones below a_prev sums dz over the examples. The transposed product is computed, since [W b] is stored by columns.
    """
    dz_T = transpose(dz)
    return transpose(a_prev_1 @ (dz_T.copy() if turning_pays(dz, a_prev_1) else dz_T))


class Layout:
    """Where each block lies in the flat vector.

    sizes: (n_0, n_1, ..., n_L), the number of inputs and every block's number of units, each at least 1.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if len(sizes) < 2 or not all(np.isfinite(n) and int(n) == n and n >= 1 for n in sizes):
            raise ValueError(f"sizes is {list(sizes)}, it must be at least two whole numbers of at least 1: n_0, n_1, ..., n_L")
        self.sizes = tuple(int(n) for n in sizes)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.sizes) - 1

    @cached_property
    def starts(self) -> Array:
        """The places (2 L,) where W_1, b_1, W_2, b_2, ... start in the flat vector."""
        n = np.array(self.sizes)
        lengths = np.stack([n[1:] * n[:-1], n[1:]], axis=1).ravel()
        return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.intp)

    @cached_property
    def size(self) -> int:
        """P, the number of parameters of one network: sum over l of n_l (n_{l-1} + 1)."""
        return sum(n * (n_prev + 1) for n_prev, n in zip(self.sizes, self.sizes[1:], strict=False))

    @cached_property
    def is_weight(self) -> Array:
        """A mask (P,), True for the entries of W, False for those of b."""
        mask = np.empty(self.size, dtype=bool)
        for joined in self.blocks(mask):
            W, b = split(joined)
            W[...], b[...] = True, False
        return mask

    @cached_property
    def places(self) -> list[tuple[slice, tuple[int, int]]]:
        """The slice of the flat vector that holds each block, and the shape of its [W b]^T, which is stored there row by row."""
        starts = [*self.starts[::2].tolist(), self.size]
        turned = zip(starts, starts[1:], self.sizes, self.sizes[1:], strict=False)
        return [(slice(start, end), (n_prev + 1, n)) for start, end, n_prev, n in turned]

    def blocks(self, flat: Array) -> list[Array]:
        """Return [W b] of blocks 1..L, (..., n_l, n_{l-1} + 1), as views into `flat` (..., P)."""
        check_shape("flat", flat, (self.size,))
        lanes = flat.shape[:-1]
        return [transpose(flat[..., place].reshape(*lanes, *turned)) for place, turned in self.places]

    def of_blocks(self, values: Array) -> Array:
        """Return for every parameter, (..., P), the value of its block. values: (..., L), one per block."""
        check_shape("values", values, (self.depth,))
        return np.repeat(values, np.diff(self.starts[::2], append=self.size), axis=-1)

    @cached_property
    def equal_blocks(self) -> list[tuple[slice, slice, int, int]]:
        """The series of successive blocks of one shape: (slice of the flat vector, slice of 2 L norms, number, length of W)."""
        series, number, end = [], 0, 0
        for (n, n_prev), same in groupby(zip(self.sizes[1:], self.sizes, strict=False)):
            count = len(list(same))
            start, end = end, end + count * n * (n_prev + 1)
            series.append((slice(start, end), slice(number, number + 2 * count), count, n * n_prev))
            number += 2 * count
        return series

    def flat(self, joined: Sequence[Array]) -> Array:
        """Return the flat vector (..., P) of [W b] of blocks 1..L, or of arrays with their shapes: the inverse of `blocks`."""
        return np.concatenate([transpose(block).reshape(*block.shape[:-2], -1) for block in joined], axis=-1)

    def squares(self, flat: Array) -> Array:
        """Return ||W_1||^2, ||b_1||^2, ||W_2||^2, ..., (..., 2 L), from `flat` (..., P)."""
        lanes = flat.shape[:-1]
        squares = np.empty_like(flat, shape=(*lanes, 2 * self.depth))
        for place, norms_place, count, length in self.equal_blocks:
            joined, series = flat[..., place].reshape(*lanes, count, -1), squares[..., norms_place]
            # A product of a vector with itself reads it once. Separate squares would be written and read again.
            for which, part in enumerate((joined[..., :length], joined[..., length:])):
                series[..., which::2] = np.vecdot(part, part)
        return squares

    @np.errstate(over="ignore", under="ignore", invalid="ignore")
    def norms(self, flat: Array) -> Array:
        """Return the Frobenius norms ||W_1||, ||b_1||, ||W_2||, ..., (..., 2 L), from `flat` (..., P)."""
        squares = self.squares(flat)
        norms = np.sqrt(squares)
        self.rescale(norms, squares, flat)
        return norms

    def rescale(self, norms: Array, squares: Array, flat: Array) -> bool:
        """Compute again, in place, the norms whose sum of squares is below SAFE or not finite. Return whether all are finite.

            ||v|| = c ||v / c||        c: the largest |v_i|

        A sum of squares leaves the range of its dtype long before the norm does: in float32 it is below SAFE for a norm below
        1e-12, and infinite for one above 1e19, as in networks that vanish or explode.

        norms, squares: (..., 2 L) of `flat` (..., P), see `squares`.
        """
        safe = SAFE[flat.dtype]
        if smallest(squares) > safe and largest(squares) < np.inf:
            return True
        starts, size = self.starts, self.size
        squares, norms = (values.reshape(-1, values.shape[-1]) for values in (squares, norms))
        unsafe = ~((squares > safe) & (squares < np.inf))
        rows = np.flatnonzero(unsafe.any(axis=-1))
        flat = flat.reshape(-1, size)[rows]
        scale = np.maximum.reduceat(np.abs(flat), starts, axis=-1)
        # Where all entries are 0, the norm is 0; where one is not finite, nor is the norm. A divisor of 1 keeps both results.
        scale[~((scale > 0) & (scale < np.inf))] = 1
        flat /= np.repeat(scale, np.diff(starts, append=size), axis=-1)
        norms[rows] = np.where(unsafe[rows], scale * np.sqrt(np.add.reduceat(flat * flat, starts, axis=-1)), norms[rows])
        return bool(np.isfinite(norms).all())
