"""The lecture's building block: a forward step that caches, a backward step that uses the cache."""

from dataclasses import dataclass, field

import numpy as np

from blocks.activations import Activation, Applied
from blocks.arrays import Array, check_shape, times, transpose
from blocks.parameters import join, split

# In dW = dz a_prev^T the rows of both factors run along the summed axis. OpenBLAS's kernels for AVX-512 take 1.7 times as
# long for such a pair as for any other, so that turning dz first pays: 6 % of a step. The older kernels do not, and it costs 3 %.
TURNS = not {"X86_V4", "AVX512_SKX"}.isdisjoint(np.show_config(mode="dicts")["SIMD Extensions"]["found"])


@dataclass
class Cache:
    """What forward leaves for backward.

    a_prev_1: (..., n_{l-1} + 1, m) a_prev above a row of ones, which stands for the bias.
    z: (..., n_l, m) = W a_prev + b.
    a: (..., n_l, m) = g(z).
    dz, da_prev, dz_T: where backward may put its intermediate results, dz_T (..., m, n_l); None makes new arrays.
    a_prev: (..., n_{l-1}, m) the upper rows of a_prev_1, a view.
    applied: the block's activation over z and a, from the first use on.
    """

    a_prev_1: Array
    z: Array
    a: Array
    dz: Array | None = None
    da_prev: Array | None = None
    dz_T: Array | None = None
    applied: Applied | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # Made once: it would cost a tenth of a small product.
        self.a_prev = self.a_prev_1[..., :-1, :]
        self.a_prev_1_T = transpose(self.a_prev_1)
        self.a_prev_1_times = times(self.a_prev_1)


class Block:
    """One block l of a network.

        forward    z = W a_prev + b          a = g(z)
        backward   dz = da * g'(z)           dW = dz a_prev^T    db = sum over m of dz      da_prev = W^T dz

    Axes in front of the last two are lanes, independent networks.

    W: (..., n_l, n_{l-1}) weights.
    b: (..., n_l, 1) biases.
    activation: a name from the table.
    Raises ValueError for shapes that do not match and for an unknown activation.
    """

    def __init__(self, W: Array, b: Array, activation: str = "identity") -> None:
        self._bind(join(np.asarray(W), np.asarray(b)), Activation.named(activation))

    @classmethod
    def over(cls, joined: Array, activation: Activation) -> "Block":
        """The block whose W and b are views into `joined` = [W b], (..., n_l, n_{l-1} + 1)."""
        block = cls.__new__(cls)
        block._bind(joined, activation)
        return block

    def _bind(self, joined: Array, activation: Activation) -> None:
        self.joined = joined
        self.W, self.b = split(joined)
        self.W_T = transpose(self.W)
        self.joined_times, self.W_T_times = times(joined), times(self.W_T)
        self.activation = activation

    def __repr__(self) -> str:
        lanes = f", lanes={self.W.shape[:-2]}" if self.W.ndim > 2 else ""
        return f"Block({self.W.shape[-1]} -> {self.W.shape[-2]}, {self.activation.name}, {self.W.dtype}{lanes})"

    def new_cache(self, a_prev_shape: tuple[int, ...]) -> Cache:
        """An empty cache for a_prev of shape (..., n_{l-1}, m)."""
        *lanes, n_prev, m = a_prev_shape
        a_prev_1 = np.ones((*lanes, n_prev + 1, m), self.W.dtype)
        lanes = list(np.broadcast_shapes(tuple(lanes), self.W.shape[:-2]))
        z = np.empty((*lanes, self.W.shape[-2], m), self.W.dtype)
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
        self.joined_times(cache.a_prev_1, cache.z)
        return (cache.applied or self._applied(cache)).forward(), cache

    def backward(self, da: Array, cache: Cache) -> tuple[Array, Array, Array]:
        """da_prev, dW, db:  dz = da * g'(z),  dW = dz a_prev^T,  db = sum over m of dz,  da_prev = W^T dz.

        da: (..., n_l, m) the loss's derivative with respect to a; left unchanged, as is the cache.
        cache: forward's.
        Returns da_prev (..., n_{l-1}, m), dW (..., n_l, n_{l-1}), db (..., n_l, 1).
        """
        check_shape("da", da, cache.z.shape[-2:])
        dz, joined = self.gradient(da, cache)
        return self.pull_back(dz, cache), *split(joined)

    def gradient(self, da: Array, cache: Cache, out: Array | None = None) -> tuple[Array, Array]:
        """dz, and [dW db] = dz [a_prev; 1]^T: the row of ones under a_prev sums dz over the examples."""
        dz = self.through_activation(da, cache)
        dz_T = dz.mT
        if TURNS:
            dz_T = np.empty_like(dz.mT, order="C") if cache.dz_T is None else cache.dz_T
            np.copyto(dz_T, dz.mT)
        if out is None:
            return dz, cache.a_prev_1_times(dz_T).mT
        cache.a_prev_1_times(dz_T, out.mT)
        return dz, out

    def through_activation(self, da: Array, cache: Cache) -> Array:
        """dz = da * g'(z)"""
        return (cache.applied or self._applied(cache)).backward(da, cache.dz)

    def pull_back(self, dz: Array, cache: Cache) -> Array:
        """da_prev = W^T dz"""
        return self.W_T_times(dz, cache.da_prev)

    def _applied(self, cache: Cache) -> Applied:
        cache.applied = self.activation.applied(self.activation, cache.z, cache.a)
        return cache.applied
