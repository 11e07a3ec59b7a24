"""The experiment in a tracking store, which is created where it does not exist."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from mlflow.entities import Experiment as MlflowExperiment
from mlflow.entities import Run as MlflowRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from experiments.record.address import (
    StoreError,
    absolute_uri,
    check_reachable,
    is_new,
    lock_file,
    sqlite_file,
    sqlite_uri,
)
from experiments.record.claims import PARENT_TAG, Claims
from experiments.record.client import Client, errors_in_one_line, retry_while_locked
from experiments.record.reading import search
from experiments.record.relocation import ARTIFACT_FOLDER, relocate_artifacts
from experiments.record.writer import call_concurrently
from experiments.run.config import UserError

T = TypeVar("T")


class Experiment:
    """An experiment in a tracking store, which is created where it does not exist.

    uri: MLflow's tracking URI, None is a SQLite file beside the project. name: of the experiment.
    tag_count: the number of the experiment's tags. claims: which process owns its runs.
    Raises UserError where the experiment was deleted, StoreError where the store refuses to create it.
    """

    def __init__(self, uri: str | None, name: str) -> None:
        self.uri = absolute_uri(uri)
        check_reachable(self.uri)
        self.client, experiment = _open(self.uri, name)
        self.experiment_id: str = experiment.experiment_id
        self.tag_count = len(experiment.tags)
        self.claims = Claims(self.client, self.experiment_id, lock_file(self.uri))

    @property
    def token(self) -> str:
        """The token of the owner of the runs that are begun here."""
        return self.claims.owner.token

    def check_owner(self, sweep: str) -> None:
        """Raise TakenOver where another process has taken over the sweep of that parent run."""
        self.claims.check(sweep)

    def call_concurrently(self, *calls: Callable[[], T]) -> list[T]:
        """Return what the calls return, see `writer.call_concurrently`."""
        return call_concurrently(self.uri, calls)

    def children(self, parent: str, filter_string: str = "") -> Iterator[MlflowRun]:
        """Yield a sweep's runs that match MLflow's filter string, newest first, see `reading.search`."""
        conditions = [f"tags.`{PARENT_TAG}` = '{parent}'", *filter(None, [filter_string])]
        return search(self.client, [self.experiment_id], " and ".join(conditions))


def _open(uri: str, name: str) -> tuple[Client, MlflowExperiment]:
    """Return MLflow's client of the store at that absolute URI, and the experiment of that name, which may be new."""
    file = sqlite_file(uri)
    artifacts = (file.parent / ARTIFACT_FOLDER).as_uri() if file else None
    # A new database would break if several processes opened it at once.
    with errors_in_one_line(uri), FileLock(lock_file(uri)):
        if file and is_new(file):
            _create_sqlite_store(file, str(artifacts))
        elif file:
            for line in retry_while_locked(uri, partial(relocate_artifacts, file)):
                print(line)
        client = Client(uri)
        experiment = client.get_experiment_by_name(name) or _create_experiment(client, name, artifacts)
    if experiment.lifecycle_stage == "deleted":
        raise UserError(f"tracking.experiment is {name!r}, which was deleted in {uri}: restore it, or take another name")
    return client, experiment


def _create_experiment(client: Client, name: str, artifacts: str | None) -> MlflowExperiment:
    try:
        return client.get_experiment(client.create_experiment(name, artifacts))
    except StoreError:
        # Another machine may have created it since, or this request did and its answer was lost.
        experiment = client.get_experiment_by_name(name)
        if not experiment:
            raise
        return experiment


def _create_sqlite_store(file: Path, artifacts: str) -> None:
    """Create a SQLite store. The file gets its name when it is complete, so that an interruption leaves no broken store."""
    unfinished_file = file.with_name(f"{file.name}.unfinished")
    unfinished_file.unlink(missing_ok=True)
    new_store = SqlAlchemyStore(sqlite_uri(unfinished_file), artifacts)
    new_store._dispose_engine()
    # With a write-ahead log, sweeps that write at once wait for each other half as long.
    with contextlib.closing(sqlite3.connect(unfinished_file)) as connection:
        connection.execute("pragma journal_mode = wal")
    unfinished_file.replace(file)
