"""The block that standardises its input: no signal vanishes or explodes on its way from block to block."""

from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, sum_over_units, transpose
from blocks.block import Block, Cache

EPSILON = 1e-5


@dataclass
class NormalizedCache(Cache):
    """What forward leaves for backward: x_hat stands where other blocks keep a_prev.

    r: (..., 1, m) = 1 / sqrt(var + epsilon) of every example.
    """

    r: Array


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

    def forward(self, a_prev: Array) -> tuple[Array, NormalizedCache]:
        """a, cache:  x_hat = r (a_prev - mean),  z = W x_hat + b,  a = g(z). See `Block.forward`."""
        a_prev = self._check("a_prev", a_prev, self.W.shape[-1], "m")
        centered = a_prev - mean_over_units(a_prev)
        variance = mean_over_units(centered * centered) + EPSILON
        # sqrt(v) / v is nan where the squares have overflown, and that lane has diverged; 1 / sqrt(v) would be 0, and hide it.
        r = np.sqrt(variance) / variance
        a, cache = super().forward(r * centered)
        return a, NormalizedCache(cache.a_prev_1, cache.z, cache.a, r)

    def backpropagate(self, da: Array, cache: Cache) -> tuple[Array, Array]:
        """dz, da_prev: see the class."""
        assert isinstance(cache, NormalizedCache)
        dz = da * self.activation.derivative(cache.z, cache.a)
        dx_hat, x_hat = transpose(self.W) @ dz, cache.a_prev
        return dz, cache.r * (dx_hat - mean_over_units(dx_hat) - x_hat * mean_over_units(x_hat * dx_hat))


def mean_over_units(values: Array) -> Array:
    """Over the units: (..., n, m) -> (..., 1, m)."""
    return sum_over_units(values) / values.shape[-2]
