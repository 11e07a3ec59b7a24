"""The record of runs, sweeps and maps in an MLflow store. Beside dashboard.py, only this folder imports MLflow.

It may import run and blocks, and nothing of pictures, sweep, map, page or the commands.
"""

from typing import TYPE_CHECKING, Union

from experiments.record.address import check_uri
from experiments.record.untracked import Untracked
from experiments.run.config import TrackingConfig, UserError

if TYPE_CHECKING:
    from experiments.record.run import Run
    from experiments.record.tracking import Store

# MLflow's longest names, in characters.
LONGEST_EXPERIMENT, LONGEST_MODEL = 500, 256
AnyStore = Union["Store", Untracked]
AnyRun = Union["Run", Untracked]


def open_store(tracking: TrackingConfig) -> AnyStore:
    """Open the store that the config names, and create it where it does not exist. MLflow is imported here and not earlier."""
    if not tracking.enabled:
        return Untracked()
    from experiments.record.tracking import Store

    return Store(tracking)


def check_tracking(tracking: TrackingConfig) -> None:
    """Raise UserError where MLflow does not allow the config's names, or where its store does not answer."""
    if not tracking.enabled:
        return
    experiment, model = tracking.experiment, tracking.register
    if not 0 < len(experiment.strip()) <= len(experiment) <= LONGEST_EXPERIMENT:
        raise UserError(f"tracking.experiment is {experiment!r}, it must be a name of 1 to {LONGEST_EXPERIMENT} characters")
    if model is not None and not (
        0 < len(model.strip()) <= len(model) <= LONGEST_MODEL
        and set(model).isdisjoint("/:")
        and not model.startswith("..")
        and model != "."
    ):
        raise UserError(
            f"tracking.register is {model!r}, it must be null or a name of 1 to {LONGEST_MODEL} characters without / and :, "
            "not . and not beginning with .."
        )
    check_uri(tracking.uri)
