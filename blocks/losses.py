"""The losses, from logits: value and gradient; the one 1/m of the whole engine stands here.

A loss is called with the targets as people have them, and checks them. A training loop encodes and checks them once, as
an array that lies beside the data, and calls `value_and_gradient`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, check_finite, check_shape, choice, times


@dataclass(frozen=True)
class Loss:
    """J(logits, y), the mean over the m examples.

    name: the table's key.
    value_and_gradient: `f(logits, target, room=None) -> value, dlogits`, target as `encode` makes it, see `Room`.
    encode: `encode(y, n_L) -> target` (..., n_L, m) float64; raises ValueError where y is not what the loss takes.
    decides: `decides(logits) -> classes (..., m)`, or None where the loss is no classifier's.
    """

    name: str
    value_and_gradient: Callable[..., tuple[Array, Array]]
    encode: Callable[[Array, int], Array]
    decides: Callable[[Array], Array] | None

    def __call__(self, logits: Array, y: Array) -> tuple[Array, Array]:
        """value (...,) a lane, dlogits (..., n_L, m) = dJ/dlogits.

        logits: (..., n_L, m), finite.
        y: the targets: (m,) or (..., m) labels, or (..., n_L, m) values for a squared error.
        """
        if not np.issubdtype(logits.dtype, np.floating):
            raise ValueError(f"logits has dtype {logits.dtype}, it must be floating")
        check_finite("logits", logits)
        target = self.encode(np.asarray(y), logits.shape[-2])
        check_shape("y", target, logits.shape[-2:])
        return self.value_and_gradient(logits, target.astype(logits.dtype))

    @classmethod
    def named(cls, name: str) -> "Loss":
        """The loss of that name; raises ValueError with the list of names."""
        return choice("loss", name, LOSSES)


def _check_labels(y: Array, classes: int) -> None:
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y has dtype {y.dtype}, it must hold integer labels")
    if y.size and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"y of shape {y.shape} has labels {y.min()} to {y.max()}, they must be 0 to {classes - 1}")


class Room:
    """Arrays that a loss computes in: with one made for a loop nothing is allocated in it.

    shape: (..., n_L, m) of the logits.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        *lanes, n, self.m = shape
        self.dlogits, self.units = np.empty(shape, dtype), np.empty(shape, dtype)
        self.one, self.two, self.three = np.empty((3, *lanes, 1, self.m), dtype)
        self.value = np.empty((*lanes, 1, 1), dtype)
        # A product, since NumPy's own sum over a middle axis may add in another order in a stack.
        self.sum_over_units = times(np.ones((1, n), dtype))
        self.over_m = np.full((self.m, 1), 1 / self.m, dtype)
        self.row_times = times(self.one)

    def mean_over_examples(self) -> Array:
        """The mean of `one`, (..., 1, m) -> (...)."""
        return self.row_times(self.over_m, self.value)[..., 0, 0]


def _softmax(logits: Array, target: Array, room: Room | None = None) -> tuple[Array, Array]:
    """Softmax cross-entropy, p_k = e^z_k / sum_j e^z_j:

    J = 1/m sum of log(sum_j e^z_j) - z_y        dJ/dz = (p - onehot(y)) / m
    """
    room = room or Room(logits.shape, logits.dtype)
    top = np.maximum.reduce(logits, axis=-2, keepdims=True, out=room.three)
    of_label = room.sum_over_units(np.multiply(target, logits, room.dlogits), room.two)
    of_label -= top
    # Rows are copied for every unit: a broadcast operation takes longer, and allocates.
    e, dlogits = room.units, room.dlogits
    np.copyto(e, top)
    np.exp(np.subtract(logits, e, e), e)
    total = room.sum_over_units(e, room.three)
    np.copyto(dlogits, total)
    np.divide(e, dlogits, dlogits)
    dlogits -= target
    dlogits *= logits.dtype.type(1 / room.m)
    np.subtract(np.log(total, total), of_label, room.one)
    return room.mean_over_examples(), dlogits


def _one_hot(y: Array, classes: int) -> Array:
    """(..., m) integer labels 0 to n_L - 1 -> (..., n_L, m)"""
    _check_labels(y, classes)
    return (np.arange(classes)[:, None] == y[..., None, :]).astype(np.float64)


def _largest(logits: Array) -> Array:
    """(..., K, m) -> (..., m)"""
    return logits.argmax(axis=-2)


def _sigmoid(logits: Array, target: Array, room: Room | None = None) -> tuple[Array, Array]:
    """Binary cross-entropy of one logit z, labels y of 0 or 1, p = 1 / (1 + e^-z):

    J = 1/m sum of max(z, 0) - y z + log(1 + e^-|z|)        dJ/dz = (p - y) / m
    """
    room = room or Room(logits.shape, logits.dtype)
    one, two, dlogits = room.one, room.two, room.dlogits
    e = np.abs(logits, out=room.units)
    np.exp(np.negative(e, e), e)
    # max(z, 0) - y z + log(1 + e)
    np.multiply(target, logits, two)
    np.subtract(np.maximum(logits, 0, out=one), two, one)
    np.add(one, np.log1p(e, two), one)
    # p = e^min(z, 0) / (1 + e)
    np.exp(np.minimum(logits, 0, out=dlogits), dlogits)
    dlogits /= np.add(e, 1, e)
    dlogits -= target
    dlogits *= logits.dtype.type(1 / room.m)
    return room.mean_over_examples(), dlogits


def _zero_or_one(y: Array, units: int) -> Array:
    """(..., m) labels of 0 or 1 -> (..., 1, m)"""
    if units != 1:
        raise ValueError(f"sigmoid_cross_entropy takes 1 logit an example, the network has {units}")
    _check_labels(y, 2)
    return y[..., None, :].astype(np.float64)


def _positive(logits: Array) -> Array:
    """(..., 1, m) -> (..., m)"""
    return (logits[..., 0, :] > 0).astype(int)


def _half_squares(logits: Array, target: Array, room: Room | None = None) -> tuple[Array, Array]:
    """Half the mean squared error, summed over the units:

    J = 1/(2m) sum of ||z - y||^2        dJ/dz = (z - y) / m
    """
    room = room or Room(logits.shape, logits.dtype)
    dlogits = np.subtract(logits, target, room.dlogits)
    room.sum_over_units(np.multiply(dlogits, dlogits, room.units), room.one)
    room.one *= logits.dtype.type(0.5)
    dlogits *= logits.dtype.type(1 / room.m)
    return room.mean_over_examples(), dlogits


def _values(y: Array, units: int) -> Array:
    """(..., n_L, m) values, or (m,) for one unit -> (..., n_L, m)"""
    y = y[None, :] if y.ndim == 1 else y
    check_shape("y", y, (units, "m"))
    check_finite("y", y)
    return y.astype(np.float64)


softmax_cross_entropy = Loss("softmax_cross_entropy", _softmax, _one_hot, _largest)
sigmoid_cross_entropy = Loss("sigmoid_cross_entropy", _sigmoid, _zero_or_one, _positive)
half_mean_squared_error = Loss("half_mean_squared_error", _half_squares, _values, None)
# The squared error of a classifier, its labels one-hot (Hui and Belkin 2021).
one_hot_squared_error = Loss("one_hot_squared_error", _half_squares, _one_hot, _largest)

LOSSES = {
    loss.name: loss for loss in (softmax_cross_entropy, sigmoid_cross_entropy, half_mean_squared_error, one_hot_squared_error)
}
