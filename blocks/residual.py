"""The block that adds to what it is given: depth then adds to a signal instead of multiplying it."""

from typing import Self

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, check_number
from blocks.block import Block, Cache
from blocks.parameters import join


class Residual(Block):
    """A block l whose activation is added to its input, scaled.

        forward    z = W a_prev + b              a = a_prev + scale g(z)
        backward   dz = scale da * g'(z)         dW = dz a_prev^T    db = sum over m of dz      da_prev = W^T dz + da

    In a network of L blocks scale is 1 / sqrt(L): with scale 1 and He's initial weights relu would double the activations'
    variance in every block (Hayou et al., "Stable ResNet", 2021; the addition: He et al., "Deep residual learning", 2016).

    W, b, activation: see `Block`; n_l must be n_{l-1}.
    scale: finite.
    """

    def __init__(self, W: Array, b: Array, activation: str = "identity", scale: float = 1.0) -> None:
        self._bind(join(np.asarray(W), np.asarray(b)), Activation.named(activation), scale)

    @classmethod
    def over(cls, joined: Array, activation: Activation, scale: float = 1.0) -> Self:
        """See `Block.over`."""
        block = cls.__new__(cls)
        block._bind(joined, activation, scale)
        return block

    def _bind(self, joined: Array, activation: Activation, scale: float = 1.0) -> None:
        super()._bind(joined, activation)
        n, n_prev = self.W.shape[-2:]
        if n != n_prev:
            raise ValueError(f"W has shape {self.W.shape}, but a residual block adds its input: n_l must be n_{{l-1}}")
        check_number("scale", scale)
        self.scale = scale

    def new_cache(self, a_prev_shape: tuple[int, ...]) -> Cache:
        """See `Block.new_cache`; g(z) is kept beside a."""
        cache = super().new_cache(a_prev_shape)
        cache.g = np.empty_like(cache.a)
        return cache

    def forward(self, a_prev: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """a, cache:  z = W a_prev + b,  a = a_prev + scale g(z). See `Block.forward`."""
        g, cache = super().forward(a_prev, cache)
        a = np.multiply(g, self.scale, cache.a)
        return np.add(cache.a_prev, a, a), cache

    def through_activation(self, da: Array, cache: Cache) -> Array:
        """dz = scale da * g'(z)"""
        return super().through_activation(np.multiply(da, self.scale, cache.room), cache)

    def pull_back(self, da: Array, dz: Array, cache: Cache) -> Array:
        """da_prev = W^T dz + da"""
        product = np.matmul(self.W_T, dz, cache.room)
        # In a workspace da_prev lies where da does: only now may it be written over.
        return np.add(product, da, product if cache.da_prev is None else cache.da_prev)
