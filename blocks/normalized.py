"""The blocks that standardise their input, so that no signal vanishes or explodes in forward."""

from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, row_of_ones, sum_over_units, transpose
from blocks.block import Block, Cache

EPSILON = 1e-5


@dataclass
class NormalizedCache(Cache):
    """What forward stores for backward. a_prev_1 has x_hat in place of a_prev.

    mean, r: of a_prev, and 1 / sqrt(var + epsilon): (..., 1, m), or (..., n_{l-1}, 1) of a batch.
    """

    mean: Array
    r: Array


def mean_over_units(values: Array) -> Array:
    """Return the mean over the units, (..., 1, m) of (..., n, m)."""
    return sum_over_units(values) / values.shape[-2]


def mean_over_examples(values: Array) -> Array:
    """Return the mean over the examples, (..., n, 1) of (..., n, m). It is a product, as in `sum_over_units`."""
    m = values.shape[-1]
    return values @ transpose(row_of_ones(m, values.dtype)) / m


class Normalized(Block):
    """A block l whose input is standardised over the units of each example, before anything else (layer normalisation).

        forward    x_hat = r (a_prev - mean)     r = 1 / sqrt(var + 1e-5)     z = W x_hat + b     a = g(z)
        backward   dz = da * g'(z)               dW = dz x_hat^T              db = sum over m of dz
                   dx_hat = W^T dz               da_prev = r (dx_hat - mean of dx_hat - x_hat mean of (x_hat * dx_hat))

    mean, var: over the n_{l-1} units. In Ba, Kiros and Hinton, "Layer normalization", 2016, a gain gamma and a bias beta follow.
    They are left out here, since in front of a product they change no more than W and b do:
    W (gamma x_hat + beta) + b = (W diag(gamma)) x_hat + (W beta + b).

    W, b, activation: see `Block`.
    """

    mean_of = staticmethod(mean_over_units)

    def forward(self, a_prev: Array) -> tuple[Array, NormalizedCache]:
        """a, cache:  x_hat = r (a_prev - mean),  z = W x_hat + b,  a = g(z). See `Block.forward`."""
        a_prev = self._check("a_prev", a_prev, self.W.shape[-1], "m")
        mean = self.mean_of(a_prev)
        centered = a_prev - mean
        variance = self.mean_of(centered * centered) + EPSILON
        # Where the squares have overflowed, the lane has diverged: sqrt(v) / v is then nan, and 1 / sqrt(v) would hide it as 0.
        r = np.sqrt(variance) / variance
        a, cache = super().forward(r * centered)
        return a, NormalizedCache(cache.a_prev_1, cache.z, cache.a, mean, r)

    def backpropagate(self, da: Array, cache: Cache) -> tuple[Array, Array]:
        """dz, da_prev: see the class."""
        assert isinstance(cache, NormalizedCache)
        dz = da * self.activation.derivative(cache.z, cache.a)
        dx_hat, x_hat = transpose(self.W) @ dz, cache.a_prev
        return dz, cache.r * (dx_hat - self.mean_of(dx_hat) - x_hat * self.mean_of(x_hat * dx_hat))


class BatchNormalized(Normalized):
    """A block l whose input is standardised over the examples of each batch, unit by unit (batch normalisation).

    Forward and backward are those of `Normalized`, with mean and var over the m examples. An example's output thus depends on
    the other examples of its batch; `Network.with_statistics` is the network for prediction. Ioffe and Szegedy, "Batch
    normalization", 2015, standardise W a_prev, in front of g. Here g's output is standardised, and their gain and bias are left
    out as in `Normalized`.

    Raises ValueError for a batch of one example, whose standardised input would be 0.
    """

    mean_of = staticmethod(mean_over_examples)

    def forward(self, a_prev: Array) -> tuple[Array, NormalizedCache]:
        """See `Normalized.forward`."""
        if a_prev.shape[-1] == 1:
            raise ValueError(f"a_prev has shape {a_prev.shape}, batch normalisation needs at least 2 examples")
        return super().forward(a_prev)
