"""The Hessian's largest eigenvalues, by block Lanczos on its products with vectors: the sharpness.

- Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977
- Cohen, Kaur, Li, Kolter, Talwalkar, "Gradient descent on neural networks typically occurs at the edge of stability", 2021:
  the sharpness
"""

import numpy as np

from blocks.arrays import Array, check_finite, check_number, check_shape, largest, smallest, times, transpose, whole_number
from blocks.losses import Loss
from blocks.measure.diagnostics import check_lanes
from blocks.measure.hessian import Hessian
from blocks.network import Network
from blocks.parameters import SAFE

# The scale 1. The code compares with this very object, and then divides nothing by it.
UNIT_SCALE = np.ones((1, 1))
# A vector is projected again where a projection leaves less than this share of its length: its rounding errors are then too
# large (Rutishauser 1970).
MIN_REMAINING = 0.1
# The number of products over which a reported value has not changed. With 3, a smaller eigenvalue was taken for the largest in
# 1 of 200 random small networks, whose start had little of the largest one's vector; with 5, in 1 of 4,350.
SETTLING_PRODUCTS = 5


class BufferPool:
    """Memory that several calls of `top_eigenpairs` share. New memory would take more time than the sums that are put in it."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """Return the array of that name, with any values. It is a new one where shape or dtype have changed."""
        buffer = self.arrays.get(name)
        if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
            self.arrays[name] = buffer = np.empty(shape, dtype)
        return buffer


class _Basis:
    """Orthonormal rows (..., k, P). When their memory is full, they are copied to a larger one."""

    def __init__(self, lanes: tuple[int, ...], size: int, dtype: np.dtype, pool: BufferPool) -> None:
        self.passing = pool.array("passing", (*lanes, 1, size), dtype)
        self.all = pool.array("basis", (*lanes, min(8, size), size), dtype)
        self.rows = self.all[..., :0, :]

    def append(self, vectors: Array, length: Array | None = None, previous_length: Array | float = np.inf) -> Array:
        """Append orthonormal rows that span what is new in `vectors` (..., s, P), which are overwritten. Returns these rows.

        A vector that is a combination of the rows is replaced by a random direction.
        length, previous_length: (..., 1, 1) of a single vector after and before it was projected once.
        """
        k, s = self.rows.shape[-2], vectors.shape[-2]
        if k + s > self.all.shape[-2]:
            full, self.all = self.all, np.empty((*self.all.shape[:-2], max(k + s, 2 * k), self.all.shape[-1]), self.all.dtype)
            self.all[..., :k, :] = full[..., :k, :]
        for row in range(k, k + s):
            self.rows = self.all[..., :row, :]
            vector = vectors[..., row - k : row - k + 1, :]
            self._append_vector(vector, _lengths(vector) if length is None else length, previous_length if row else 0.0)
        self.rows = self.all[..., : k + s, :]
        return self.all[..., k : k + s, :]

    def _append_vector(self, v: Array, length: Array, previous_length: Array | float) -> None:
        """Append v (..., 1, P) after making it orthonormal to the rows. LAPACK's factors of a tall matrix take longer."""
        needs_projection = ~(length > MIN_REMAINING * previous_length)
        for _ in range(3):
            if not needs_projection.any():
                break
            times(v @ transpose(self.rows))(self.rows, self.passing)
            np.subtract(v, self.passing, v, where=True if needs_projection.all() else needs_projection)
            previous_length, length = length, _lengths(v)
            needs_projection = ~(length > MIN_REMAINING * previous_length)
            is_dependent = ~(length > 10 * np.finfo(v.dtype).eps * previous_length)
            if is_dependent.any():
                random_vector: Array = np.random.default_rng(self.rows.shape[-2]).standard_normal((v.shape[-1],)).astype(v.dtype)
                np.copyto(v, random_vector, where=is_dependent)
                length = _lengths(v)
        k = self.rows.shape[-2]
        np.divide(v, length, self.all[..., k : k + 1, :])


@np.errstate(over="ignore", invalid="ignore")
def top_eigenpairs(
    hessian: Hessian,
    start: Array,
    *,
    tolerance: float = 1e-8,
    iterations: int = 200,
    pool: BufferPool | None = None,
) -> tuple[Array, Array]:
    """Return the largest eigenvalues of the Hessian of J in the parameters, and their eigenvectors, by block Lanczos.

    The subspace grows by H times its last block, which is fully orthogonalised. The block has `count` vectors, so that a
    multiple eigenvalue is found as often as it occurs. All lanes are computed together; a lane's result is taken when it has
    converged, and has the bits of the lane computed alone.

    A value lambda has converged where r = ||H u - lambda u|| is at most the tolerance times |lambda|: then an eigenvalue is
    within r of lambda. Since r does not show whether it is the largest, lambda must also have grown by at most a tenth of this
    bound over the last 5 products. A larger eigenvalue, whose vector the start contains, would have appeared in these.

    hessian: created with (count,) directions, at least 1; its vectors have the shape (count, ..., P).
    start: (count, P) or (..., count, P), random vectors, or the eigenvectors of a similar network plus random vectors.
    tolerance: the bound on r / |lambda|. Below 8 epsilons of the largest |lambda|, the rounding of H, r counts as 0.
        For tolerances from the square root of the dtype's epsilon on (float32: 3.5e-4), the subspace has the network's dtype.
    iterations: the largest number of products of H and a block.
    pool: memory of an earlier call, which is overwritten. The results do not depend on it.
    Returns eigenvalues (..., count), the largest first, float64, nan where they have not converged; and unit vectors
    (..., count, P) in the subspace's dtype, the best ones found. Both are nan in a lane where H u is not finite.
    """
    search = _Search(hessian, np.asarray(start), tolerance, iterations, pool or BufferPool())
    while search.pending.any():
        search.multiply()
        search.judge()
        search.grow()
    return search.values, search.vectors


class _Search:
    """A block Lanczos iteration; see `top_eigenpairs`.

    pending: (...) True in the lanes that are not finished. values, vectors: the results of the others.
    """

    def __init__(self, hessian: Hessian, start: Array, tolerance: float, iterations: int, pool: BufferPool) -> None:
        network, (count, *_) = hessian.network, hessian.v.shape
        dtype, lanes, size = network.parameters.dtype, network.lanes, network.layout.size
        check_shape("start", start, (count, size))
        check_lanes("start", start, lanes)
        check_finite("start", start)
        whole_number("count", count, at_least=1, at_most=size)
        check_number("tolerance", tolerance, above=0)
        self.hessian, self.count, self.size, self.tolerance = hessian, count, size, tolerance
        self.iterations, self.iteration = whole_number("iterations", iterations, at_least=1), 0
        self.epsilon = float(np.finfo(dtype).eps)
        self.precision = dtype if tolerance >= self.epsilon**0.5 else np.dtype(np.float64)

        self.v, self.product = np.moveaxis(hessian.v, 0, -2), np.moveaxis(hessian.product, 0, -2)
        has_network_dtype = self.precision == dtype
        self.images = self.product if has_network_dtype else pool.array("images", self.product.shape, self.precision)
        self.passing = pool.array("passing blocks", self.product.shape, self.precision)
        self.basis = _Basis(lanes, size, self.precision, pool)
        np.copyto(self.images, start)
        self.new = self.basis.append(self.images)
        self.projected = np.empty((*lanes, 0, 0))
        self.values = np.full((*lanes, count), np.nan)
        self.vectors: Array = np.broadcast_to(self.precision.type(np.nan), (*lanes, count, size))
        self.pending = np.ones(lanes, dtype=bool)
        self.scale: Array | None = None

    def multiply(self) -> None:
        """Multiply H by the newest block, and split the product into what lies in the basis and what is new."""
        s = self.new.shape[-2]
        np.copyto(self.v[..., :s, :], self.new)
        if s < self.count:
            self.v[..., s:, :] = 0
        self.hessian.times()
        image = self.images[..., :s, :]
        if self.images is not self.product:
            np.copyto(image, self.product[..., :s, :])
        if self.scale is None:
            self.scale = _scale(image)
        if self.scale is not UNIT_SCALE:
            image /= self.scale

        # The last rows of basis H basis^T; H is symmetric, and eigh reads what lies on and below the diagonal.
        self.rows = transpose(self.basis.rows @ transpose(image))
        last_projected, k = self.projected, self.rows.shape[-1]
        self.projected = np.empty((*last_projected.shape[:-2], k, k))
        self.projected[..., :-s, :-s], self.projected[..., -s:, :] = last_projected, self.rows
        self.new = np.subtract(image, times(self.rows)(self.basis.rows, self.passing[..., :s, :]), image)
        self.squares = self.new @ transpose(self.new)
        in_range = np.isfinite(self.squares).all(axis=(-2, -1))
        if not in_range.all():
            self.new[~in_range], self.projected[~in_range] = 0, 0
            self.pending &= in_range

    def judge(self) -> None:
        """Store the values of the lanes that have converged, and after the last iteration those of all lanes."""
        self.iteration += 1
        s, k = self.new.shape[-2], self.rows.shape[-1]
        if self.iteration <= SETTLING_PRODUCTS and self.iteration < self.iterations and k < self.size:
            return
        eigenvalues, Y = np.linalg.eigh(self.projected)
        top, Y_T = eigenvalues[..., : -self.count - 1 : -1], transpose(Y[..., : -self.count - 1 : -1])
        # H u - lambda u, where u = Y^T basis: all but the last block's images lie in the basis.
        last = Y_T[..., -s:]
        residuals = np.sqrt(np.maximum(np.vecdot(last @ self.squares.astype(np.float64), last), 0))
        rounding = 8 * self.epsilon * np.abs(eigenvalues).max(axis=-1, keepdims=True)
        is_near = residuals <= np.maximum(self.tolerance * np.abs(top), rounding)
        converged = is_near & self._has_settled(top, rounding) | (k == self.size)
        finished = self.pending & (converged.all(axis=-1) | (self.iteration == self.iterations))
        if finished.any():
            assert self.scale is not None
            self.values[finished] = np.where(converged, top * self.scale[..., 0], np.nan)[finished]
            combined = times(Y_T.astype(self.precision))(self.basis.rows)
            self.vectors = combined if finished.all() else np.where(finished[..., None, None], combined, self.vectors)
            self.pending &= ~finished

    def _has_settled(self, top: Array, rounding: Array) -> Array:
        """Return whether the values, (..., count), grew by at most a tenth of the tolerance over SETTLING_PRODUCTS products."""
        if self.iteration <= SETTLING_PRODUCTS:
            return np.zeros(top.shape, dtype=bool)
        k = self.count * (self.iteration - SETTLING_PRODUCTS)
        earlier_top = np.linalg.eigvalsh(self.projected[..., :k, :k])[..., : -self.count - 1 : -1]
        return np.asarray(top - earlier_top <= np.maximum(self.tolerance / 10 * np.abs(top), rounding))

    def grow(self) -> None:
        """Add what is new to the basis, unless all lanes are finished."""
        k = self.rows.shape[-1]
        if k == self.size:
            self.pending[...] = False
        if not self.pending.any():
            return
        if self.new.shape[-2] == 1:
            length, rows = np.sqrt(self.squares), self.rows
            self.new = self.basis.append(self.new, length, np.sqrt(self.squares + np.vecdot(rows, rows)[..., None]))
        else:
            self.new = self.basis.append(self.new[..., : self.size - k, :])


def _lengths(vectors: Array) -> Array:
    """Return the lengths (..., s, 1) of vectors (..., s, P)."""
    return np.sqrt(np.vecdot(vectors, vectors))[..., None]


def _scale(image: Array) -> Array:
    """Return the divisor (..., 1, 1) with which the squares of (..., s, P), and their sums, stay in the dtype's range.

    It is UNIT_SCALE where all do; else a power of two, so that it changes no digit.
    """
    squares = np.vecdot(image, image)
    lowest, highest = SAFE[image.dtype], SAFE[image.dtype] ** -0.5
    if lowest < smallest(squares) and largest(squares) < highest:
        return UNIT_SCALE
    safe = ((squares > lowest) & (squares < highest)).all(axis=-1)[..., None, None]
    exponents = np.clip(np.frexp(np.abs(image).max(axis=(-2, -1), keepdims=True))[1], -100, 100)
    return np.ldexp(image.dtype.type(1), np.where(safe, 0, exponents))


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
    """Return the `count` largest eigenvalues of the Hessian of J in the parameters, (..., count), the largest first.

    Full-batch gradient descent is unstable along an eigenvector whose eigenvalue is above 2 / learning rate (Cohen et al. 2021).
    For x, y, loss, and the Hessian with relu and leaky_relu see `hessian_vector_product`.

    rng: draws the start, which is the same for every lane. tolerance, iterations: see `top_eigenpairs`.
    """
    count = whole_number("count", count, at_least=1, at_most=network.layout.size)
    start = rng.standard_normal((count, network.layout.size))
    return top_eigenpairs(Hessian(network, x, y, loss, (count,)), start, tolerance=tolerance, iterations=iterations)[0]
