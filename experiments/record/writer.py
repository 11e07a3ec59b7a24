"""How runs come into a store: what is written of one, and the way through MLflow's client. The other way: `record.rows`."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from mlflow.entities import DatasetInput, Metric, Param, RunTag

from experiments.record.address import StoreError, sqlite_file
from experiments.record.client import Client

T = TypeVar("T")

# So many requests to a server are under way at once for a run, and so many runs are written at once.
AT_ONCE, RUNS_AT_ONCE = 8, 4


@dataclass(frozen=True)
class NewRun:
    """A run that begins."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]


@dataclass(frozen=True)
class FinishedRun:
    """The rest of a run. data: what it was trained on. uploads: calls, each of which makes one of its files an artifact."""

    run_id: str
    metrics: list[Metric]
    tags: dict[str, str]
    data: DatasetInput
    uploads: Sequence[Callable[[], None]]


class Writer(Protocol):
    """runs_at_once: how many runs it is given at a time; together: whether all of them are in the store, or none is."""

    runs_at_once: int
    together: bool

    def create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        """Make RUNNING runs; their ids and the URIs of their artifacts."""

    def log(self, points: Mapping[str, list[Metric]]) -> None:
        """Write metrics: a run's id -> its points."""

    def finish(self, runs: Sequence[FinishedRun]) -> None:
        """Write what is left of those runs, and their end: FINISHED, which none is that is not whole."""


def at_once(uri: str, calls: Sequence[Callable[[], T]]) -> list[T]:
    """What they return, called side by side where each waits for a server's answer; raises the first error."""
    if sqlite_file(uri):
        return [call() for call in calls]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [called.result() for called in [threads.submit(call) for call in calls]]


class Requests:
    """Through MLflow's client, run by run."""

    together = False

    def __init__(self, client: Client, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        # A file is written by one after the other.
        self.runs_at_once = 1 if sqlite_file(client.uri) else RUNS_AT_ONCE

    def create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        """See `Writer`."""
        return [self._create(run) for run in runs]

    def _create(self, run: NewRun) -> tuple[str, str]:
        info = self.client.create_run(self.experiment_id, run_name=run.name, tags=run.tags).info
        self.client.log_batch(info.run_id, params=[Param(key, value) for key, value in run.params.items()])
        return info.run_id, info.artifact_uri

    def log(self, points: Mapping[str, list[Metric]]) -> None:
        """See `Writer`."""
        for run_id, metrics in points.items():
            self.client.log_batch(run_id, metrics=metrics)

    def finish(self, runs: Sequence[FinishedRun]) -> None:
        """See `Writer`."""
        for run in runs:
            calls: list[Callable[[], None]] = [partial(self._log, run), partial(self._use, run), *run.uploads]
            at_once(self.client.uri, calls)
            # Last of all: what is FINISHED is whole.
            self.client.set_terminated(run.run_id, "FINISHED")

    def _log(self, run: FinishedRun) -> None:
        self.client.log_batch(run.run_id, metrics=run.metrics, tags=[RunTag(key, value) for key, value in run.tags.items()])

    def _use(self, run: FinishedRun) -> None:
        try:
            self.client.log_inputs(run.run_id, [run.data])
        except StoreError:
            # Another run has told a database of the same data at the same moment; now they are there.
            self.client.log_inputs(run.run_id, [run.data])
