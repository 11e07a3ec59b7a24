"""The curvature of the loss: its Hessian in the parameters times a vector, and the Hessian's largest eigenvalues.

Nothing here changes a bit of the network. A lane that has diverged is no error: it comes out as nan or inf, and alone.
Sources:

- Pearlmutter, "Fast exact multiplication by the Hessian", 1994: the R-operator
- Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977
- Cohen, Kaur, Li, Kolter, Talwalkar, "Gradient descent on neural networks typically occurs at the edge of stability", 2021:
  the sharpness
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.activations import GELU_CUBIC, GELU_SATURATED, GELU_SCALE, sigmoid, sigmoid_derivative
from blocks.arrays import Array, check_finite, check_number, check_shape, choice, sum_over_units, transpose, whole_number
from blocks.block import Block, Cache
from blocks.diagnostics import backward_by_block, check_lanes, forward_and_loss
from blocks.losses import Loss
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

# The squares of what is smaller, and their sums, are finite in float64.
LARGEST = 1e150


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


@dataclass
class _Moved:
    """How one block moves along v.

    Ra_prev, Rx: its input, and what W multiplies: a_prev itself, x or x_hat; None in block 1, whose data do not move. Rz: its z.
    """

    Ra_prev: Array | None
    Rx: Array | None
    Rz: Array


def _bend(block: Block, z: Array, a: Array, upstream: Array) -> Array | None:
    """upstream g''(z), None where it is 0."""
    second = SECOND_DERIVATIVES[block.activation.name]
    return None if second is None else upstream * second(z, a)


class _Plain:
    """A block's forward and backward steps differentiated along v = [V c]; what does not depend on v is computed once."""

    slope: Array | float
    bend: Array | None

    def __init__(self, block: Block, cache: Cache, da: Array, dz: Array) -> None:
        self.W, self.W_T, self.cache, self.dz = block.W, block.W_T, cache, dz
        self.slope, self.bend = block.slope(cache), _bend(block, cache.z, cache.a, da)

    def forward(self, v: Array, Ra_prev: Array | None) -> tuple[Array, _Moved]:
        """Ra = g'(z) Rz,  Rz = V a_prev + c + W Ra_prev"""
        Rx = None if Ra_prev is None else self.input(Ra_prev)
        Rz = v @ self.cache.a_prev_1
        if Rx is not None:
            Rz += self.W @ Rx
        return self.slope * Rz, _Moved(Ra_prev, Rx, Rz)

    def input(self, Ra_prev: Array) -> Array:
        """Rx, the move of what W multiplies."""
        return Ra_prev

    def gradient(self, Rda: Array, moved: _Moved, out: Array) -> Array:
        """Rdz = g'(z) Rda + da g''(z) Rz; into `out` [RdW Rdb], RdW = Rdz a_prev^T + dz Ra_prev^T."""
        Rdz = self.slope * Rda
        if self.bend is not None:
            Rdz += np.multiply(self.bend, moved.Rz, moved.Rz)
        np.matmul(Rdz, self.cache.a_prev_1_T, out)
        if moved.Rx is not None:
            RdW, _ = split(out)
            RdW += self.dz @ transpose(moved.Rx)
        return Rdz

    def pull_back(self, v: Array, Rda: Array, Rdz: Array, moved: _Moved) -> Array:
        """Rda_prev = W^T Rdz + V^T dz"""
        V, _ = split(v)
        Rda_prev = self.W_T @ Rdz
        Rda_prev += transpose(V) @ self.dz
        return Rda_prev


class _Residual(_Plain):
    """x = g(a_prev), z = W x + b, a = a_prev + s z."""

    def __init__(self, block: Residual, cache: ResidualCache, da: Array, dz: Array) -> None:
        self.W, self.W_T, self.cache, self.dz = block.W, block.W_T, cache, dz
        self.slope, self.bend = block.scale, None
        self.slope_of_x, self.bend_of_x = block.slope(cache), _bend(block, cache.skip, cache.a_prev, block.W_T @ dz)

    def input(self, Ra_prev: Array) -> Array:
        """Rx = g'(a_prev) Ra_prev"""
        return self.slope_of_x * Ra_prev

    def forward(self, v: Array, Ra_prev: Array | None) -> tuple[Array, _Moved]:
        """Ra = Ra_prev + s Rz"""
        Ra, moved = super().forward(v, Ra_prev)
        return Ra if Ra_prev is None else Ra + Ra_prev, moved

    def pull_back(self, v: Array, Rda: Array, Rdz: Array, moved: _Moved) -> Array:
        """Rda_prev = g'(a_prev) Rdx + dx g''(a_prev) Ra_prev + Rda,  Rdx = W^T Rdz + V^T dz"""
        Rda_prev = self.slope_of_x * super().pull_back(v, Rda, Rdz, moved)
        if self.bend_of_x is not None:
            Rda_prev += self.bend_of_x * moved.Ra_prev
        Rda_prev += Rda
        return Rda_prev


class _Normalized(_Plain):
    """z = W x_hat + b. With N u = r (u - mean u - x_hat mean(x_hat u)): Rx_hat = N Ra_prev, da_prev = N dx_hat."""

    def __init__(self, block: Normalized, cache: NormalizedCache, da: Array, dz: Array) -> None:
        super().__init__(block, cache, da, dz)
        self.block, self.x_hat, self.r = block, cache.a_prev, cache.r
        self.dx_hat = block.W_T @ dz
        self.da_prev = self.input(self.dx_hat)

    def input(self, Ra_prev: Array) -> Array:
        """Rx_hat = N Ra_prev"""
        return self.block.through_normalization(Ra_prev, self.cache)

    def pull_back(self, v: Array, Rda: Array, Rdz: Array, moved: _Moved) -> Array:
        """Rda_prev = N Rdx_hat - r (mean(x_hat Ra_prev) da_prev + Rx_hat mean(x_hat dx_hat) + x_hat mean(Rx_hat dx_hat))

        where Rdx_hat = W^T Rdz + V^T dz, since Rr = -r^2 mean(x_hat Ra_prev).
        """
        Rda_prev = self.input(super().pull_back(v, Rda, Rdz, moved))
        assert moved.Ra_prev is not None
        assert moved.Rx is not None
        turned = mean_over_units(self.x_hat * moved.Ra_prev) * self.da_prev
        turned += moved.Rx * mean_over_units(self.x_hat * self.dx_hat)
        turned += self.x_hat * mean_over_units(moved.Rx * self.dx_hat)
        Rda_prev -= self.r * turned
        return Rda_prev


# By the class of the block.
STEPS: dict[type[Block], Callable[..., _Plain]] = {Block: _Plain, Residual: _Residual, Normalized: _Normalized}


class _Hessian:
    """The Hessian H of J in the parameters, at a network's."""

    def __init__(self, network: Network, x: Array, y: Array, loss: Loss) -> None:
        curvature = choice("loss", loss.name, CURVATURES)
        choice("activation with a second derivative", network.activation.name, SECOND_DERIVATIVES)
        logits, caches, dlogits = forward_and_loss(network, x, y, loss)
        self.layout, self.curvature = network.layout, curvature(logits)
        backward = backward_by_block(network, caches, dlogits)
        self.steps = [
            STEPS[type(block)](block, cache, da, dz)
            for block, cache, (da, dz) in zip(network.blocks, caches, backward, strict=True)
        ]

    def times(self, v: Array) -> Array:
        """H v: what backward computes, differentiated along v. v: (..., P), C-contiguous, in the network's dtype."""
        V, product = self.layout.blocks(v), np.empty_like(v)
        moves: list[_Moved] = []
        Ra = None
        for step, own in zip(self.steps, V, strict=True):
            Ra, moved = step.forward(own, Ra)
            moves.append(moved)
        assert Ra is not None

        Rda = self.curvature(Ra)
        out = self.layout.blocks(product)
        for index in range(len(self.steps) - 1, -1, -1):
            step, moved = self.steps[index], moves[index]
            Rdz = step.gradient(Rda, moved, out[index])
            if index > 0:
                Rda = step.pull_back(V[index], Rda, Rdz, moved)
        return product


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
    return _Hessian(network, x, y, loss).times(v.astype(network.parameters.dtype, order="C"))


def _orthonormal(new: Array, basis: Array) -> Array:
    """Orthonormal rows spanning what is new in `new` (..., s, P) beside the orthonormal rows of `basis` (..., k, P).

    A row that holds nothing new is replaced by some direction, which the next passes make orthogonal too.
    """
    for _ in range(3):
        new = new - (new @ transpose(basis)) @ basis
        new = transpose(np.linalg.qr(transpose(new)).Q)
    return new


@np.errstate(over="ignore", invalid="ignore")
def top_eigenpairs(
    network: Network, x: Array, y: Array, loss: Loss, start: Array, *, tolerance: float = 1e-8, iterations: int = 200
) -> tuple[Array, Array]:
    """The largest eigenvalues of the Hessian of J in the parameters, and their eigenvectors, by block Lanczos.

    The subspace grows by H times its last block, fully orthogonalised, and a block of as many vectors as there are
    eigenvalues asked for finds a multiple eigenvalue as often as it occurs. All lanes at once; a lane's result is taken
    when it has converged, and has the bits of the lane alone.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    start: (count, P) or (..., count, P), random vectors, or the eigenvectors of a network near by: fewer products then.
    tolerance: bound on ||H u - lambda u|| / max |lambda|, which bounds lambda's error too; with float32 at least 1e-6.
    iterations: products of H and a block, at most.
    Returns eigenvalues (..., count), the largest first, and unit vectors (..., count, P), both float64; nan in a lane that has
    not converged, or where an entry of H u is not finite or above 1e150.
    """
    hessian = _Hessian(network, x, y, loss)
    dtype, lanes, size = network.parameters.dtype, network.lanes, network.layout.size
    new = np.asarray(start, dtype=np.float64)
    check_shape("start", new, ("count", size))
    check_lanes("start", new, lanes)
    check_finite("start", new)
    count = whole_number("count", new.shape[-2], at_least=1, at_most=size)
    check_number("tolerance", tolerance, above=0)
    tolerance = max(tolerance, 8 * float(np.finfo(dtype).eps))
    iterations = whole_number("iterations", iterations, at_least=1)

    new = np.broadcast_to(new, (*lanes, count, size))
    basis, projected = np.empty((*lanes, 0, size)), np.empty((*lanes, 0, 0))
    values, vectors = np.full((*lanes, count), np.nan), np.full((*lanes, count, size), np.nan)
    pending = np.ones(lanes, dtype=bool)
    for _ in range(iterations):
        new = _orthonormal(new[..., : size - basis.shape[-2], :], basis)
        basis = np.concatenate([basis, new], axis=-2)
        image = np.moveaxis(hessian.times(np.moveaxis(new, -2, 0).astype(dtype, order="C")), 0, -2).astype(np.float64)
        in_range = (np.abs(image) < LARGEST).all(axis=(-2, -1))
        image[~in_range] = 0
        pending &= in_range

        # The last columns of basis H basis^T; H is symmetric, and they are its last rows too.
        columns = basis @ transpose(image)
        s = new.shape[-2]
        rows = transpose(columns)
        projected = np.concatenate([np.concatenate([projected, columns[..., :-s, :]], axis=-1), rows], axis=-2)
        new = image - rows @ basis

        eigenvalues, Y = np.linalg.eigh(projected)
        top, Y_T = eigenvalues[..., : -count - 1 : -1], transpose(Y[..., : -count - 1 : -1])
        # H u - lambda u, where u = Y^T basis: all but the last block's images lie in the basis.
        residuals = np.linalg.norm(Y_T[..., -s:] @ new, axis=-1)
        converged = (residuals <= tolerance * np.abs(eigenvalues).max(axis=-1, keepdims=True)).all(axis=-1)
        complete = basis.shape[-2] == size
        done = pending & (converged | complete)
        if done.any():
            values[done], vectors[done] = top[done], (Y_T @ basis)[done]
            pending &= ~done
        if complete or not pending.any():
            break
    return values, vectors


def sharpness(
    network: Network,
    x: Array,
    y: Array,
    loss: Loss,
    count: int = 1,
    *,
    rng: np.random.Generator,
    tolerance: float = 1e-8,
    iterations: int = 200,
) -> Array:
    """The `count` largest eigenvalues of the Hessian of J in the parameters, (..., count), the largest first.

    Full-batch gradient descent is unstable along an eigenvector whose eigenvalue is above 2 / learning rate (Cohen et al.
    2021). See `top_eigenpairs` for the arguments, and `hessian_vector_product` for what it is with relu and leaky_relu.

    rng: where the start comes from, the same for every lane.
    """
    count = whole_number("count", count, at_least=1, at_most=network.layout.size)
    start = rng.standard_normal((count, network.layout.size))
    return top_eigenpairs(network, x, y, loss, start, tolerance=tolerance, iterations=iterations)[0]
