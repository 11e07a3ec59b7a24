"""The losses, from logits: value and gradient; the one 1/m of the whole engine stands here.

A loss is called with the targets as people have them, and checks them. A training loop encodes and checks them once, as
an array that lies beside the data, and calls `value_and_gradient`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, check_finite, check_shape, choice, sum_over_units


@dataclass(frozen=True)
class Loss:
    """J(logits, y), the mean over the m examples.

    name: the table's key.
    value_and_gradient: `f(logits, target, dlogits=None) -> value, dlogits`, target as `encode` makes it.
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


def _mean_over_examples(values: Array) -> Array:
    """(..., 1, m) -> (...)"""
    return np.add.reduce(values, axis=-1)[..., 0] / values.dtype.type(values.shape[-1])


def _softmax(logits: Array, target: Array, dlogits: Array | None = None) -> tuple[Array, Array]:
    """Softmax cross-entropy, p_k = e^z_k / sum_j e^z_j:

    J = 1/m sum of log(sum_j e^z_j) - z_y        dJ/dz = (p - onehot(y)) / m
    """
    top = np.maximum.reduce(logits, axis=-2, keepdims=True)
    of_label = sum_over_units(np.multiply(target, logits, dlogits)) - top
    shifted = np.subtract(logits, top)
    np.exp(shifted, shifted)
    total = sum_over_units(shifted)
    value = _mean_over_examples(np.log(total) - of_label)
    dlogits = np.divide(shifted, total, dlogits)
    dlogits -= target
    dlogits *= logits.dtype.type(1 / logits.shape[-1])
    return value, dlogits


def _one_hot(y: Array, classes: int) -> Array:
    """(..., m) integer labels 0 to n_L - 1 -> (..., n_L, m)"""
    _check_labels(y, classes)
    return (np.arange(classes)[:, None] == y[..., None, :]).astype(np.float64)


def _largest(logits: Array) -> Array:
    """(..., K, m) -> (..., m)"""
    return logits.argmax(axis=-2)


def _sigmoid(logits: Array, target: Array, dlogits: Array | None = None) -> tuple[Array, Array]:
    """Binary cross-entropy of one logit z, labels y of 0 or 1, p = 1 / (1 + e^-z):

    J = 1/m sum of max(z, 0) - y z + log(1 + e^-|z|)        dJ/dz = (p - y) / m
    """
    e = np.exp(-np.abs(logits))
    value = _mean_over_examples(np.maximum(logits, 0) - target * logits + np.log1p(e))
    dlogits = np.divide(np.where(logits >= 0, logits.dtype.type(1), e), 1 + e, dlogits)
    dlogits -= target
    dlogits *= logits.dtype.type(1 / logits.shape[-1])
    return value, dlogits


def _zero_or_one(y: Array, units: int) -> Array:
    """(..., m) labels of 0 or 1 -> (..., 1, m)"""
    if units != 1:
        raise ValueError(f"sigmoid_cross_entropy takes 1 logit an example, the network has {units}")
    _check_labels(y, 2)
    return y[..., None, :].astype(np.float64)


def _positive(logits: Array) -> Array:
    """(..., 1, m) -> (..., m)"""
    return (logits[..., 0, :] > 0).astype(int)


def _half_squares(logits: Array, target: Array, dlogits: Array | None = None) -> tuple[Array, Array]:
    """Half the mean squared error, summed over the units:

    J = 1/(2m) sum of ||z - y||^2        dJ/dz = (z - y) / m
    """
    dlogits = np.subtract(logits, target, dlogits)
    value = _mean_over_examples(sum_over_units(dlogits * dlogits)) / 2
    dlogits *= logits.dtype.type(1 / logits.shape[-1])
    return value, dlogits


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
