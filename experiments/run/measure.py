"""The number that a sweep judges its runs by, `sweep.measure`."""

import math
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array

KINDS = ("loss", "accuracy", "r2")
# What a data set is divided into, and the word for it.
PARTS = {"train": "training", "validation": "validation"}


@dataclass(frozen=True)
class Measure:
    """The last value of one of a history's measures. kind: loss, accuracy or r2. part: train or validation.

    The smallest loss is the best, and the largest accuracy or r2.
    """

    kind: str
    part: str

    @property
    def name(self) -> str:
        """`loss/train`, in a history."""
        return f"{self.kind}/{self.part}"

    @property
    def metric(self) -> str:
        """`final/loss_train`, in the record."""
        return f"final/{self.kind}_{self.part}"

    @property
    def log_metric(self) -> str:
        """The metric of its logarithm, `final/log10_loss_train`; that of the value itself for what spans no decades."""
        return f"final/log10_{self.kind}_{self.part}" if self.is_loss else self.metric

    @property
    def curve(self) -> str:
        """`training loss`"""
        return f"{PARTS[self.part]} {self.kind}"

    @property
    def title(self) -> str:
        """`final training loss`"""
        return f"final {self.curve}"

    @property
    def best_title(self) -> str:
        """`smallest final training loss`"""
        return f"{'smallest' if self.is_loss else 'largest'} {self.title}"

    @property
    def is_loss(self) -> bool:
        """Whether the smallest is the best; a loss is drawn on a logarithmic scale."""
        return self.kind == "loss"

    @property
    def worst(self) -> float:
        """What a run has that diverged."""
        return math.inf if self.is_loss else -math.inf

    def cost(self, value: float) -> float:
        """The smaller, the better the value is."""
        return value if self.is_loss else -value


MEASURES = {measure.name: measure for measure in (Measure(kind, part) for kind in KINDS for part in PARTS)}


def best_rate(rates: Array, losses: Array) -> float:
    """Where the parabola through the smallest loss and its two neighbours has its minimum, both axes logarithmic.

    rates: (n,), ascending. losses: (n,), nan where a run diverged. The rate of the smallest loss where a neighbour is missing.
    """
    at = int(np.nanargmin(losses))
    x, y = np.log(rates[max(at - 1, 0) : at + 2]), np.log(losses[max(at - 1, 0) : at + 2])
    if len(x) < 3 or not np.isfinite(y).all():
        return float(rates[at])
    curvature, slope, _ = np.polyfit(x - x[1], y, 2)
    return float(rates[at] * np.exp(-slope / (2 * curvature)))
