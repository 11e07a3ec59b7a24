"""The losses of the logits: value and gradient. Both contain the 1/m of the mean over the examples, so that backward has none.

A call of a loss takes labels or values as they are, and checks and encodes them. A training checks its targets once, and also
encodes them once if the result is not too large. A new loss is a function and an entry in the table LOSSES.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, check_finite, check_number, check_shape, choice, sum_over_units


@dataclass(frozen=True)
class Loss:
    """J(logits, y), the mean over the m examples.

    name: the key in LOSSES.
    function: `function(logits, target) -> value, dlogits`: value (...,), one per lane, and dlogits (..., n_L, m) = dJ/dlogits.
        target: as `encode` returns it.
    check: `check(y, n_L, dtype) -> y`, labels (..., m) or values (..., n_L, m). Raises ValueError where y is not what the
        loss takes, or not finite in that dtype.
    encode: `encode(y, n_L, dtype) -> target` (..., n_L, m) in that dtype. y: as `check` returned it.
    decides: `decides(logits) -> classes (..., m)`; None for a loss of real values.
    """

    name: str
    function: Callable[[Array, Array], tuple[Array, Array]]
    check: Callable[[Array, int, np.dtype], Array]
    encode: Callable[[Array, int, np.dtype], Array]
    decides: Callable[[Array], Array] | None = None

    def __call__(self, logits: Array, y: Array, weights: Array | None = None) -> tuple[Array, Array]:
        """Return J, (...,), one per lane, and dlogits (..., n_L, m) = dJ/dlogits.

        logits: (..., n_L, m), finite.
        y: the targets: (m,) or (..., m) labels, or (..., n_L, m) values; for one unit also (m,) values.
        weights: (m,) above 0, one per example. J is then the weighted mean. None: all are equal.
        Raises ValueError for logits that are not floating or not finite, for targets and for weights that do not fit.
        """
        if not np.issubdtype(logits.dtype, np.floating):
            raise ValueError(f"logits has dtype {logits.dtype}, it must be floating")
        check_finite("logits", logits)
        target = self.target(y, logits.shape[-2], logits.dtype)
        check_shape("y", target, logits.shape[-2:])
        shares = None if weights is None else shares_of(check_weights(weights, logits.shape[-1])).astype(logits.dtype)
        return self.value_and_gradient(logits, target, shares)

    def target(self, y: Array, units: int, dtype: np.dtype) -> Array:
        """Return y encoded as the target (..., n_L, m). Raises ValueError where y is not what the loss takes."""
        return self.encode(self.check(np.asarray(y), units, dtype), units, dtype)

    def value_and_gradient(self, logits: Array, target: Array, shares: Array | None = None) -> tuple[Array, Array]:
        """Return what a call returns, for an encoded target. With `shares`, that is

            J = sum of s_i J_i        dJ/dz_i = s_i dJ_i/dz_i        J_i: the loss of example i alone

        Then `function` computes every example as a lane of its own, so that its J is J_i.

        shares: (..., m) weights s_i whose sum is 1, in the dtype of the logits.
        """
        if shares is None:
            return self.function(logits, target)
        target = np.broadcast_to(target, logits.shape)
        z, y = (np.expand_dims(np.moveaxis(values, -1, 0), -1).copy() for values in (logits, target))
        values, dlogits = self.function(z, y)
        # Contiguous copies, since BLAS adds values that are not contiguous in another order.
        return np.vecdot(np.moveaxis(values, 0, -1).copy(), shares), np.moveaxis(dlogits[..., 0], 0, -1) * shares[..., None, :]

    @classmethod
    def named(cls, name: str) -> "Loss":
        """Return the loss of that name. Raises ValueError with the allowed names where it is unknown."""
        return choice("loss", name, LOSSES)


def check_weights(weights: Array, m: int) -> Array:
    """Return the weights of m examples in float64. Raises ValueError unless there are m, all finite and above 0."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (m,):
        raise ValueError(f"weights has shape {weights.shape}, it must be ({m},), one an example")
    check_number("weights", weights, above=0)
    return weights


def shares_of(weights: Array) -> Array:
    """Return weights (..., m) divided by their sum. They are first divided by the largest, so that the sum cannot overflow."""
    scaled = weights / weights.max(axis=-1, keepdims=True)
    return scaled / scaled.sum(axis=-1, keepdims=True)


def r2(residual: Array, total: Array, m: int) -> Array:
    """Return R^2, (...), as scikit-learn's `r2_score` does: the mean over the outputs of 1 - residual / total.

    An output whose targets are all equal counts 1 where every prediction is right, else 0. For fewer than 2 examples R^2 is nan.

    residual: (..., n_L) the sums over the m examples of (z - y)^2. total: (n_L,) the sums of (y - mean y)^2.
    """
    if m < 2:
        return np.full(residual.shape[:-1], np.nan)
    constant = np.where(residual == 0, 1.0, 0.0)
    return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), constant).mean(axis=-1)


def _check_labels(y: Array, classes: int, dtype: np.dtype) -> Array:
    """Return the labels (..., m). Raises ValueError unless they are integers from 0 to n_L - 1."""
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y has dtype {y.dtype}, it must hold integer labels")
    if y.size and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"y of shape {y.shape} has labels {y.min()} to {y.max()}, they must be 0 to {classes - 1}")
    return y


def _softmax(logits: Array, target: Array) -> tuple[Array, Array]:
    """Return the softmax cross-entropy and its gradient, with p_k = e^z_k / sum_j e^z_j:

    J = 1/m sum of (log(sum_j e^z_j) - z_y)        dJ/dz = (p - onehot(y)) / m

    The largest logit of an example is first subtracted from all of its logits. Then no e^z overflows. All logarithms are at
    least 0 and all z_y at most 0, so that no terms cancel in the sum of either.
    """
    m = logits.shape[-1]
    # z must not be -inf, since -inf times a target of 0 is nan.
    z = np.maximum(logits - np.maximum.reduce(logits, axis=-2, keepdims=True), float(np.finfo(logits.dtype).min))
    e = np.exp(z)
    total = sum_over_units(e)
    dlogits = (e / total - target) * (1 / m)
    # The logarithm of every example, and the sum of all z_y.
    terms = np.concatenate([np.log(total), np.vecdot(_flat(target), _flat(z))[..., None, None]], axis=-1)
    weights = np.full(m + 1, 1 / m, logits.dtype)
    weights[m] *= -1
    return _weighted_sum(terms, weights), dlogits


def _weighted_sum(terms: Array, weights: Array) -> Array:
    """Return the weighted sum (...) of terms (..., 1, k). weights: (k,)."""
    return (terms @ weights[:, None])[..., 0, 0]


def _flat(values: Array) -> Array:
    """Return values (..., n, m) as (..., n m)."""
    return values.reshape(*values.shape[:-2], -1)


def _one_hot(y: Array, classes: int, dtype: np.dtype) -> Array:
    """Return the one-hot target (..., n_L, m) of labels (..., m)."""
    target = np.zeros((*y.shape[:-1], classes, y.shape[-1]), dtype)
    np.put_along_axis(target, y[..., None, :], 1, axis=-2)
    return target


def _largest(logits: Array) -> Array:
    """Return the class (..., m) of the largest logit, from logits (..., K, m)."""
    return logits.argmax(axis=-2)


def _sigmoid(logits: Array, target: Array) -> tuple[Array, Array]:
    """Return the binary cross-entropy of one logit z, for labels y of 0 or 1, and its gradient, with p = 1 / (1 + e^-z):

    J = 1/m sum of (max(z, 0) - y z + log(1 + e^-|z|))        dJ/dz = (p - y) / m
    """
    m = logits.shape[-1]
    e = np.exp(-np.abs(logits))
    terms = (np.maximum(logits, 0) - target * logits) + np.log1p(e)
    p = np.exp(np.minimum(logits, 0)) / (1 + e)
    return _weighted_sum(terms, np.full(m, 1 / m, logits.dtype)), (p - target) * (1 / m)


def _check_zero_or_one(y: Array, units: int, dtype: np.dtype) -> Array:
    """Return the labels (..., m). Raises ValueError unless they are 0 or 1, and the network has one unit in its last block."""
    if units != 1:
        raise ValueError(f"sigmoid_cross_entropy takes 1 logit an example, the network has {units}")
    return _check_labels(y, 2, dtype)


def _one_row(y: Array, units: int, dtype: np.dtype) -> Array:
    """Return labels (..., m) as the target (..., 1, m)."""
    return y[..., None, :].astype(dtype)


def _positive(logits: Array) -> Array:
    """Return the class (..., m), 1 where the logit (..., 1, m) is above 0, else 0."""
    return (logits[..., 0, :] > 0).astype(int)


def _half_squares(logits: Array, target: Array) -> tuple[Array, Array]:
    """Return half the mean squared error, summed over the units, and its gradient:

    J = 1/(2m) sum of ||z - y||^2        dJ/dz = (z - y) / m
    """
    m = logits.shape[-1]
    error = logits - target
    return np.vecdot(_flat(error), _flat(error)) * (1 / m / 2), error * (1 / m)


def _huber(logits: Array, target: Array) -> tuple[Array, Array]:
    """Return Huber's loss with delta = 1, summed over the units (Huber 1964), and its gradient. With e = z - y:

    J = 1/m sum of h(e),  h(e) = e^2 / 2 where |e| <= 1, else |e| - 1/2        dJ/dz = c / m,  c = min(max(e, -1), 1)

    In both cases h(e) = c (e - c / 2).
    """
    m = logits.shape[-1]
    error = logits - target
    c = np.minimum(np.maximum(error, -1), 1)
    return np.vecdot(_flat(c), _flat(error - 0.5 * c)) * (1 / m), c * (1 / m)


def _check_values(y: Array, units: int, dtype: np.dtype) -> Array:
    """Return values (..., n_L, m), or (m,) for one unit, as (..., n_L, m). Raises ValueError where they do not fit."""
    y = y[None, :] if y.ndim == 1 else y
    check_shape("y", y, (units, "m"))
    check_finite("y", y, dtype)
    return y


def _values(y: Array, units: int, dtype: np.dtype) -> Array:
    """Return values (..., n_L, m) in the dtype."""
    return y.astype(dtype, copy=False)


softmax_cross_entropy = Loss("softmax_cross_entropy", _softmax, _check_labels, _one_hot, _largest)
sigmoid_cross_entropy = Loss("sigmoid_cross_entropy", _sigmoid, _check_zero_or_one, _one_row, _positive)
half_mean_squared_error = Loss("half_mean_squared_error", _half_squares, _check_values, _values)
huber = Loss("huber", _huber, _check_values, _values)
# The squared error of a classifier against one-hot labels (Hui and Belkin 2021).
one_hot_squared_error = Loss("one_hot_squared_error", _half_squares, _check_labels, _one_hot, _largest)

LOSSES = {
    loss.name: loss
    for loss in (softmax_cross_entropy, sigmoid_cross_entropy, half_mean_squared_error, huber, one_hot_squared_error)
}
