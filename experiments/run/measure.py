"""The number by which a sweep compares its runs, `sweep.measure`."""

import math
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array

KINDS = ("loss", "accuracy", "r2")
# The parts of a data set, and their names in titles.
PARTS = {"train": "training", "validation": "validation"}


@dataclass(frozen=True)
class Measure:
    """The last value of one of a history's measures. The best loss is the smallest, the best accuracy or r2 the largest.

    kind: loss, accuracy or r2. part: train or validation.
    """

    kind: str
    part: str

    @property
    def name(self) -> str:
        """The name in a history, such as `loss/train`."""
        return f"{self.kind}/{self.part}"

    @property
    def metric(self) -> str:
        """The name of the metric in the record, such as `final/loss_train`."""
        return f"final/{self.kind}_{self.part}"

    @property
    def log_metric(self) -> str:
        """The metric of the logarithm, such as `final/log10_loss_train`; for accuracy and r2 that of the value itself."""
        return f"final/log10_{self.kind}_{self.part}" if self.is_loss else self.metric

    @property
    def curve(self) -> str:
        """The title of its curve, such as `training loss`."""
        return f"{PARTS[self.part]} {self.kind}"

    @property
    def title(self) -> str:
        """The title of the last value, such as `final training loss`."""
        return f"final {self.curve}"

    @property
    def best_title(self) -> str:
        """The title of the best value, such as `smallest final training loss`."""
        return f"{'smallest' if self.is_loss else 'largest'} {self.title}"

    @property
    def is_loss(self) -> bool:
        """Whether the smallest value is the best. A loss is drawn on a logarithmic scale."""
        return self.kind == "loss"

    @property
    def worst(self) -> float:
        """The value of a run that diverged."""
        return math.inf if self.is_loss else -math.inf

    def cost(self, value: float) -> float:
        """Return the value with the sign that makes the smallest the best."""
        return value if self.is_loss else -value


MEASURES = {measure.name: measure for measure in (Measure(kind, part) for kind in KINDS for part in PARTS)}


def best_rate(rates: Array, losses: Array) -> float:
    """Return the learning rate at the minimum of the parabola through the smallest loss and its two neighbours.

    Both axes of the parabola are logarithmic. Where a neighbour is missing, the rate of the smallest loss is returned.

    rates: (n,), ascending. losses: (n,), nan where a run diverged.
    """
    index = int(np.nanargmin(losses))
    x, y = np.log(rates[max(index - 1, 0) : index + 2]), np.log(losses[max(index - 1, 0) : index + 2])
    if len(x) < 3 or not np.isfinite(y).all():
        return float(rates[index])
    curvature, slope, _ = np.polyfit(x - x[1], y, 2)
    return float(rates[index] * np.exp(-slope / (2 * curvature)))
