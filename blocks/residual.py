"""The block that adds to what it is given: a signal, and its gradient, come past every block on their way."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, check_number, check_shape
from blocks.block import Block, Cache
from blocks.parameters import join


@dataclass
class ResidualCache(Cache):
    """What forward leaves for backward: x = g(a_prev) stands where other blocks keep a_prev.

    skip: (..., n_{l-1}, m) a_prev.
    """

    skip: Array = field(kw_only=True)

    def follow(self, before: Cache) -> None:
        """Let the block before write its a right where it is added."""
        before.a = self.skip


class Residual(Block):
    """A block l that is added to its input, scaled; the activation comes first.

        forward    x = g(a_prev)         z = W x + b        a = a_prev + scale z
        backward   dz = scale da         dW = dz x^T        db = sum over m of dz
                   dx = W^T dz           da_prev = dx * g'(a_prev) + da

    In a network of L blocks scale is 1 / sqrt(L): He's initial weights then raise the activations' variance e times at most,
    at any depth, where with scale 1 every block would double it (Hayou et al., "Stable ResNet", 2021). The activation behind W,
    a_prev + scale g(W a_prev + b), would not do: relu's outputs have a mean, it adds up from block to block, and the variance
    grows a thousand times in 65 blocks (He et al., "Identity mappings in deep residual networks", 2016, on the order).

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

    def new_cache(self, a_prev_shape: tuple[int, ...]) -> ResidualCache:
        """See `Block.new_cache`."""
        plain = super().new_cache(a_prev_shape)
        return ResidualCache(plain.a_prev_1, plain.z, plain.a, skip=np.empty(a_prev_shape, self.W.dtype))

    def forward(self, a_prev: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """a, cache:  x = g(a_prev),  z = W x + b,  a = a_prev + scale z. See `Block.forward`."""
        if cache is None:
            check_shape("a_prev", a_prev, (self.W.shape[-1], "m"))
            cache = self.new_cache(a_prev.shape)
        assert isinstance(cache, ResidualCache)
        if a_prev is not cache.skip:
            np.copyto(cache.skip, a_prev)
        self.activation.function(cache.skip, cache.a_prev)
        z = np.matmul(self.joined, cache.a_prev_1, cache.z)
        a = np.multiply(z, self.scale, cache.a)
        return np.add(cache.skip, a, a), cache

    def argument(self, cache: Cache) -> Array:
        """a_prev"""
        assert isinstance(cache, ResidualCache)
        return cache.skip

    def slope(self, cache: Cache, out: Array | None = None) -> Array:
        """g'(a_prev)"""
        return self.activation.derivative(self.argument(cache), cache.a_prev, out)

    def z_gradient(self, da: Array, cache: Cache) -> Array:
        """dz = scale da"""
        return np.multiply(da, self.scale, np.empty_like(cache.z) if cache.dz is None else cache.dz)

    def pull_back(self, da: Array, dz: Array, cache: Cache) -> Array:
        """da_prev = (W^T dz) * g'(a_prev) + da"""
        dx = np.matmul(self.W_T, dz, cache.room)
        # dz has been read, and makes room.
        dx *= self.slope(cache, cache.dz)
        # In a workspace da_prev lies where da does: only now may it be written over.
        return np.add(dx, da, dx if cache.da_prev is None else cache.da_prev)
