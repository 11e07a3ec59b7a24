"""What is kept of a run. The only folder that knows MLflow."""

from typing import TYPE_CHECKING, Union

from experiments.record.address import check_uri
from experiments.record.untracked import Untracked
from experiments.run.config import TrackingConfig, UserError

if TYPE_CHECKING:
    from experiments.record.run import Run
    from experiments.record.tracking import Store

# Characters that MLflow has room for.
LONGEST_EXPERIMENT, LONGEST_MODEL = 500, 256
AnyStore = Union["Store", Untracked]
AnyRun = Union["Run", Untracked]


def open_store(tracking: TrackingConfig) -> AnyStore:
    """The store that config names, made where it is not there; MLflow is imported now and not before."""
    if not tracking.enabled:
        return Untracked()
    from experiments.record.tracking import Store

    return Store(tracking)


def check_tracking(tracking: TrackingConfig) -> None:
    """Raise UserError where nothing could be recorded so: by MLflow's rules for names, and where its store does not answer."""
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
