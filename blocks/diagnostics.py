"""The instruments to read a network by: curvature of the loss, sizes of updates, dead units, gradients by example.

None of them changes a bit of the network. A lane that has diverged is no error: what is not finite there comes out as nan
or inf, in that lane alone. Sources:

- Pearlmutter, "Fast exact multiplication by the Hessian", 1994: the R-operator
- Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977
- Cohen, Kaur, Li, Kolter, Talwalkar, "Gradient descent on neural networks typically occurs at the edge of stability", 2021:
  the sharpness
- Goodfellow, "Efficient per-example gradient computations", 2015
"""

from collections.abc import Callable

import numpy as np

from blocks.activations import GELU_CUBIC, GELU_SATURATED, GELU_SCALE, sigmoid, sigmoid_derivative
from blocks.arrays import Array, check_finite, check_number, check_shape, choice, transpose, whole_number
from blocks.block import Cache
from blocks.losses import Loss
from blocks.network import Network
from blocks.parameters import SAFE, Layout, split


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


def _sum_over_units(values: Array) -> Array:
    """(..., n, m) -> (..., 1, m), as a product, so that a lane has the same bits alone and in a stack."""
    return np.matmul(np.ones((1, values.shape[-2]), values.dtype), values)


def _softmax_curvature(logits: Array) -> Linear:
    """dz -> (diag(p) - p p^T) dz / m, example by example."""
    p = np.exp(logits - logits.max(axis=-2, keepdims=True))
    p /= _sum_over_units(p)
    m = logits.shape[-1]
    return lambda dz: p * (dz - _sum_over_units(p * dz)) / m


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
}


def _check_lanes(argument: str, array: Array, lanes: tuple[int, ...]) -> None:
    if array.shape[:-2] not in ((), lanes):
        raise ValueError(f"{argument} has lanes {array.shape[:-2]}, it must have none or the network's, {lanes}")


def _checked(network: Network, x: Array) -> Array:
    x = np.asarray(x)
    check_shape("x", x, (network.layout.sizes[0], "m"))
    _check_lanes("x", x, network.lanes)
    if x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}, it must have an example at least")
    check_finite("x", x)
    return x


def _forward(network: Network, x: Array, y: Array, loss: Loss) -> tuple[Array, list[Cache], Array]:
    """logits, caches, dlogits"""
    x, y = _checked(network, x), np.asarray(y)
    units, m = network.layout.sizes[-1], x.shape[-1]
    if y.shape[-1:] != (m,):
        raise ValueError(f"y has shape {y.shape}, it must be (..., {m}), an entry for each column of x")
    target = loss.encode(y, units)
    _check_lanes("y", target, network.lanes)
    logits, caches = network.forward(x)
    _, dlogits = loss.value_and_gradient(logits, target.astype(logits.dtype))
    return logits, caches, dlogits


def _backward(network: Network, caches: list[Cache], dlogits: Array) -> list[tuple[Array, Array]]:
    """[(da, g'(z)), ...] of blocks 1..L: backward without its parameters' gradients."""
    steps: list[tuple[Array, Array]] = []
    da = dlogits
    for index in range(network.depth - 1, -1, -1):
        block, cache = network.blocks[index], caches[index]
        slope = block.activation.derivative(cache.z, cache.a)
        steps.insert(0, (da, slope))
        if index > 0:
            da = block.pull_back(da * slope, cache)
    return steps


class _Hessian:
    """The Hessian H of J in the parameters, at a network's; what does not depend on v in H v is computed once."""

    def __init__(self, network: Network, x: Array, y: Array, loss: Loss) -> None:
        curvature = choice("loss", loss.name, CURVATURES)
        choice("activation with a second derivative", network.activation.name, SECOND_DERIVATIVES)
        self.network = network
        logits, self.caches, dlogits = _forward(network, x, y, loss)
        self.curvature = curvature(logits)
        self.slopes: list[Array] = []
        self.dz: list[Array] = []
        self.bends: list[Array | None] = []
        for block, cache, (da, slope) in zip(network.blocks, self.caches, _backward(network, self.caches, dlogits), strict=True):
            second = SECOND_DERIVATIVES[block.activation.name]
            self.slopes.append(slope)
            self.dz.append(da * slope)
            self.bends.append(None if second is None else da * second(cache.z, cache.a))

    def times(self, v: Array) -> Array:
        """H v: what backward computes, differentiated along v. v: (..., P), C-contiguous, in the network's dtype."""
        layout, blocks = self.network.layout, self.network.blocks
        V = layout.blocks(v)
        Rz: list[Array] = []
        Ra: list[Array] = []
        for index, (block, cache) in enumerate(zip(blocks, self.caches, strict=True)):
            Rz.append(V[index] @ cache.a_prev_1)
            # a_0 is the data, and does not move.
            if index > 0:
                Rz[index] += block.W @ Ra[-1]
            Ra.append(self.slopes[index] * Rz[index])

        product = np.empty_like(v)
        R = layout.blocks(product)
        Rda = self.curvature(Ra[-1])
        for index in range(len(blocks) - 1, -1, -1):
            Rdz = np.multiply(self.slopes[index], Rda, Rda)
            bend = self.bends[index]
            if bend is not None:
                Rdz += np.multiply(bend, Rz[index], Rz[index])
            np.matmul(Rdz, self.caches[index].a_prev_1_T, R[index])
            if index > 0:
                R_W, _ = split(R[index])
                R_W += self.dz[index] @ transpose(Ra[index - 1])
                V_W, _ = split(V[index])
                Rda = blocks[index].W_T @ Rdz
                Rda += transpose(V_W) @ self.dz[index]
        return product


@np.errstate(over="ignore", invalid="ignore")
def hessian_vector_product(network: Network, x: Array, y: Array, loss: Loss, v: Array) -> Array:
    """H v, H the Hessian of J in the parameters: exact, forward over backward (Pearlmutter 1994).

    With R f the derivative of f along v, and v made of blocks [V c] as the parameters are of [W b]:

        forward    Rz = V a_prev + c + W Ra_prev          Ra = g'(z) Rz                          Ra_0 = 0
        loss       Rdlogits = (d^2 J / dlogits^2) Rlogits
        backward   Rdz = g'(z) Rda + da g''(z) Rz         RdW = Rdz a_prev^T + dz Ra_prev^T      Rdb = sum over m of Rdz
                   Rda_prev = W^T Rdz + V^T dz

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
    _check_lanes("start", new, lanes)
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


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def update_ratios(before: Array, after: Array, layout: Layout) -> Array:
    """||W_l after - W_l before|| / ||W_l before|| of blocks 1..L, (..., L).

    before, after: (..., P) flat parameters, float32 or float64. inf where weights that were all 0 moved, nan where they did not.
    """
    check_shape("before", before, (layout.size,))
    check_shape("after", after, before.shape)
    for argument, flat in (("before", before), ("after", after)):
        if flat.dtype not in SAFE:
            raise ValueError(f"{argument} has dtype {flat.dtype}, it must be float32 or float64")
    return layout.norms(after - before)[..., 0::2] / layout.norms(before)[..., 0::2]


@np.errstate(over="ignore", invalid="ignore")
def saturated(network: Network, x: Array, threshold: float = 1e-3) -> Array:
    """The share of units of blocks 1..L-1 that pass no gradient for any example, (..., L - 1):

        |g'(z)| < threshold for all m examples

    With relu these are the dead units, 0 for every example, whatever the threshold; with tanh and sigmoid the saturated
    ones; leaky_relu has none below its slope of 0.01.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). threshold: above 0.
    """
    check_number("threshold", threshold, above=0)
    _, caches = network.forward(_checked(network, x))
    shares = np.empty((*network.lanes, network.depth - 1))
    for index, cache in enumerate(caches[:-1]):
        slope = network.activation.derivative(cache.z, cache.a)
        shares[..., index] = (np.abs(slope) < threshold).all(axis=-1).mean(axis=-1)
    return shares


def _norms(columns: Array) -> Array:
    """(..., n, m) -> (..., m), c ||column / c|| with c its largest entry: the squares neither overflow nor vanish."""
    largest = np.abs(columns).max(axis=-2, keepdims=True)
    scaled = columns / np.where(largest > 0, largest, 1)
    return (largest * np.sqrt(_sum_over_units(scaled * scaled)))[..., 0, :]


@np.errstate(over="ignore", invalid="ignore")
def example_gradient_norms(network: Network, x: Array, y: Array, loss: Loss) -> Array:
    """||dJ_i/dW_l||, J_i the loss of example i alone, of blocks 1..L: (..., L, m) (Goodfellow 2015).

        dJ_i/dW_l = dz_i a_prev_i^T          ||dJ_i/dW_l|| = ||dz_i|| ||a_prev_i||

    dz_i is m times a column of backward's dz, J being the mean of the J_i.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    """
    _, caches, dlogits = _forward(network, x, y, loss)
    m = dlogits.shape[-1]
    norms = np.empty((*network.lanes, network.depth, m), dlogits.dtype)
    for index, (cache, (da, slope)) in enumerate(zip(caches, _backward(network, caches, dlogits), strict=True)):
        norms[..., index, :] = m * _norms(da * slope) * _norms(cache.a_prev)
    return norms
