"""The losses, from logits: value and gradient; the one 1/m of the whole engine stands here.

A loss is called with the targets as people have them, and checks them. A training loop checks them once, keeps them beside
the data, encoded if there is room, and computes in one `Room`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from blocks.arrays import Array, Call, check_finite, check_number, check_shape, choice, inner, product, row_of_ones


class Room:
    """Where a loss leaves what it computes, and what it computes in: with one made for a loop nothing is allocated there.

    shape: (..., n_L, m) of the logits.
    value: (...,) J a lane. dlogits: (..., n_L, m) dJ/dlogits.
    units, row: room for a number a unit and example, and for one an example.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        *lanes, _, m = shape
        self.value, self.dlogits = np.empty(lanes, dtype), np.empty(shape, dtype)
        self.units, self.row = np.empty(shape, dtype), np.empty((*lanes, 1, m), dtype)
        self.over_m = np.full((), 1 / m, dtype)

    def sum_over_units(self, values: Array) -> Call:
        """`row` = the sums of (..., n_L, m) values, as `arrays.sum_over_units` makes them."""
        return product(row_of_ones(values.shape[-2], values.dtype), values, self.row)

    def weighted_sum(self, terms: Array, weights: Array) -> Call:
        """`value` = the sum of the (..., 1, k) terms, each times its weight."""
        return product(terms, weights[:, None], self.value[..., None, None])


@dataclass(frozen=True)
class Loss:
    """J(logits, y), the mean over the m examples.

    name: the table's key.
    calls: `calls(logits, target, room)`, what puts value and dlogits into the room, call after call; target as `encode` makes it.
    check: `check(y, n_L, dtype) -> y`, labels (..., m) or values (..., n_L, m); raises ValueError where y is not what the
        loss takes, or not finite in that dtype.
    encode: `encode(y, n_L, dtype) -> target` (..., n_L, m) in that dtype, of a y that `check` returned.
    decides: `decides(logits) -> classes (..., m)`, or None where the loss is no classifier's.
    """

    name: str
    calls: Callable[[Array, Array, Room], list[Call]]
    check: Callable[[Array, int, np.dtype], Array]
    encode: Callable[[Array, int, np.dtype], Array]
    decides: Callable[[Array], Array] | None

    def __call__(self, logits: Array, y: Array, weights: Array | None = None) -> tuple[Array, Array]:
        """value (...,) a lane, dlogits (..., n_L, m) = dJ/dlogits.

        logits: (..., n_L, m), finite.
        y: the targets: (m,) or (..., m) labels, or (..., n_L, m) values for a squared error.
        weights: (m,) above 0, one an example: J is then the mean with these weights. None: all are equal.
        """
        if not np.issubdtype(logits.dtype, np.floating):
            raise ValueError(f"logits has dtype {logits.dtype}, it must be floating")
        check_finite("logits", logits)
        target = self.target(y, logits.shape[-2], logits.dtype)
        check_shape("y", target, logits.shape[-2:])
        shares = None if weights is None else shares_of(check_weights(weights, logits.shape[-1])).astype(logits.dtype)
        return self.value_and_gradient(logits, target, shares)

    def target(self, y: Array, units: int, dtype: np.dtype) -> Array:
        """The encoded target (..., n_L, m) of y; raises ValueError where y is not what the loss takes."""
        return self.encode(self.check(np.asarray(y), units, dtype), units, dtype)

    def value_and_gradient(self, logits: Array, target: Array, shares: Array | None = None) -> tuple[Array, Array]:
        """What a call returns, of a target that is encoded, with shares as `weighted_calls` takes them."""
        room = Room(logits.shape, logits.dtype)
        calls = self.calls(logits, target, room) if shares is None else self.weighted_calls(logits, target, room, shares)
        for call in calls:
            call()
        return room.value, room.dlogits

    def weighted_calls(self, logits: Array, target: Array, room: Room, shares: Array) -> list[Call]:
        """What puts a mean with weights into the room, and its gradient:

        J = sum of s_i J_i        dJ/dz_i = s_i dJ_i/dz_i        J_i: the loss of example i alone

        Each example is a lane of its own for `calls`, which have J_i then for J.

        shares: (m,) the s_i, in the logits' dtype; their sum is 1.
        """

        def apart(values: Array) -> Array:
            """(..., n_L, m) -> (m, ..., n_L, 1), a view"""
            return np.moveaxis(values, -1, 0)[..., None]

        alone = Room(apart(logits).shape, logits.dtype)
        z, y, values = np.empty_like(alone.dlogits), np.empty_like(alone.dlogits), room.row[..., 0, :]
        return [
            partial(np.copyto, z, apart(logits)),
            partial(np.copyto, y, apart(np.broadcast_to(target, logits.shape))),
            *self.calls(z, y, alone),
            # Side by side: BLAS sums what is spread out in another order.
            partial(np.copyto, values, np.moveaxis(alone.value, 0, -1)),
            inner(values, shares, room.value),
            partial(np.multiply, np.moveaxis(alone.dlogits[..., 0], 0, -1), shares, room.dlogits),
        ]

    @classmethod
    def named(cls, name: str) -> "Loss":
        """The loss of that name; raises ValueError with the list of names."""
        return choice("loss", name, LOSSES)


def check_weights(weights: Array, m: int) -> Array:
    """The weights of m examples in float64; raises ValueError unless there are m, finite and above 0."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (m,):
        raise ValueError(f"weights has shape {weights.shape}, it must be ({m},), one an example")
    check_number("weights", weights, above=0)
    return weights


def shares_of(weights: Array) -> Array:
    """Weights over their sum, which no weight can make overflow."""
    scaled = weights / weights.max()
    return scaled / scaled.sum()


def r2(residual: Array, total: Array, m: int) -> Array:
    """R^2 as scikit-learn's `r2_score` has it, (...): the mean over the outputs of 1 - residual / total.

    An output whose targets are all equal counts 1 where every prediction is right, else 0. nan for fewer than two examples.

    residual: (..., n_L) sums over the m examples of (z - y)^2. total: (n_L,) those of (y - mean y)^2.
    """
    if m < 2:
        return np.full(residual.shape[:-1], np.nan)
    constant = np.where(residual == 0, 1.0, 0.0)
    return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), constant).mean(axis=-1)


def _check_labels(y: Array, classes: int, dtype: np.dtype) -> Array:
    """(..., m) integer labels 0 to n_L - 1"""
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y has dtype {y.dtype}, it must hold integer labels")
    if y.size and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"y of shape {y.shape} has labels {y.min()} to {y.max()}, they must be 0 to {classes - 1}")
    return y


def _softmax(logits: Array, target: Array, room: Room) -> list[Call]:
    """Softmax cross-entropy, p_k = e^z_k / sum_j e^z_j:

    J = 1/m sum of log(sum_j e^z_j) - z_y        dJ/dz = (p - onehot(y)) / m

    z less the example's largest: no e^z overflows, and neither sum of J has terms that cancel.
    """
    m = logits.shape[-1]
    z, row, dlogits = room.units, room.row, room.dlogits
    # Every example's log, and the sum of all z_y.
    terms, weights = np.empty((*room.value.shape, 1, m + 1), z.dtype), np.full(m + 1, 1 / m, z.dtype)
    weights[m] *= -1
    lowest = np.array(np.finfo(z.dtype).min)
    return [
        partial(np.maximum.reduce, logits, axis=-2, keepdims=True, out=row),
        # Rows are copied for every unit: a broadcast operation takes longer, and allocates.
        partial(np.copyto, z, row),
        partial(np.subtract, logits, z, z),
        # Never -inf, which times a target of 0 would be nan.
        partial(np.maximum, z, lowest, out=z),
        inner(_flat(target), _flat(z), terms[..., 0, m]),
        partial(np.exp, z, dlogits),
        room.sum_over_units(dlogits),
        partial(np.copyto, z, row),
        partial(np.divide, dlogits, z, dlogits),
        partial(np.subtract, dlogits, target, dlogits),
        partial(np.multiply, dlogits, room.over_m, dlogits),
        partial(np.log, row, terms[..., :m]),
        room.weighted_sum(terms, weights),
    ]


def _flat(values: Array) -> Array:
    """(..., n, m) -> (..., n m)"""
    return values.reshape(*values.shape[:-2], -1)


def _one_hot(y: Array, classes: int, dtype: np.dtype) -> Array:
    """(..., m) integer labels 0 to n_L - 1 -> (..., n_L, m)"""
    target = np.zeros((*y.shape[:-1], classes, y.shape[-1]), dtype)
    np.put_along_axis(target, y[..., None, :], 1, axis=-2)
    return target


def _largest(logits: Array) -> Array:
    """(..., K, m) -> (..., m)"""
    return logits.argmax(axis=-2)


def _sigmoid(logits: Array, target: Array, room: Room) -> list[Call]:
    """Binary cross-entropy of one logit z, labels y of 0 or 1, p = 1 / (1 + e^-z):

    J = 1/m sum of max(z, 0) - y z + log(1 + e^-|z|)        dJ/dz = (p - y) / m
    """
    e, terms, dlogits = room.units, room.row, room.dlogits
    zero = np.zeros((), logits.dtype)
    return [
        # max(z, 0) - y z + log(1 + e), e = e^-|z|
        partial(np.multiply, target, logits, dlogits),
        partial(np.maximum, logits, zero, out=terms),
        partial(np.subtract, terms, dlogits, terms),
        partial(np.abs, logits, e),
        partial(np.negative, e, e),
        partial(np.exp, e, e),
        partial(np.log1p, e, dlogits),
        partial(np.add, terms, dlogits, terms),
        room.weighted_sum(terms, np.full(logits.shape[-1], room.over_m)),
        # p = e^min(z, 0) / (1 + e)
        partial(np.minimum, logits, zero, out=dlogits),
        partial(np.exp, dlogits, dlogits),
        partial(np.add, e, zero + 1, e),
        partial(np.divide, dlogits, e, dlogits),
        partial(np.subtract, dlogits, target, dlogits),
        partial(np.multiply, dlogits, room.over_m, dlogits),
    ]


def _check_zero_or_one(y: Array, units: int, dtype: np.dtype) -> Array:
    """(..., m) labels of 0 or 1"""
    if units != 1:
        raise ValueError(f"sigmoid_cross_entropy takes 1 logit an example, the network has {units}")
    return _check_labels(y, 2, dtype)


def _one_row(y: Array, units: int, dtype: np.dtype) -> Array:
    """(..., m) labels -> (..., 1, m)"""
    return y[..., None, :].astype(dtype)


def _positive(logits: Array) -> Array:
    """(..., 1, m) -> (..., m)"""
    return (logits[..., 0, :] > 0).astype(int)


def _half_squares(logits: Array, target: Array, room: Room) -> list[Call]:
    """Half the mean squared error, summed over the units:

    J = 1/(2m) sum of ||z - y||^2        dJ/dz = (z - y) / m
    """
    dlogits = room.dlogits
    return [
        partial(np.subtract, logits, target, dlogits),
        inner(_flat(dlogits), _flat(dlogits), room.value),
        partial(np.multiply, room.value, room.over_m / 2, room.value),
        partial(np.multiply, dlogits, room.over_m, dlogits),
    ]


def _check_values(y: Array, units: int, dtype: np.dtype) -> Array:
    """(..., n_L, m) values, or (m,) for one unit -> (..., n_L, m)"""
    y = y[None, :] if y.ndim == 1 else y
    check_shape("y", y, (units, "m"))
    check_finite("y", y, dtype)
    return y


def _values(y: Array, units: int, dtype: np.dtype) -> Array:
    """(..., n_L, m) values, in the dtype"""
    return y.astype(dtype, copy=False)


softmax_cross_entropy = Loss("softmax_cross_entropy", _softmax, _check_labels, _one_hot, _largest)
sigmoid_cross_entropy = Loss("sigmoid_cross_entropy", _sigmoid, _check_zero_or_one, _one_row, _positive)
half_mean_squared_error = Loss("half_mean_squared_error", _half_squares, _check_values, _values, None)
# The squared error of a classifier, its labels one-hot (Hui and Belkin 2021).
one_hot_squared_error = Loss("one_hot_squared_error", _half_squares, _check_labels, _one_hot, _largest)

LOSSES = {
    loss.name: loss for loss in (softmax_cross_entropy, sigmoid_cross_entropy, half_mean_squared_error, one_hot_squared_error)
}
