"""What is kept of a run. The only folder that knows MLflow."""

from typing import TYPE_CHECKING, Union

from experiments.record.untracked import Untracked
from experiments.run.config import TrackingConfig

if TYPE_CHECKING:
    from experiments.record.tracking import Run, Store

AnyStore = Union["Store", Untracked]
AnyRun = Union["Run", Untracked]


def open_store(tracking: TrackingConfig) -> AnyStore:
    """The store that config names, made where it is not there; MLflow is imported now and not before."""
    if not tracking.enabled:
        return Untracked()
    from experiments.record.tracking import Store

    return Store(tracking)
