"""The building block of the lecture, section 4.6: a forward step that caches, a backward step that uses the cache."""

from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, Call, check_shape, in_parts, product, transpose, turning_pays
from blocks.parameters import join, split


@dataclass
class Cache:
    """What forward leaves for backward.

    a_prev_1: (..., n_{l-1} + 1, m) a_prev above a row of ones, which stands for the bias.
    z: (..., n_l, m) = W a_prev + b.
    a: (..., n_l, m) = g(z).
    dz, da_prev, dz_T: where backward may put its intermediate results, dz_T (..., m, n_l); None makes new arrays.
    room: (..., n_{l-1}, m) where a kind of block that takes more steps may put one's result; None makes new arrays.
    a_prev: (..., n_{l-1}, m) the upper rows of a_prev_1, a view.
    turns: whether dz is turned before dW's product.
    """

    a_prev_1: Array
    z: Array
    a: Array
    dz: Array | None = None
    da_prev: Array | None = None
    dz_T: Array | None = None
    room: Array | None = None

    def __post_init__(self) -> None:
        # Views made once: making one costs a tenth of a small product.
        self.a_prev = self.a_prev_1[..., :-1, :]
        self.a_prev_1_T = transpose(self.a_prev_1)
        self.turns = turning_pays(self.z, self.a_prev_1)

    def follow(self, before: "Cache") -> None:
        """Let the block before write its a right where this one keeps its a_prev."""
        before.a = self.a_prev


class Block:
    """One block l of a network.

        forward    z = W a_prev + b          a = g(z)
        backward   dz = da * g'(z)           dW = dz a_prev^T    db = sum over m of dz      da_prev = W^T dz

    The loss's mean over the m examples, 1/m, stands in the loss's gradient, once, and so in every da. The sums over the
    examples in dW and db have therefore no 1/m of their own. (The course's own code has it in dW and db; da is then m times
    as large.)

    Axes in front of the last two are lanes, independent networks.

    W: (..., n_l, n_{l-1}) weights.
    b: (..., n_l, 1) biases.
    activation: a name from the table.
    Raises ValueError for shapes that do not match and for an unknown activation.
    """

    def __init__(self, W: Array, b: Array, activation: str = "identity") -> None:
        self._bind(join(np.asarray(W), np.asarray(b)), Activation.named(activation))

    @classmethod
    def over(cls, joined: Array, activation: Activation) -> Self:
        """The block whose W and b are views into `joined` = [W b], (..., n_l, n_{l-1} + 1)."""
        block = cls.__new__(cls)
        block._bind(joined, activation)
        return block

    def _bind(self, joined: Array, activation: Activation) -> None:
        self.joined = joined
        self._W, self._b = split(joined)
        self.W_T = transpose(self._W)
        self.activation = activation

    @property
    def W(self) -> Array:
        """(..., n_l, n_{l-1}) weights. What is assigned is written into them; ValueError where its shape is another."""
        return self._W

    @W.setter
    def W(self, values: Array) -> None:
        _write("W", self._W, values)

    @property
    def b(self) -> Array:
        """(..., n_l, 1) biases, assigned to as W is."""
        return self._b

    @b.setter
    def b(self, values: Array) -> None:
        _write("b", self._b, values)

    def __repr__(self) -> str:
        lanes = f", lanes={self.W.shape[:-2]}" if self.W.ndim > 2 else ""
        return f"{type(self).__name__}({self.W.shape[-1]} -> {self.W.shape[-2]}, {self.activation.name}, {self.W.dtype}{lanes})"

    def new_cache(self, a_prev_shape: tuple[int, ...]) -> Cache:
        """An empty cache for a_prev of shape (..., n_{l-1}, m)."""
        *lanes, n_prev, m = a_prev_shape
        a_prev_1 = np.ones((*lanes, n_prev + 1, m), self.W.dtype)
        z = np.empty((*np.broadcast_shapes(tuple(lanes), self.W.shape[:-2]), self.W.shape[-2], m), self.W.dtype)
        return Cache(a_prev_1, z, np.empty_like(z))

    def forward(self, a_prev: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """a, cache:  z = W a_prev + b,  a = g(z).

        a_prev: (..., n_{l-1}, m) activations of block l-1, one example a column.
        cache: an earlier call's cache to be written over; the results do not depend on it.
        Returns a (..., n_l, m) and the cache for backward.
        """
        if cache is None:
            check_shape("a_prev", a_prev, (self.W.shape[-1], "m"))
            cache = self.new_cache(a_prev.shape)
        # In a chain, the block before has written its activation right here.
        if a_prev is not cache.a_prev:
            np.copyto(cache.a_prev, a_prev)
        z = np.matmul(self.joined, cache.a_prev_1, cache.z)
        return self.activation.function(z, cache.a), cache

    def backward(self, da: Array, cache: Cache) -> tuple[Array, Array, Array]:
        """da_prev, dW, db:  dz = da * g'(z),  dW = dz a_prev^T,  db = sum over m of dz,  da_prev = W^T dz.

        da: (..., n_l, m) the loss's derivative with respect to a; left unchanged, as is the cache.
        cache: forward's.
        Returns da_prev (..., n_{l-1}, m), dW (..., n_l, n_{l-1}), db (..., n_l, 1).
        """
        check_shape("da", da, cache.z.shape[-2:])
        dz, joined = self.gradient(da, cache)
        return self.pull_back(da, dz, cache), *split(joined)

    def gradient(self, da: Array, cache: Cache, out: Array | None = None) -> tuple[Array, Array]:
        """dz, and [dW db] = dz [a_prev; 1]^T: the row of ones under a_prev sums dz over the examples."""
        dz = self.z_gradient(da, cache)
        if not cache.turns:
            return dz, np.matmul(dz, cache.a_prev_1_T, out)
        dz_T = np.empty_like(transpose(dz), order="C") if cache.dz_T is None else cache.dz_T
        np.copyto(dz_T, transpose(dz))
        return dz, transpose(np.matmul(cache.a_prev_1, dz_T, None if out is None else transpose(out)))

    def argument(self, cache: Cache) -> Array:
        """What g is a function of: z."""
        return cache.z

    def slope(self, cache: Cache, out: Array | None = None) -> Array:
        """g'(z)"""
        return self.activation.derivative(cache.z, cache.a, out)

    def z_gradient(self, da: Array, cache: Cache) -> Array:
        """dz = da * g'(z)"""
        slope = self.slope(cache, cache.dz)
        return np.multiply(da, slope, slope)

    def pull_back(self, da: Array, dz: Array, cache: Cache) -> Array:
        """da_prev = W^T dz"""
        return np.matmul(self.W_T, dz, cache.da_prev)

    def forward_calls(self, cache: Cache) -> list[Call]:
        """What `forward` does with what stands in cache.a_prev."""
        return [product(self.joined, cache.a_prev_1, cache.z), *in_parts(self.activation.forward_calls, cache.z, cache.a)]

    def backward_calls(self, da: Array, cache: Cache, out: Array) -> list[Call]:
        """What `gradient` and, where the cache has room for da_prev, `pull_back` do."""
        dz = da if cache.dz is None else cache.dz
        calls, dz_T = in_parts(self.activation.backward_calls, da, cache.z, cache.a, dz), transpose(dz)
        if cache.turns and cache.dz_T is not None:
            calls, dz_T = [*calls, partial(np.copyto, cache.dz_T, dz_T)], cache.dz_T
        pull_back = [] if cache.da_prev is None else [product(self.W_T, dz, cache.da_prev)]
        return [*calls, product(cache.a_prev_1, dz_T, transpose(out)), *pull_back]


def _write(name: str, parameters: Array, values: Array) -> None:
    """Assign in place: the flat vector of the block's network has the same memory."""
    if np.shape(values) != parameters.shape:
        raise ValueError(f"{name} has shape {np.shape(values)}, it must be {parameters.shape}")
    parameters[...] = values
