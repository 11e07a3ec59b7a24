"""Two trainings beside each other: the first step and metric in which they differ, and what may explain it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blocks.arrays import Array
from blocks.history import History
from experiments.record.view import norm_key

if TYPE_CHECKING:
    from experiments.record.files import Files
    from experiments.run.stack import Trained

# What a training's bits may depend on.
MATTERS = (
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
    """Where two trainings first differ: after `step` updates, in `metric`, by `ulps` units in the last place."""

    step: int
    metric: str
    left: float
    right: float
    ulps: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.metric} is {self.left!r} and {self.right!r}, {self.ulps:g} units in the last place apart"


def ulps(left: Array, right: Array) -> Array:
    """How many floating-point numbers of their dtype lie between two; inf where one alone is nan."""

    def ordered(values: Array) -> Array:
        # As integers, negative floats run backwards.
        bits = np.ascontiguousarray(values).view(f"i{values.dtype.itemsize}")
        return np.where(bits < 0, np.iinfo(bits.dtype).min - bits, bits).astype(object)

    distance = np.abs(ordered(left) - ordered(right)).astype(np.float64)
    nans = np.isnan(left).astype(int) + np.isnan(right)
    return np.where(nans == 1, np.inf, np.where(nans == 2, 0.0, distance))


def _series(left: History, right: History) -> Iterator[tuple[str, Array, Array]]:
    """(metric, values at every step of the one, of the other), in the order in which a step makes them."""
    yield "loss/batch", left.loss, right.loss
    for symbol, one, other in (("W", left.grad_norm, right.grad_norm), ("b", left.grad_norm_b, right.grad_norm_b)):
        for block in range(one.shape[-1]):
            yield norm_key(symbol, block, one.shape[-1]), one[:, block], other[:, block]


def first_difference(left: History, right: History) -> Difference | None:
    """The first step in which loss or norms differ by a bit, None where none does; raises ValueError for other shapes."""
    if left.grad_norm.shape != right.grad_norm.shape:
        (steps, depth), (other_steps, other_depth) = left.grad_norm.shape, right.grad_norm.shape
        raise ValueError(f"{steps} steps of {depth} blocks beside {other_steps} steps of {other_depth}")
    found: Difference | None = None
    for metric, one, other in _series(left, right):
        differ = np.flatnonzero(~((one == other) & (np.signbit(one) == np.signbit(other)) | (np.isnan(one) & np.isnan(other))))
        if one.dtype != other.dtype:
            raise ValueError(f"{one.dtype} beside {other.dtype}")
        if differ.size and (found is None or differ[0] < found.step):
            step = int(differ[0])
            distance = float(ulps(one[step : step + 1], other[step : step + 1])[0])
            found = Difference(step, metric, float(one[step]), float(other[step]), distance)
    return found


def first_differing_parameter(left: Array, right: Array, steps: int) -> Difference | None:
    """The first of the final parameters, in the order of the flat vector, that differs by a bit."""
    if left.shape != right.shape or left.dtype != right.dtype:
        raise ValueError(f"{left.dtype} parameters of shape {left.shape} beside {right.dtype} of shape {right.shape}")
    bits = f"i{left.dtype.itemsize}"
    differ = np.flatnonzero((left.view(bits) != right.view(bits)) & ~(np.isnan(left) & np.isnan(right)))
    if not differ.size:
        return None
    at = slice(differ[0], differ[0] + 1)
    distance = float(ulps(left[at], right[at])[0])
    return Difference(steps, f"final parameter {differ[0]}", float(left[at][0]), float(right[at][0]), distance)


def first_difference_of(left: "Files | Trained", right: "Files | Trained") -> Difference | None:
    """The first step in which two trainings differ, the final parameters coming last; raises ValueError as those two."""
    steps = left.history.loss.shape[-1]
    found = first_difference(left.history, right.history)
    return found or first_differing_parameter(left.parameters, right.parameters, steps)


def distance(left: History, right: History) -> float:
    """The largest relative difference of a loss or a norm at any step; inf where one alone is not finite."""
    largest = 0.0
    for _, one, other in _series(left, right):
        a, b = np.float64(one), np.float64(other)
        finite = np.isfinite(a) & np.isfinite(b)
        if (np.isfinite(a) != np.isfinite(b)).any():
            return np.inf
        scale = np.maximum(np.abs(a), np.abs(b))
        apart = np.abs(a - b)[finite & (scale > 0)] / scale[finite & (scale > 0)]
        largest = max(largest, float(apart.max(initial=0.0)))
    return largest


def surroundings(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """`numpy 2.4.5, here 2.4.6` and so on: what differs of all that may change bits."""
    return [
        f"{key} {left.get(key, 'unknown')}, here {right.get(key, 'unknown')}"
        for key in MATTERS
        if left.get(key) != right.get(key)
    ]
