"""The comparison of two trainings: the first step and metric in which they differ, and what may explain the difference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blocks.arrays import Array
from blocks.history import History
from experiments.record.view import norm_key

if TYPE_CHECKING:
    from experiments.record.files import Files
    from experiments.run.stack import TrainedRun

# The keys of environment.json on which a training's bits may depend.
BIT_KEYS = (
    "numpy",
    "blas",
    "blas_kernel",
    "simd",
    "cpu",
    "platform",
    "threads",
    "python",
    "scikit-learn",
    "data",
    "package",
    "git.commit",
)


@dataclass(frozen=True)
class Difference:
    """The first difference of two trainings.

    step: the number of updates before it. metric: what differs. left, right: its values.
    ulps: how many units in the last place these are apart.
    """

    step: int
    metric: str
    left: float
    right: float
    ulps: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.metric} is {self.left!r} and {self.right!r}, {self.ulps:g} units in the last place apart"


def ulps(left: Array, right: Array) -> Array:
    """Return elementwise how many units in the last place two arrays of one dtype are apart; inf where only one is nan."""

    def ordered_bits(values: Array) -> Array:
        # Read as integers, negative floats are in reverse order.
        bits = np.ascontiguousarray(values).view(f"i{values.dtype.itemsize}")
        return np.where(bits < 0, np.iinfo(bits.dtype).min - bits, bits).astype(object)

    n_between = np.abs(ordered_bits(left) - ordered_bits(right)).astype(np.float64)
    nans = np.isnan(left).astype(int) + np.isnan(right)
    return np.where(nans == 1, np.inf, np.where(nans == 2, 0.0, n_between))


def _metric_series(left: History, right: History) -> Iterator[tuple[str, Array, Array]]:
    """Yield (metric, values of `left`, values of `right`) in the order in which a step computes them; values: (steps,)."""
    yield "loss/batch", left.loss, right.loss
    for symbol, one, other in (("W", left.grad_norm, right.grad_norm), ("b", left.grad_norm_b, right.grad_norm_b)):
        for block in range(one.shape[-1]):
            yield norm_key(symbol, block, one.shape[-1]), one[:, block], other[:, block]


def first_difference(left: History, right: History) -> Difference | None:
    """Return the first step in which loss or norms differ by a bit, None where all are equal.

    Raises ValueError where the shapes or dtypes differ.
    """
    if left.grad_norm.shape != right.grad_norm.shape:
        (steps, depth), (other_steps, other_depth) = left.grad_norm.shape, right.grad_norm.shape
        raise ValueError(f"{steps} steps of {depth} blocks beside {other_steps} steps of {other_depth}")
    first: Difference | None = None
    for metric, one, other in _metric_series(left, right):
        differ = np.flatnonzero(~((one == other) & (np.signbit(one) == np.signbit(other)) | (np.isnan(one) & np.isnan(other))))
        if one.dtype != other.dtype:
            raise ValueError(f"{one.dtype} beside {other.dtype}")
        if differ.size and (first is None or differ[0] < first.step):
            step = int(differ[0])
            n_ulps = float(ulps(one[step : step + 1], other[step : step + 1])[0])
            first = Difference(step, metric, float(one[step]), float(other[step]), n_ulps)
    return first


def first_differing_parameter(left: Array, right: Array, steps: int) -> Difference | None:
    """Return the first difference of two flat parameter vectors (P,), None where they are equal.

    steps: of the training. Raises ValueError where the shapes or dtypes differ.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        raise ValueError(f"{left.dtype} parameters of shape {left.shape} beside {right.dtype} of shape {right.shape}")
    bits = f"i{left.dtype.itemsize}"
    differ = np.flatnonzero((left.view(bits) != right.view(bits)) & ~(np.isnan(left) & np.isnan(right)))
    if not differ.size:
        return None
    index = slice(differ[0], differ[0] + 1)
    n_ulps = float(ulps(left[index], right[index])[0])
    return Difference(steps, f"final parameter {differ[0]}", float(left[index][0]), float(right[index][0]), n_ulps)


def first_training_difference(left: "Files | TrainedRun", right: "Files | TrainedRun") -> Difference | None:
    """Return the first difference of two trainings' histories, else of their final parameters, None where both are equal.

    Raises ValueError where the shapes or dtypes differ.
    """
    steps = left.history.loss.shape[-1]
    difference = first_difference(left.history, right.history)
    return difference or first_differing_parameter(left.parameters, right.parameters, steps)


def largest_difference(left: History, right: History) -> float:
    """Return the largest relative difference of a loss or a norm at any step; inf where only one of the two is finite."""
    largest = 0.0
    for _, one, other in _metric_series(left, right):
        a, b = np.float64(one), np.float64(other)
        finite = np.isfinite(a) & np.isfinite(b)
        if (np.isfinite(a) != np.isfinite(b)).any():
            return np.inf
        scale = np.maximum(np.abs(a), np.abs(b))
        differences = np.abs(a - b)[finite & (scale > 0)] / scale[finite & (scale > 0)]
        largest = max(largest, float(differences.max(initial=0.0)))
    return largest


def environment_differences(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """Return a line for each difference of two environments that may change bits, such as `numpy 2.4.5, here 2.4.6`."""
    return [
        f"{key} {left.get(key, 'unknown')}, here {right.get(key, 'unknown')}"
        for key in BIT_KEYS
        if left.get(key) != right.get(key)
    ]
