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

# The scale of what needs none: told by identity, so that nothing is divided by it.
ONE = np.ones((1, 1))
# A vector is projected anew where a projection has left less of it, since its rounding errors weigh then (Rutishauser 1970).
LEFT = 0.1
# Products over which the values that are reported have stood still, measured: over 3, in 1 of 200 random small networks a
# start that holds little of the largest eigenvalue's vector passed a smaller one for it; over 5 in 1 of 4,350.
SETTLED = 5


class Room:
    """Memory for `top_eigenpairs`, which a caller may hand in again: a new page costs more than the sums that are put in it."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """The array of that name, its values unknown; another one where shape or dtype have changed."""
        kept = self.arrays.get(name)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            self.arrays[name] = kept = np.empty(shape, dtype)
        return kept


class _Basis:
    """Orthonormal rows (..., k, P), in memory that is moved when it is full."""

    def __init__(self, lanes: tuple[int, ...], size: int, dtype: np.dtype, room: Room) -> None:
        self.passing = room.array("passing", (*lanes, 1, size), dtype)
        self.all = room.array("basis", (*lanes, min(8, size), size), dtype)
        self.rows = self.all[..., :0, :]

    def append(self, vectors: Array, length: Array | None = None, before: Array | float = np.inf) -> Array:
        """Orthonormal rows spanning what is new in `vectors` (..., s, P), which are overwritten.

        A vector that holds nothing new is replaced by some direction that does.
        length, before: (..., 1, 1) of a single vector that was projected once already, now and before.
        """
        k, s = self.rows.shape[-2], vectors.shape[-2]
        if k + s > self.all.shape[-2]:
            full, self.all = self.all, np.empty((*self.all.shape[:-2], max(k + s, 2 * k), self.all.shape[-1]), self.all.dtype)
            self.all[..., :k, :] = full[..., :k, :]
        for place in range(k, k + s):
            self.rows = self.all[..., :place, :]
            vector = vectors[..., place - k : place - k + 1, :]
            self._put(vector, _lengths(vector) if length is None else length, before if place else 0.0)
        self.rows = self.all[..., : k + s, :]
        return self.all[..., k : k + s, :]

    def _put(self, v: Array, length: Array, before: Array | float) -> None:
        """v (..., 1, P) behind the rows, made orthonormal: LAPACK's factors of a tall matrix take longer."""
        lost = ~(length > LEFT * before)
        for _ in range(3):
            if not lost.any():
                break
            times(v @ transpose(self.rows))(self.rows, self.passing)
            np.subtract(v, self.passing, v, where=True if lost.all() else lost)
            before, length = length, _lengths(v)
            lost = ~(length > LEFT * before)
            nothing = ~(length > 10 * np.finfo(v.dtype).eps * before)
            if nothing.any():
                other: Array = np.random.default_rng(self.rows.shape[-2]).standard_normal((v.shape[-1],)).astype(v.dtype)
                np.copyto(v, other, where=nothing)
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
    room: Room | None = None,
) -> tuple[Array, Array]:
    """The largest eigenvalues of the Hessian of J in the parameters, and their eigenvectors, by block Lanczos.

    The subspace grows by H times its last block, fully orthogonalised, and a block of as many vectors as there are
    eigenvalues asked for finds a multiple eigenvalue as often as it occurs. All lanes at once; a lane's result is taken
    when it has converged, and has the bits of the lane alone.

    A value lambda has converged where r = ||H u - lambda u|| is at most the tolerance times |lambda|: an eigenvalue is as near
    as that. That it is the largest, no r can tell: lambda must not have grown by a tenth of that over the last 5 products, in
    which another one that the start holds a share of would have come up.

    hessian: its vectors of shape (count, ..., P): made with (count,) directions, at least 1.
    start: (count, P) or (..., count, P), random vectors, or the eigenvectors of a network near by and something random.
    tolerance: the bound on r / |lambda|. Below 8 epsilons of the largest |lambda|, where H itself is rounded, r is as good as 0.
        From the square root of the dtype's epsilon on (float32: 3.5e-4), the subspace is kept in the network's dtype.
    iterations: products of H and a block, at most.
    room: an earlier call's, to be written over; the results do not depend on it.
    Returns eigenvalues (..., count), the largest first, float64, nan for each that has not converged; and unit vectors
    (..., count, P) in the subspace's dtype, the best there are. Both are nan in a lane where H u is not finite.
    """
    search = _Search(hessian, np.asarray(start), tolerance, iterations, room or Room())
    while search.pending.any():
        search.multiply()
        search.judge()
        search.grow()
    return search.values, search.vectors


class _Search:
    """A block Lanczos iteration; see `top_eigenpairs`.

    pending: (...) the lanes that are still searched. values, vectors: what it has found for the others.
    """

    def __init__(self, hessian: Hessian, start: Array, tolerance: float, iterations: int, room: Room) -> None:
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
        own = self.precision == dtype
        self.images = self.product if own else room.array("images", self.product.shape, self.precision)
        self.passing = room.array("passing blocks", self.product.shape, self.precision)
        self.basis = _Basis(lanes, size, self.precision, room)
        np.copyto(self.images, start)
        self.new = self.basis.append(self.images)
        self.projected = np.empty((*lanes, 0, 0))
        self.values = np.full((*lanes, count), np.nan)
        self.vectors: Array = np.broadcast_to(self.precision.type(np.nan), (*lanes, count, size))
        self.pending = np.ones(lanes, dtype=bool)
        self.scale: Array | None = None

    def multiply(self) -> None:
        """H times the newest block, split into what lies in the basis and what is new."""
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
        if self.scale is not ONE:
            image /= self.scale

        # The last rows of basis H basis^T; H is symmetric, and eigh reads what lies on and below the diagonal.
        self.rows = transpose(self.basis.rows @ transpose(image))
        before, k = self.projected, self.rows.shape[-1]
        self.projected = np.empty((*before.shape[:-2], k, k))
        self.projected[..., :-s, :-s], self.projected[..., -s:, :] = before, self.rows
        self.new = np.subtract(image, times(self.rows)(self.basis.rows, self.passing[..., :s, :]), image)
        self.squares = self.new @ transpose(self.new)
        in_range = np.isfinite(self.squares).all(axis=(-2, -1))
        if not in_range.all():
            self.new[~in_range], self.projected[~in_range] = 0, 0
            self.pending &= in_range

    def judge(self) -> None:
        """Take the values that have converged; at the end, whatever there is."""
        self.iteration += 1
        s, k = self.new.shape[-2], self.rows.shape[-1]
        if self.iteration <= SETTLED and self.iteration < self.iterations and k < self.size:
            return
        eigenvalues, Y = np.linalg.eigh(self.projected)
        top, Y_T = eigenvalues[..., : -self.count - 1 : -1], transpose(Y[..., : -self.count - 1 : -1])
        # H u - lambda u, where u = Y^T basis: all but the last block's images lie in the basis.
        last = Y_T[..., -s:]
        residuals = np.sqrt(np.maximum(np.vecdot(last @ self.squares.astype(np.float64), last), 0))
        rounding = 8 * self.epsilon * np.abs(eigenvalues).max(axis=-1, keepdims=True)
        near = residuals <= np.maximum(self.tolerance * np.abs(top), rounding)
        converged = near & self._settled(top, rounding) | (k == self.size)
        done = self.pending & (converged.all(axis=-1) | (self.iteration == self.iterations))
        if done.any():
            assert self.scale is not None
            self.values[done] = np.where(converged, top * self.scale[..., 0], np.nan)[done]
            combined = times(Y_T.astype(self.precision))(self.basis.rows)
            self.vectors = combined if done.all() else np.where(done[..., None, None], combined, self.vectors)
            self.pending &= ~done

    def _settled(self, top: Array, rounding: Array) -> Array:
        """(..., count) whether the values have grown by less than a tenth of the tolerance over SETTLED products."""
        if self.iteration <= SETTLED:
            return np.zeros(top.shape, dtype=bool)
        k = self.count * (self.iteration - SETTLED)
        before = np.linalg.eigvalsh(self.projected[..., :k, :k])[..., : -self.count - 1 : -1]
        return np.asarray(top - before <= np.maximum(self.tolerance / 10 * np.abs(top), rounding))

    def grow(self) -> None:
        """Add what is new to the basis, unless nobody needs it."""
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
    """(..., s, P) -> (..., s, 1)"""
    return np.sqrt(np.vecdot(vectors, vectors))[..., None]


def _scale(image: Array) -> Array:
    """What to divide by so that the squares of (..., s, P), and their sums, stay in range: (..., 1, 1), ONE where all do.

    A power of two otherwise, so that it changes no digit.
    """
    squares = np.vecdot(image, image)
    lowest, highest = SAFE[image.dtype], SAFE[image.dtype] ** -0.5
    if lowest < smallest(squares) and largest(squares) < highest:
        return ONE
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
    """The `count` largest eigenvalues of the Hessian of J in the parameters, (..., count), the largest first.

    Full-batch gradient descent is unstable along an eigenvector whose eigenvalue is above 2 / learning rate (Cohen et al.
    2021). See `hessian_vector_product` for the data, and what it is with relu and leaky_relu, `top_eigenpairs` for the rest.

    rng: where the start comes from, the same for every lane.
    """
    count = whole_number("count", count, at_least=1, at_most=network.layout.size)
    start = rng.standard_normal((count, network.layout.size))
    return top_eigenpairs(Hessian(network, x, y, loss, (count,)), start, tolerance=tolerance, iterations=iterations)[0]
