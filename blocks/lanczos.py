"""The Hessian's largest eigenvalues, by block Lanczos on its products with vectors: the sharpness.

- Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977
- Cohen, Kaur, Li, Kolter, Talwalkar, "Gradient descent on neural networks typically occurs at the edge of stability", 2021:
  the sharpness
"""

import numpy as np

from blocks.arrays import Array, check_finite, check_number, check_shape, transpose, whole_number
from blocks.block import Cache
from blocks.diagnostics import check_lanes
from blocks.hessian import Hessian
from blocks.losses import Loss
from blocks.network import Network

# The squares of what is smaller, and their sums, are finite in float64.
LARGEST = 1e150


class Room:
    """Memory for `top_eigenpairs`, which a caller may hand in again: a new page costs more than the sums that are put in it."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.caches: list[Cache] = []

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """The array of that name, its values unknown; another one where shape or dtype have changed."""
        kept = self.arrays.get(name)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            self.arrays[name] = kept = np.empty(shape, dtype)
        return kept

    def caches_of(self, network: Network, x: Array) -> list[Cache] | None:
        """The caches of the last call where they fit."""
        fit = self.caches and self.caches[0].a_prev.shape == x.shape and self.caches[0].z.shape[:-2] == network.lanes
        return self.caches if fit else None


class _Basis:
    """Orthonormal rows (..., k, P), in memory that is moved when it is full."""

    def __init__(self, lanes: tuple[int, ...], size: int, dtype: np.dtype, room: Room) -> None:
        self.room, self.passing = room, room.array("passing", (*lanes, 1, size), dtype)
        self.all = room.array("basis", (*lanes, min(8, size), size), dtype)
        self.rows = self.all[..., :0, :]

    def append(self, vectors: Array) -> Array:
        """Orthonormal rows spanning what is new in `vectors` (..., s, P), which are overwritten.

        A vector that holds nothing new is replaced by some direction that does.
        """
        k, s = self.rows.shape[-2], vectors.shape[-2]
        if k + s > self.all.shape[-2]:
            full, self.all = self.all, np.empty((*self.all.shape[:-2], max(k + s, 2 * k), self.all.shape[-1]), self.all.dtype)
            self.all[..., :k, :] = full[..., :k, :]
        for place in range(k, k + s):
            self.rows = self.all[..., :place, :]
            self.all[..., place : place + 1, :] = self._new_in(vectors[..., place - k : place - k + 1, :])
        self.rows = self.all[..., : k + s, :]
        return self.all[..., k : k + s, :]

    def _new_in(self, v: Array) -> Array:
        """A unit vector (..., 1, P), written into v: LAPACK's factors of a tall matrix take longer."""
        lost = np.ones((*v.shape[:-1], 1), dtype=bool)
        length = _length(v)
        # A second pass where the first has left little, and its rounding errors weigh (Kahan); one more for a direction put in.
        for _ in range(3):
            np.matmul(v @ transpose(self.rows), self.rows, self.passing)
            np.subtract(v, self.passing, v, where=lost)
            before, length = length, _length(v)
            lost = ~(length > 0.5 * before)
            if not lost.any():
                break
            nothing = ~(length > 10 * np.finfo(v.dtype).eps * before)
            if nothing.any():
                other: Array = np.random.default_rng(self.rows.shape[-2]).standard_normal((v.shape[-1],)).astype(v.dtype)
                np.copyto(v, other, where=nothing)
                length = _length(v)
        v /= length
        return v


def _length(v: Array) -> Array:
    """(..., 1, P) -> (..., 1, 1)"""
    return np.sqrt(np.vecdot(v, v))[..., None]


def _errors(residuals: Array, eigenvalues: Array) -> Array:
    """Estimates min(r, r^2 / gap) of the errors of the largest Ritz values, (..., count), from their residuals r (Kato, Temple).

    gap: to the nearest other one of the Ritz values (..., k), in ascending order; an estimate, since it stands for the
    distance to the nearest other eigenvalue.
    """
    if eigenvalues.shape[-1] == 1:
        return residuals
    gaps = np.full((*eigenvalues.shape[:-1], eigenvalues.shape[-1] + 1), np.inf)
    gaps[..., 1:-1] = np.diff(eigenvalues)
    nearest = np.minimum(gaps[..., 1:], gaps[..., :-1])[..., : -residuals.shape[-1] - 1 : -1]
    return np.where(nearest > residuals, residuals * (residuals / np.maximum(nearest, residuals)), residuals)


@np.errstate(over="ignore", invalid="ignore")
def top_eigenpairs(
    network: Network,
    x: Array,
    y: Array,
    loss: Loss,
    start: Array,
    *,
    tolerance: float = 1e-8,
    iterations: int = 200,
    of_values: bool = False,
    room: Room | None = None,
) -> tuple[Array, Array]:
    """The largest eigenvalues of the Hessian of J in the parameters, and their eigenvectors, by block Lanczos.

    The subspace grows by H times its last block, fully orthogonalised, and a block of as many vectors as there are
    eigenvalues asked for finds a multiple eigenvalue as often as it occurs. All lanes at once; a lane's result is taken
    when it has converged, and has the bits of the lane alone.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    start: (count, P) or (..., count, P), random vectors, or the eigenvectors of a network near by: fewer products then.
    tolerance: bound on r / max |lambda|, r = ||H u - lambda u||, which bounds lambda's error too; with float32 at least 1e-6.
        From the square root of the dtype's epsilon on (float32: 3.5e-4), the subspace is kept in the network's dtype.
    iterations: products of H and a block, at most.
    of_values: the tolerance is one of the estimate min(r, r^2 / gap) / max |lambda|, gap the distance of lambda from the
        others; lambda's error is of second order in that of u, so that this takes fewer products.
    room: an earlier call's, to be written over; the results do not depend on it.
    Returns eigenvalues (..., count), the largest first, float64, and unit vectors (..., count, P) in the subspace's dtype; nan
    in a lane that has not converged, or where an entry of H u is not finite or above 1e150.
    """
    room = room or Room()
    hessian = Hessian(network, x, y, loss, room.caches_of(network, x))
    room.caches = hessian.caches
    dtype, lanes, size = network.parameters.dtype, network.lanes, network.layout.size
    start = np.asarray(start)
    check_shape("start", start, ("count", size))
    check_lanes("start", start, lanes)
    check_finite("start", start)
    count = whole_number("count", start.shape[-2], at_least=1, at_most=size)
    check_number("tolerance", tolerance, above=0)
    epsilon = float(np.finfo(dtype).eps)
    precision = dtype if tolerance >= epsilon**0.5 else np.dtype(np.float64)
    tolerance = max(tolerance, 8 * epsilon)
    iterations = whole_number("iterations", iterations, at_least=1)

    images = room.array("images", (count, *lanes, size), precision)
    products = images if precision == dtype else room.array("products", images.shape, dtype)
    passing = room.array("blocks", (*lanes, count, size), precision)
    new = np.moveaxis(images, 0, -2)
    np.copyto(new, start)
    basis, projected = _Basis(lanes, size, precision, room), np.empty((*lanes, 0, 0))
    values, vectors = np.full((*lanes, count), np.nan), np.full((*lanes, count, size), np.nan, precision)
    pending = np.ones(lanes, dtype=bool)
    scale: Array | None = None
    for _ in range(iterations):
        new = basis.append(new[..., : size - basis.rows.shape[-2], :])
        s = new.shape[-2]
        hessian.times(np.moveaxis(new, -2, 0).astype(dtype, order="C", copy=False), products[:s])
        if products is not images:
            images[:s] = products[:s]
        image = np.moveaxis(images[:s], 0, -2)
        largest = np.maximum(image.max(axis=(-2, -1), keepdims=True), -image.min(axis=(-2, -1), keepdims=True))
        in_range = largest < LARGEST
        if not in_range.all():
            np.copyto(image, 0, where=~in_range)
            largest[~in_range] = 0
            pending &= in_range[..., 0, 0]
        if scale is None:
            # A power of two, so that it changes no digit, and the squares of what is large or small stay in range.
            scale = np.ldexp(precision.type(1), np.clip(np.frexp(largest)[1], -100, 100))
        image /= scale

        # The last columns of basis H basis^T; H is symmetric, and they are its last rows too.
        columns = basis.rows @ transpose(image)
        rows = transpose(columns)
        projected = np.concatenate([np.concatenate([projected, columns[..., :-s, :]], axis=-1), rows], axis=-2)
        new = np.subtract(image, np.matmul(rows, basis.rows, passing[..., :s, :]), image)

        eigenvalues, Y = np.linalg.eigh(projected)
        top, Y_T = eigenvalues[..., : -count - 1 : -1], transpose(Y[..., : -count - 1 : -1])
        # H u - lambda u, where u = Y^T basis: all but the last block's images lie in the basis.
        left = Y_T[..., -s:].astype(precision) @ new
        residuals = np.sqrt(np.vecdot(left, left)).astype(np.float64)
        errors = _errors(residuals, eigenvalues) if of_values else residuals
        converged = (errors <= tolerance * np.abs(eigenvalues).max(axis=-1, keepdims=True)).all(axis=-1)
        complete = basis.rows.shape[-2] == size
        done = pending & (converged | complete)
        if done.any():
            values[done], vectors[done] = (top * scale[..., 0])[done], (Y_T.astype(precision) @ basis.rows)[done]
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
