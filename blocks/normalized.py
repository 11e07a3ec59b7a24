"""The block that standardises its input: no signal vanishes or explodes on its way from block to block."""

from dataclasses import dataclass, field

import numpy as np

from blocks.arrays import Array, check_shape, sum_over_units
from blocks.block import Block, Cache

EPSILON = 1e-5


@dataclass
class NormalizedCache(Cache):
    """What forward leaves for backward: x_hat stands where other blocks keep a_prev.

    r: (..., 1, m) = 1 / sqrt(var + epsilon) of every example.
    """

    r: Array = field(kw_only=True)

    def follow(self, before: Cache) -> None:
        """The block before keeps its a: here lies x_hat."""


class Normalized(Block):
    """A block l whose input is standardised over the units of each example, before anything else (layer normalisation).

        forward    x_hat = r (a_prev - mean)     r = 1 / sqrt(var + 1e-5)     z = W x_hat + b     a = g(z)
        backward   dz = da * g'(z)               dW = dz x_hat^T              db = sum over m of dz
                   dx_hat = W^T dz               da_prev = r (dx_hat - mean of dx_hat - x_hat mean of (x_hat * dx_hat))

    mean, var: over the n_{l-1} units. Ba, Kiros and Hinton, "Layer normalization", 2016, have a gain gamma and a bias beta of
    its own behind it. Before a product they would be a second name for W and b,
    W (gamma x_hat + beta) + b = (W diag(gamma)) x_hat + (W beta + b), and are left out.

    W, b, activation: see `Block`.
    """

    def new_cache(self, a_prev_shape: tuple[int, ...]) -> NormalizedCache:
        """See `Block.new_cache`."""
        plain = super().new_cache(a_prev_shape)
        r = np.empty((*a_prev_shape[:-2], 1, a_prev_shape[-1]), self.W.dtype)
        return NormalizedCache(plain.a_prev_1, plain.z, plain.a, r=r)

    def forward(self, a_prev: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """a, cache:  x_hat = r (a_prev - mean),  z = W x_hat + b,  a = g(z). See `Block.forward`."""
        if cache is None:
            check_shape("a_prev", a_prev, (self.W.shape[-1], "m"))
            cache = self.new_cache(a_prev.shape)
        assert isinstance(cache, NormalizedCache)
        x_hat = np.subtract(a_prev, mean_over_units(a_prev), cache.a_prev)
        variance = mean_over_units(np.multiply(x_hat, x_hat, cache.room))
        variance += EPSILON
        # sqrt(v) / v is nan where the squares have overflown, and that lane has diverged; 1 / sqrt(v) would be 0, and hide it.
        np.divide(np.sqrt(variance), variance, cache.r)
        x_hat *= cache.r
        return super().forward(x_hat, cache)

    def pull_back(self, da: Array, dz: Array, cache: Cache) -> Array:
        """da_prev = r (dx_hat - mean of dx_hat - x_hat mean of (x_hat * dx_hat)),  dx_hat = W^T dz"""
        dx_hat = super().pull_back(da, dz, cache)
        return self.through_normalization(dx_hat, cache, dx_hat)

    def through_normalization(self, v: Array, cache: Cache, out: Array | None = None) -> Array:
        """r (v - mean of v - x_hat mean of (x_hat * v)): the derivative of x_hat along v, and, being symmetric, backward's too.

        v: (..., n_{l-1}, m); `out` may be v.
        """
        assert isinstance(cache, NormalizedCache)
        along = mean_over_units(np.multiply(cache.a_prev, v, cache.room))
        out = np.subtract(v, mean_over_units(v), out)
        out -= np.multiply(cache.a_prev, along, cache.room)
        out *= cache.r
        return out


def mean_over_units(values: Array) -> Array:
    """Over the units: (..., n, m) -> (..., 1, m)."""
    return sum_over_units(values) / values.shape[-2]
