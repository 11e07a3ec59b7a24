"""The building block of the lecture, section 4.6: a forward step that caches, a backward step that uses the cache."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, check_shape, transpose
from blocks.parameters import Part, above_ones, join, joined_gradient, split


@dataclass
class Cache:
    """What forward leaves for backward.

    a_prev_1: (..., n_{l-1} + 1, m) a_prev above a row of ones, which stands for the bias.
    z, a: (..., n_l, m) = W a_prev + b, and g(z).
    """

    a_prev_1: Array
    z: Array
    a: Array

    @property
    def a_prev(self) -> Array:
        """(..., n_{l-1}, m) what W was multiplied by, a view."""
        return self.a_prev_1[..., :-1, :]


class Block:
    """One block l of a network.

        forward    z = W a_prev + b          a = g(z)
        backward   dz = da * g'(z)           dW = dz a_prev^T    db = sum over m of dz      da_prev = W^T dz

    The loss's mean over the m examples, 1/m, stands in the loss's gradient, once, and so in every da. The sums over the
    examples in dW and db have therefore no 1/m of their own. (The course's own code has it in dW and db; da is then m times
    as large.) Axes in front of the last two are lanes, independent networks.

    W: (..., n_l, n_{l-1}) weights. b: (..., n_l, 1) biases. Both are written into where they are assigned to.
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
        self.joined, self.activation = joined, activation

    W, b = Part(0), Part(1)

    def __repr__(self) -> str:
        lanes = f", lanes={self.W.shape[:-2]}" if self.W.ndim > 2 else ""
        return f"{type(self).__name__}({self.W.shape[-1]} -> {self.W.shape[-2]}, {self.activation.name}, {self.W.dtype}{lanes})"

    def forward(self, a_prev: Array) -> tuple[Array, Cache]:
        """a, cache:  z = W a_prev + b,  a = g(z).

        a_prev: (..., n_{l-1}, m) activations of block l-1, one example a column.
        Returns a (..., n_l, m) and the cache for backward.
        """
        a_prev = self._check("a_prev", a_prev, self.W.shape[-1], "m")
        a_prev_1 = above_ones(a_prev)
        z = self.joined @ a_prev_1
        a = self.activation.function(z)
        return a, Cache(a_prev_1, z, a)

    def backward(self, da: Array, cache: Cache) -> tuple[Array, Array, Array]:
        """da_prev, dW, db:  dz = da * g'(z),  dW = dz a_prev^T,  db = sum over m of dz,  da_prev = W^T dz.

        da: (..., n_l, m) the loss's derivative with respect to a; left unchanged, as is forward's cache.
        Returns da_prev (..., n_{l-1}, m), dW (..., n_l, n_{l-1}), db (..., n_l, 1).
        """
        da = self._check("da", da, *cache.z.shape[-2:])
        dz, da_prev = self.backpropagate(da, cache)
        dW, db = split(joined_gradient(dz, cache.a_prev_1))
        return da_prev, dW, db

    def backpropagate(self, da: Array, cache: Cache) -> tuple[Array, Array]:
        """dz, da_prev:  dz = da * g'(z),  da_prev = W^T dz: `backward` without the parameters' gradients."""
        dz = self.activation.backward(da, cache.z, cache.a)
        return dz, transpose(self.W) @ dz

    def activation_at(self, cache: Cache) -> tuple[Array, Array]:
        """What g was applied to, and what it gave: z and a."""
        return cache.z, cache.a

    def _check(self, name: str, array: Array, *shape: int | str) -> Array:
        """The array in the parameters' dtype; raises ValueError where its last axes do not have that shape."""
        check_shape(name, array, shape)
        return array.astype(self.W.dtype, copy=False)
