"""What a sweep and its jobs exchange: the sweep that a job belongs to, the tags of its run, and its result."""

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
    from experiments.run.stack import TrainedRun

# The environment variable that `parent_of_job` reads. A launcher may run the job in any process.
PARENT = "DEPTH_LABORATORY_PARENT"


class Result(float):
    """What a job returns to the optimizer of a search: the value of its `sweep.measure`, with the run's outcome.

    A value that is not finite is replaced by the worst value: inf for a loss, -inf for accuracy or r2.
    """

    outcome: str
    measure: Measure

    @classmethod
    def from_trained(cls, trained: "TrainedRun") -> "Result":
        """Return the result of a trained run."""
        measure = MEASURES[trained.config.sweep.measure]
        return cls.from_value(trained.final(measure.name), trained.outcome, measure)

    @classmethod
    def from_value(cls, value: float, outcome: str, measure: Measure) -> "Result":
        """Return the result with that value of the measure."""
        result = cls(value if math.isfinite(value) else measure.worst)
        result.outcome, result.measure = outcome, measure
        return result

    def __str__(self) -> str:
        return f"{self.outcome}: {self.measure.title} {float(self):.4g}"


@dataclass(frozen=True)
class Parent:
    """What a job knows of its sweep.

    run_id: of the sweep's own run, the parent of its jobs' runs. tracking: the config with which all are recorded.
    keys: the keys whose values differ between the runs.
    """

    run_id: str
    tracking: TrackingConfig
    keys: list[str]


def parent_of_job() -> Parent | None:
    """Return the sweep of the job that this process runs, None where the job belongs to no sweep."""
    values = json.loads(os.environ.get(PARENT, "null"))
    return values and Parent(**{**values, "tracking": TrackingConfig(**values["tracking"])})


def tags_of_run(fingerprint: str, job: int, cell: str = "") -> dict[str, str]:
    """Return the tags of a run, by which it is found.

    fingerprint: of the config and its data. job: the run's number in its sweep.
    cell: the name that the run has in common with runs that differ from it only in the seed, "" where there are none.
    """
    return {"kind": "run", "fingerprint": fingerprint, "job": str(job), **({CELL: cell} if cell else {})}


def reason_of(error: BaseException) -> str:
    """Return in words why a run ended: the name of the signal, or the error's message."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by SIGINT"
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        signals = {128 + number: Signals(number).name for number in SIGNALS}
        return f"interrupted by {signals[error.code]}" if error.code in signals else f"left with status {error.code}"
    return str(error) or type(error).__name__


def status_of(error: BaseException | None) -> str:
    """Return MLflow's status of a run that ends with that error, or with none."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
