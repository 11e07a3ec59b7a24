"""What a sweep and its jobs tell each other: whose job this is, how it is found in the record, what came of it."""

import json
import math
import os
from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING

from experiments.run.config import CELL, TrackingConfig
from experiments.run.interrupts import SIGNALS
from experiments.run.measure import MEASURES, Measure

if TYPE_CHECKING:
    from experiments.run.stack import Trained

# What `parent_of_job` reads, in whatever process a launcher runs the job.
PARENT = "DEPTH_LABORATORY_PARENT"


class Result(float):
    """What a job returns, for whoever optimises: the value of its `sweep.measure`, with its outcome.

    The worst value, inf of a loss and -inf of an accuracy or r2, stands for one that is not finite.
    """

    outcome: str
    measure: Measure

    @classmethod
    def of(cls, trained: "Trained") -> "Result":
        """The result of a trained run."""
        measure = MEASURES[trained.config.sweep.measure]
        return cls.made(trained.final(measure.name), trained.outcome, measure)

    @classmethod
    def made(cls, value: float, outcome: str, measure: Measure) -> "Result":
        """The result with that value of the measure."""
        result = cls(value if math.isfinite(value) else measure.worst)
        result.outcome, result.measure = outcome, measure
        return result

    def __str__(self) -> str:
        return f"{self.outcome}: {self.measure.title} {float(self):.4g}"


@dataclass(frozen=True)
class Parent:
    """A sweep, as its jobs know it. run_id: of its parent run. tracking: where all its runs are recorded.

    keys: that differ between its runs.
    """

    run_id: str
    tracking: TrackingConfig
    keys: list[str]


def parent_of_job() -> Parent | None:
    """The sweep that this process runs a job of."""
    told = json.loads(os.environ.get(PARENT, "null"))
    return told and Parent(**{**told, "tracking": TrackingConfig(**told["tracking"])})


def tags_of_run(fingerprint: str, job: int, cell: str = "") -> dict[str, str]:
    """What a run is found by: the experiment that it is, its number in its sweep, and the cell that it is one seed of."""
    return {"kind": "run", "fingerprint": fingerprint, "job": str(job), **({CELL: cell} if cell else {})}


def reason_of(error: BaseException) -> str:
    """What ended a run, in words: the signal, or what the error says."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by SIGINT"
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        signals = {128 + number: Signals(number).name for number in SIGNALS}
        return f"interrupted by {signals[error.code]}" if error.code in signals else f"left with status {error.code}"
    return str(error) or type(error).__name__


def status_of(error: BaseException | None) -> str:
    """MLflow's word for a run that ends with that error."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
