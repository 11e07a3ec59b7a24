"""Blocks that standardise their input, so that no signal vanishes or explodes in forward."""

from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, row_of_ones, sum_over_units, transpose
from blocks.block import Block, Cache

# It is added to a variance, which may be 0, before the division by its root.
EPSILON = 1e-5


@dataclass
class NormalizedCache(Cache):
    """What forward stores for backward. Its a_prev_1 contains x_hat instead of a_prev, see `Normalized`.

    mean: of a_prev. r: 1 / sqrt(var + 1e-5). Both are (..., 1, m) over units, and (..., n_{l-1}, 1) over examples.
    """

    mean: Array
    r: Array


def mean_over_units(values: Array) -> Array:
    """Return the mean over the units, (..., 1, m) of (..., n, m)."""
    return sum_over_units(values) / values.shape[-2]


def mean_over_examples(values: Array) -> Array:
    """Return the mean over the examples, (..., n, 1) of (..., n, m), by a product as in `sum_over_units`."""
    m = values.shape[-1]
    return values @ transpose(row_of_ones(m, values.dtype)) / m


class Normalized(Block):
    """A block l that first standardises its input over the units of each example (layer normalisation).

        forward    x_hat = r (a_prev - mean)     r = 1 / sqrt(var + 1e-5)     z = W x_hat + b     a = g(z)
        backward   dz = da * g'(z)               dW = dz x_hat^T              db = sum over m of dz
                   dx_hat = W^T dz               da_prev = r (dx_hat - mean of dx_hat - x_hat mean of (x_hat * dx_hat))

    mean, var: over the n_{l-1} units. Source: Ba, Kiros and Hinton, "Layer normalization", 2016. There, x_hat is multiplied by a
    gain gamma, and a bias beta is added. Both are left out here, since another W and b have the same effect:
    W (gamma x_hat + beta) + b = (W diag(gamma)) x_hat + (W beta + b).

    W, b, activation: see `Block`.
    """

    mean_of = staticmethod(mean_over_units)

    def forward(self, a_prev: Array) -> tuple[Array, NormalizedCache]:
        """Return a and the cache for backward. The class has the formulas, `Block.forward` the shapes."""
        a_prev = self._check("a_prev", a_prev, self.W.shape[-1], "m")
        mean = self.mean_of(a_prev)
        centered = a_prev - mean
        variance = self.mean_of(centered * centered) + EPSILON
        # A variance of inf means that the lane has diverged. Then this r is nan, whereas 1 / sqrt(inf) = 0 would hide it.
        r = np.sqrt(variance) / variance
        a, cache = super().forward(r * centered)
        return a, NormalizedCache(cache.a_prev_1, cache.z, cache.a, mean, r)

    def backpropagate(self, da: Array, cache: Cache) -> tuple[Array, Array]:
        """Return dz and da_prev. The class has the formulas, `Block.backward` the shapes."""
        assert isinstance(cache, NormalizedCache)
        dz = da * self.activation.derivative(cache.z, cache.a)
        dx_hat, x_hat = transpose(self.W) @ dz, cache.a_prev
        return dz, cache.r * (dx_hat - self.mean_of(dx_hat) - x_hat * self.mean_of(x_hat * dx_hat))


class BatchNormalized(Normalized):
    """A block l that first standardises every unit of its input over the examples of a batch (batch normalisation).

    Its formulas are those of `Normalized`, with mean and var over the m examples. An example's output thus depends on the whole
    batch. For prediction, see `Network.with_statistics`. Source: Ioffe and Szegedy, "Batch normalization", 2015. There, W a_prev
    is standardised before g. Here a_prev is standardised, and gain and bias are left out as in `Normalized`.

    Raises ValueError for a batch of one example, whose standardised input would be 0.
    """

    mean_of = staticmethod(mean_over_examples)

    def forward(self, a_prev: Array) -> tuple[Array, NormalizedCache]:
        """See `Normalized.forward`."""
        if a_prev.shape[-1] == 1:
            raise ValueError(f"a_prev has shape {a_prev.shape}, batch normalisation needs at least 2 examples")
        return super().forward(a_prev)
