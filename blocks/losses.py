"""The losses, from logits: value and gradient; the one 1/m of the whole engine stands here.

A loss is called with the targets as people have them, and checks them. A training loop checks them once and keeps them beside
the data, encoded if there is room. A new loss is a function and a line in the table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, check_finite, check_number, check_shape, choice, sum_over_units


@dataclass(frozen=True)
class Loss:
    """J(logits, y), the mean over the m examples.

    name: the table's key.
    function: `function(logits, target) -> value (...,) a lane, dlogits (..., n_L, m) = dJ/dlogits`, target as `encode` makes it.
    check: `check(y, n_L, dtype) -> y`, labels (..., m) or values (..., n_L, m); raises ValueError where y is not what the
        loss takes, or not finite in that dtype.
    encode: `encode(y, n_L, dtype) -> target` (..., n_L, m) in that dtype, of a y that `check` returned.
    decides: `decides(logits) -> classes (..., m)`, or None where the loss is no classifier's.
    """

    name: str
    function: Callable[[Array, Array], tuple[Array, Array]]
    check: Callable[[Array, int, np.dtype], Array]
    encode: Callable[[Array, int, np.dtype], Array]
    decides: Callable[[Array], Array] | None = None

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
        """What a call returns, of a target that is encoded. With shares (..., m), weights whose sum is 1, in the logits' dtype:

            J = sum of s_i J_i        dJ/dz_i = s_i dJ_i/dz_i        J_i: the loss of example i alone

        Each example is then a lane of its own for `function`, which gives J_i for J.
        """
        if shares is None:
            return self.function(logits, target)
        target = np.broadcast_to(target, logits.shape)
        z, y = (np.expand_dims(np.moveaxis(values, -1, 0), -1).copy() for values in (logits, target))
        values, dlogits = self.function(z, y)
        # Side by side: BLAS sums what is spread out in another order.
        return np.vecdot(np.moveaxis(values, 0, -1).copy(), shares), np.moveaxis(dlogits[..., 0], 0, -1) * shares[..., None, :]

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
    """Weights (..., m) over their sum, which no weight can make overflow."""
    scaled = weights / weights.max(axis=-1, keepdims=True)
    return scaled / scaled.sum(axis=-1, keepdims=True)


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


def _softmax(logits: Array, target: Array) -> tuple[Array, Array]:
    """Softmax cross-entropy, p_k = e^z_k / sum_j e^z_j:

    J = 1/m sum of log(sum_j e^z_j) - z_y        dJ/dz = (p - onehot(y)) / m

    z less the example's largest: no e^z overflows, and neither sum of J has terms that cancel.
    """
    m = logits.shape[-1]
    # Never -inf, which times a target of 0 would be nan.
    z = np.maximum(logits - np.maximum.reduce(logits, axis=-2, keepdims=True), float(np.finfo(logits.dtype).min))
    e = np.exp(z)
    total = sum_over_units(e)
    dlogits = (e / total - target) * (1 / m)
    # Every example's log, and the sum of all z_y.
    terms = np.concatenate([np.log(total), np.vecdot(_flat(target), _flat(z))[..., None, None]], axis=-1)
    weights = np.full(m + 1, 1 / m, logits.dtype)
    weights[m] *= -1
    return _weighted_sum(terms, weights), dlogits


def _weighted_sum(terms: Array, weights: Array) -> Array:
    """(...) the sum of (..., 1, k) terms, each times its weight."""
    return (terms @ weights[:, None])[..., 0, 0]


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


def _sigmoid(logits: Array, target: Array) -> tuple[Array, Array]:
    """Binary cross-entropy of one logit z, labels y of 0 or 1, p = 1 / (1 + e^-z):

    J = 1/m sum of max(z, 0) - y z + log(1 + e^-|z|)        dJ/dz = (p - y) / m
    """
    m = logits.shape[-1]
    e = np.exp(-np.abs(logits))
    terms = (np.maximum(logits, 0) - target * logits) + np.log1p(e)
    p = np.exp(np.minimum(logits, 0)) / (1 + e)
    return _weighted_sum(terms, np.full(m, 1 / m, logits.dtype)), (p - target) * (1 / m)


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


def _half_squares(logits: Array, target: Array) -> tuple[Array, Array]:
    """Half the mean squared error, summed over the units:

    J = 1/(2m) sum of ||z - y||^2        dJ/dz = (z - y) / m
    """
    m = logits.shape[-1]
    error = logits - target
    return np.vecdot(_flat(error), _flat(error)) * (1 / m / 2), error * (1 / m)


def _huber(logits: Array, target: Array) -> tuple[Array, Array]:
    """Huber's loss, delta = 1, summed over the units (Huber 1964): a square near 0, a line beyond. With e = z - y:

    J = 1/m sum of h(e),  h(e) = e^2 / 2 where |e| <= 1, else |e| - 1/2        dJ/dz = c / m,  c = min(max(e, -1), 1)

    h(e) = c (e - c / 2) on both sides.
    """
    m = logits.shape[-1]
    error = logits - target
    c = np.minimum(np.maximum(error, -1), 1)
    return np.vecdot(_flat(c), _flat(error - 0.5 * c)) * (1 / m), c * (1 / m)


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
half_mean_squared_error = Loss("half_mean_squared_error", _half_squares, _check_values, _values)
huber = Loss("huber", _huber, _check_values, _values)
# The squared error of a classifier, its labels one-hot (Hui and Belkin 2021).
one_hot_squared_error = Loss("one_hot_squared_error", _half_squares, _check_labels, _one_hot, _largest)

LOSSES = {
    loss.name: loss
    for loss in (softmax_cross_entropy, sigmoid_cross_entropy, half_mean_squared_error, huber, one_hot_squared_error)
}
