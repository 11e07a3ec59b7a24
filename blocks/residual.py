"""The block that adds its output to its input, so that a signal and its gradient have a path around every block."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, check_number, transpose
from blocks.block import Block, Cache
from blocks.parameters import above_ones, join


@dataclass
class ResidualCache(Cache):
    """What forward stores for backward. a_prev_1 has x = g(a_prev) in place of a_prev. skip: (..., n_{l-1}, m) a_prev."""

    skip: Array


class Residual(Block):
    """A block l that is added to its input, scaled; the activation comes first.

        forward    x = g(a_prev)         z = W x + b        a = a_prev + scale z
        backward   dz = scale da         dW = dz x^T        db = sum over m of dz
                   dx = W^T dz           da_prev = dx * g'(a_prev) + da

    In a network of L blocks, scale is 1 / sqrt(L). With He's initial weights, the activations' variance then grows at most by the
    factor e, at any depth; with scale 1 every block would double it (Hayou et al., "Stable ResNet", 2021). The other order,
    a_prev + scale g(W a_prev + b), does not work: the outputs of relu have a mean, which adds up from block to block, and the
    variance grows a thousand times in 65 blocks (He et al., "Identity mappings in deep residual networks", 2016, on the order).

    W, b, activation: see `Block`; n_l must be n_{l-1}. scale: finite.
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

    def forward(self, a_prev: Array) -> tuple[Array, ResidualCache]:
        """a, cache:  x = g(a_prev),  z = W x + b,  a = a_prev + scale z. See `Block.forward`."""
        # The cache has a copy, so that later changes of the caller's array do not reach backward.
        a_prev = self._check("a_prev", a_prev, self.W.shape[-1], "m").copy()
        x_1 = above_ones(self.activation.function(a_prev))
        z = self.joined @ x_1
        a = a_prev + self.scale * z
        return a, ResidualCache(x_1, z, a, skip=a_prev)

    def backpropagate(self, da: Array, cache: Cache) -> tuple[Array, Array]:
        """dz, da_prev:  dz = scale da,  dx = W^T dz,  da_prev = dx * g'(a_prev) + da"""
        assert isinstance(cache, ResidualCache)
        dz = self.scale * da
        dx = transpose(self.W) @ dz
        return dz, dx * self.activation.derivative(cache.skip, cache.a_prev) + da

    def activation_at(self, cache: Cache) -> tuple[Array, Array]:
        """What g was applied to, and what it gave: a_prev and x."""
        assert isinstance(cache, ResidualCache)
        return cache.skip, cache.a_prev
