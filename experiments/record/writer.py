"""The interface of writers, which write runs into a store, and the writer that uses MLflow's client; see also `record.rows`."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from mlflow.entities import DatasetInput, Metric, Param, RunTag

from experiments.record.address import StoreError, sqlite_file
from experiments.record.client import Client

T = TypeVar("T")

# The most requests to a server at once, and the most runs that are written at once.
MAX_REQUESTS, MAX_RUNS = 8, 4


@dataclass(frozen=True)
class NewRun:
    """A run that begins."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]


@dataclass(frozen=True)
class FinishedRun:
    """What is written of a run when it ends.

    data: the data set that it was trained on. uploads: calls, each of which uploads one of its files as an artifact.
    """

    run_id: str
    metrics: list[Metric]
    tags: dict[str, str]
    data: DatasetInput
    uploads: Sequence[Callable[[], None]]


class Writer(Protocol):
    """A writer of runs.

    runs_at_once: the number of runs that it should get at a time. is_atomic: whether it writes all of these or none.
    """

    runs_at_once: int
    is_atomic: bool

    def create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        """Create RUNNING runs; return their ids and the URIs of their artifacts."""

    def log(self, points: Mapping[str, list[Metric]]) -> None:
        """Write metrics. points: a run's id -> its metrics."""

    def finish(self, runs: Sequence[FinishedRun]) -> None:
        """Write the end of those runs. A run is FINISHED only when all of it is written."""


def call_concurrently(uri: str, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Return what the calls return, and raise the first error. Calls to a server run in several threads, which wait for it."""
    if sqlite_file(uri):
        return [call() for call in calls]
    with ThreadPoolExecutor(MAX_REQUESTS) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


class Requests:
    """Writes runs with MLflow's client, one by one, see `Writer`."""

    is_atomic = False

    def __init__(self, client: Client, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        # A SQLite file has one writer at a time.
        self.runs_at_once = 1 if sqlite_file(client.uri) else MAX_RUNS

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
            call_concurrently(self.client.uri, calls)
            # The status is written last, so that a FINISHED run is complete.
            self.client.set_terminated(run.run_id, "FINISHED")

    def _log(self, run: FinishedRun) -> None:
        self.client.log_batch(run.run_id, metrics=run.metrics, tags=[RunTag(key, value) for key, value in run.tags.items()])

    def _use(self, run: FinishedRun) -> None:
        try:
            self.client.log_inputs(run.run_id, [run.data])
        except StoreError:
            # Another run has written the same data set at the same moment; now it exists.
            self.client.log_inputs(run.run_id, [run.data])
