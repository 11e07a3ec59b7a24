"""The curvature of the loss: its Hessian in the parameters times a vector, exactly.

Nothing here changes a bit of the network. A lane that has diverged is no error: it comes out as nan or inf, and alone.
Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994: the R-operator.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from blocks.activations import GELU_CUBIC, GELU_SATURATED, GELU_SCALE, sigmoid, sigmoid_derivative
from blocks.arrays import Array, check_finite, check_shape, choice, product, sum_over_units, transpose
from blocks.block import Block, Cache
from blocks.diagnostics import checked
from blocks.losses import Loss, Room
from blocks.network import Network
from blocks.normalized import Normalized, NormalizedCache, mean_over_units
from blocks.parameters import split
from blocks.residual import Residual, ResidualCache


def _sigmoid_second(z: Array, a: Array) -> Array:
    """g''(z) = a (1 - a) (1 - 2 a)"""
    return a * (1 - a) * (1 - 2 * a)


def _tanh_second(z: Array, a: Array) -> Array:
    """g''(z) = -2 a (1 - a^2)"""
    return -2 * a * (1 - a * a)


def _softplus_second(z: Array, a: Array) -> Array:
    """g''(z) = s (1 - s),  s = sigmoid(z)"""
    return sigmoid_derivative(z, sigmoid(z))


def _elu_second(z: Array, a: Array) -> Array:
    """g''(z) = 0 where z > 0, else e^z"""
    return np.where(z > 0, z.dtype.type(0), np.exp(np.minimum(z, 0)))


def _gelu_second(z: Array, a: Array) -> Array:
    """g''(z) = (1 - t^2) (u' + z (u'' / 2 - t u'^2)),  t = tanh(u), u as in `gelu`"""
    z = np.clip(z, -GELU_SATURATED, GELU_SATURATED)
    u = GELU_SCALE * z * (1 + GELU_CUBIC * z * z)
    du = GELU_SCALE * (1 + 3 * GELU_CUBIC * z * z)
    ddu = 6 * GELU_SCALE * GELU_CUBIC * z
    # 1 - t^2 is 1 / cosh^2, which has all its digits where t is near 1.
    return (du + z * (ddu / 2 - np.tanh(u) * du * du)) / np.cosh(u) ** 2


# g'' of the activations' table; None where it is 0 everywhere, or everywhere but at the kink.
SECOND_DERIVATIVES: dict[str, Callable[[Array, Array], Array] | None] = {
    "identity": None,
    "sigmoid": _sigmoid_second,
    "tanh": _tanh_second,
    "relu": None,
    "leaky_relu": None,
    "softplus": _softplus_second,
    "elu": _elu_second,
    "gelu": _gelu_second,
}

Linear = Callable[[Array], Array]
# Gives an array of a shape, its values unknown.
Passing = Callable[[tuple[int, ...]], Array]


def _softmax_curvature(logits: Array) -> Linear:
    """dz -> (diag(p) - p p^T) dz / m, example by example."""
    p = np.exp(logits - logits.max(axis=-2, keepdims=True))
    p /= sum_over_units(p)
    m = logits.shape[-1]
    return lambda dz: p * (dz - sum_over_units(p * dz)) / m


def _sigmoid_curvature(logits: Array) -> Linear:
    """dz -> p (1 - p) dz / m"""
    e = np.exp(-np.abs(logits))
    curvature = e / (1 + e) ** 2 / logits.shape[-1]
    return lambda dz: curvature * dz


def _half_squares_curvature(logits: Array) -> Linear:
    """dz -> dz / m"""
    return lambda dz: dz / logits.shape[-1]


# The Hessians of the losses' table with respect to the logits.
CURVATURES: dict[str, Callable[[Array], Linear]] = {
    "softmax_cross_entropy": _softmax_curvature,
    "sigmoid_cross_entropy": _sigmoid_curvature,
    "half_mean_squared_error": _half_squares_curvature,
    "one_hot_squared_error": _half_squares_curvature,
}


def _bend(block: Block, z: Array, a: Array, upstream: Array) -> Array | None:
    """upstream g''(z), None where it is 0."""
    second = SECOND_DERIVATIVES[block.activation.name]
    return None if second is None else upstream * second(z, a)


class _Plain:
    """A block's forward and backward steps differentiated along v = [V c], in arrays that are made once.

    Ra_prev: the move of its input; None in block 1, whose data do not move. Rx: of what W multiplies, a_prev itself, x or x_hat.
    Ra: of what it gives; on the way back the block behind it writes Rda over it, which becomes Rdz where nothing else reads it.
    """

    in_place = True
    slope: Array | float
    bend: Array | None

    def __init__(self, block: Block, cache: Cache, Ra_prev: Array | None, V: Array, out: Array, passing: Passing) -> None:
        self.block, self.cache, self.Ra_prev = block, cache, Ra_prev
        self.dz, self.derivative = np.empty_like(cache.z), np.empty_like(cache.a)
        self.Ra = np.empty((*V.shape[:-1], cache.z.shape[-1]), V.dtype)
        self.Rdz = self.Ra if self.in_place else np.empty_like(self.Ra)
        # Where g'' is 0 nothing reads Rz again.
        self.Rz = self.Ra if SECOND_DERIVATIVES[block.activation.name] is None else np.empty_like(self.Ra)
        # [RdW Rdb] turned: a block's W and b lie column by column in the flat vector.
        out_T = transpose(out)
        self.V_x, self.x_Rdz = product(V, cache.a_prev_1, self.Rz), product(cache.a_prev_1, transpose(self.Rdz), out_T)
        if Ra_prev is not None:
            self.Rx, self.Rdx = (Ra_prev, Ra_prev) if self.in_place else (np.empty_like(Ra_prev), np.empty_like(Ra_prev))
            self.RdW_T = out_T[..., :-1, :]
            self.further_Rz, self.further_RdW_T, self.further_Rdx = (
                passing(moved.shape) for moved in (self.Ra, self.RdW_T, Ra_prev)
            )
            self.W_Rx = product(block.W, self.Rx, self.further_Rz)
            self.Rx_dz = product(self.Rx, transpose(self.dz), self.further_RdW_T)
            self.W_Rdz = product(block.W_T, self.Rdz, self.Rdx)
            self.V_dz = product(transpose(split(V)[0]), self.dz, self.further_Rdx)

    def at(self, da: Array) -> Array:
        """What does not depend on v, from the block's cache and da; returns da_prev, which nobody reads in block 1."""
        self.slope, self.bend = self.block.slope(self.cache, self.derivative), _bend(self.block, self.cache.z, self.cache.a, da)
        np.multiply(self.slope, da, self.dz)
        return da if self.Ra_prev is None else self.block.pull_back(da, self.dz, self.cache)

    def forward(self) -> None:
        """Rz = V x + c + W Rx,  Ra = g'(z) Rz"""
        self.V_x()
        if self.Ra_prev is not None:
            self.W_Rx()
            self.Rz += self.further_Rz
        np.multiply(self.slope, self.Rz, self.Ra)

    def gradient(self) -> None:
        """Rdz = g'(z) Rda + da g''(z) Rz,  RdW = Rdz x^T + dz Rx^T,  Rdb = sum over m of Rdz"""
        np.multiply(self.slope, self.Ra, self.Rdz)
        if self.bend is not None:
            self.Rdz += np.multiply(self.bend, self.Rz, self.Rz)
        self.x_Rdz()
        if self.Ra_prev is not None:
            self.Rx_dz()
            self.RdW_T += self.further_RdW_T

    def pull_back(self) -> None:
        """Rda_prev = Rdx = W^T Rdz + V^T dz, over Ra_prev."""
        self.W_Rdz()
        self.V_dz()
        self.Rdx += self.further_Rdx


class _Residual(_Plain):
    """x = g(a_prev), z = W x + b, a = a_prev + s z."""

    in_place = False
    block: Residual
    cache: ResidualCache

    def at(self, da: Array) -> Array:
        """dz = s da"""
        self.slope, self.bend = self.block.scale, None
        np.multiply(self.slope, da, self.dz)
        self.slope_of_x = self.block.slope(self.cache)
        self.bend_of_x = _bend(self.block, self.cache.skip, self.cache.a_prev, self.block.W_T @ self.dz)
        return self.block.pull_back(da, self.dz, self.cache)

    def forward(self) -> None:
        """Rx = g'(a_prev) Ra_prev,  Ra = Ra_prev + s Rz"""
        assert self.Ra_prev is not None
        np.multiply(self.slope_of_x, self.Ra_prev, self.Rx)
        super().forward()
        self.Ra += self.Ra_prev

    def pull_back(self) -> None:
        """Rda_prev = g'(a_prev) Rdx + dx g''(a_prev) Ra_prev + Rda"""
        super().pull_back()
        self.Rdx *= self.slope_of_x
        if self.bend_of_x is not None:
            self.Rdx += self.bend_of_x * self.Ra_prev
        np.add(self.Rdx, self.Ra, self.Ra_prev)


class _Normalized(_Plain):
    """z = W x_hat + b. With N u = r (u - mean u - x_hat mean(x_hat u)): Rx_hat = N Ra_prev, da_prev = N dx_hat."""

    in_place = False
    block: Normalized
    cache: NormalizedCache

    def __init__(self, block: Block, cache: Cache, *arrays: Any) -> None:
        super().__init__(block, cache, *arrays)
        # For one direction alone.
        cache.room = None

    def at(self, da: Array) -> Array:
        """da_prev = N dx_hat"""
        self.da_prev = super().at(da).copy()
        self.dx_hat = self.block.W_T @ self.dz
        return self.da_prev

    def forward(self) -> None:
        """Rx_hat = N Ra_prev"""
        assert self.Ra_prev is not None
        self.block.through_normalization(self.Ra_prev, self.cache, self.Rx)
        super().forward()

    def pull_back(self) -> None:
        """Rda_prev = N Rdx_hat - r (mean(x_hat Ra_prev) da_prev + Rx_hat mean(x_hat dx_hat) + x_hat mean(Rx_hat dx_hat))

        since Rr = -r^2 mean(x_hat Ra_prev).
        """
        super().pull_back()
        assert self.Ra_prev is not None
        x_hat = self.cache.a_prev
        turned = mean_over_units(x_hat * self.Ra_prev) * self.da_prev
        turned += self.Rx * mean_over_units(x_hat * self.dx_hat)
        turned += x_hat * mean_over_units(self.Rx * self.dx_hat)
        self.block.through_normalization(self.Rdx, self.cache, self.Ra_prev)
        self.Ra_prev -= np.multiply(self.cache.r, turned, turned)


# By the class of the block.
STEPS: dict[type[Block], type[_Plain]] = {Block: _Plain, Residual: _Residual, Normalized: _Normalized}


class Hessian:
    """The Hessian H of J in the parameters of a network, as they are at the last `update`.

    directions: axes of vectors in front of the network's lanes.
    v, product: (*directions, *lanes, P) in the network's dtype, what `times` reads and writes.
    """

    def __init__(self, network: Network, x: Array, y: Array, loss: Loss, directions: tuple[int, ...] = ()) -> None:
        self.curvature_at = choice("loss", loss.name, CURVATURES)
        choice("activation with a second derivative", network.activation.name, SECOND_DERIVATIVES)
        self.network = network
        self.x, self.target = checked(network, x, y, loss)
        self.caches = network.workspace(self.x.shape)
        self.room = Room(self.caches[-1].a.shape, network.parameters.dtype)
        # Without the axes of a single direction: products of two matrices then, which are faster than stacked ones.
        shape, dtype = network.parameters.shape, network.parameters.dtype
        v, product = np.empty((2, *(directions if np.prod(directions) != 1 else ()), *shape), dtype)
        self.v, self.product = v.reshape(*directions, *shape), product.reshape(*directions, *shape)

        arrays: dict[tuple[int, ...], Array] = {}

        def passing(shape: tuple[int, ...]) -> Array:
            return arrays.setdefault(shape, np.empty(shape, dtype))

        self.steps: list[_Plain] = []
        Ra = None
        joined = zip(network.layout.blocks(v), network.layout.blocks(product), strict=True)
        for block, cache, (V, out) in zip(network.blocks, self.caches, joined, strict=True):
            self.steps.append(STEPS[type(block)](block, cache, Ra, V, out, passing))
            Ra = self.steps[-1].Ra
        np.copyto(self.caches[0].a_prev, self.x)
        self.calls = [*network.forward_calls(self.caches), *loss.calls(self.caches[-1].a, self.target, self.room)]
        self.update()

    @np.errstate(over="ignore", invalid="ignore")
    def update(self) -> None:
        """Take the network's parameters as they are now."""
        for call in self.calls:
            call()
        self.curvature = self.curvature_at(self.caches[-1].a)
        da = self.room.dlogits
        for step in reversed(self.steps):
            da = step.at(da)

    def times(self) -> Array:
        """`product` = H v: what backward computes, differentiated along v."""
        for step in self.steps:
            step.forward()
        Rlogits = self.steps[-1].Ra
        np.copyto(Rlogits, self.curvature(Rlogits))
        for step in reversed(self.steps):
            step.gradient()
            if step.Ra_prev is not None:
                step.pull_back()
        return self.product


@np.errstate(over="ignore", invalid="ignore")
def hessian_vector_product(network: Network, x: Array, y: Array, loss: Loss, v: Array) -> Array:
    """H v, H the Hessian of J in the parameters: exact, forward over backward (Pearlmutter 1994).

    With R f the derivative of f along v, and v made of blocks [V c] as the parameters are of [W b]:

        forward    Rz = V a_prev + c + W Ra_prev          Ra = g'(z) Rz                          Ra_0 = 0
        loss       Rdlogits = (d^2 J / dlogits^2) Rlogits
        backward   Rdz = g'(z) Rda + da g''(z) Rz         RdW = Rdz a_prev^T + dz Ra_prev^T      Rdb = sum over m of Rdz
                   Rda_prev = W^T Rdz + V^T dz

    Residual and normalized blocks have more terms, which stand beside their code.

    With relu and leaky_relu H is the Hessian where it exists, off the kinks: g'' = 0 there, and what is left is the curvature
    of the loss and the products of weights of different blocks.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    v: (..., P) with the network's lanes; axes in front of those are further directions.
    Returns H v in the shape of v and the network's dtype.
    """
    v = np.asarray(v)
    check_shape("v", v, network.parameters.shape)
    check_finite("v", v)
    hessian = Hessian(network, x, y, loss, v.shape[: v.ndim - network.parameters.ndim])
    np.copyto(hessian.v, v)
    return hessian.times()
