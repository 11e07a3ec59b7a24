"""An experiment in a tracking store: found, or made where it is not there yet."""

import contextlib
import sqlite3
from functools import partial
from pathlib import Path

from filelock import FileLock
from mlflow.entities import Experiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from experiments.record.address import StoreError, is_new, lock_file, sqlite_file, sqlite_uri
from experiments.record.client import Client, in_one_line, patiently
from experiments.record.moved import ARTIFACT_FOLDER, relocate
from experiments.run.config import UserError


def open_experiment(uri: str, name: str) -> tuple[Client, Experiment]:
    """MLflow's client for the store at that absolute URI, and the experiment of that name.

    Raises UserError where the experiment was deleted, StoreError where the store does not take a new one.
    """
    file = sqlite_file(uri)
    artifacts = (file.parent / ARTIFACT_FOLDER).as_uri() if file else None
    # A new database that several processes open at once breaks.
    with in_one_line(uri), FileLock(lock_file(uri)):
        if file and is_new(file):
            _make(file, str(artifacts))
        elif file:
            for line in patiently(uri, partial(relocate, file)):
                print(line)
        client = Client(uri)
        found = client.get_experiment_by_name(name) or _create(client, name, artifacts)
    if found.lifecycle_stage == "deleted":
        raise UserError(f"tracking.experiment is {name!r}, which was deleted in {uri}: restore it, or take another name")
    return client, found


def _create(client: Client, name: str, artifacts: str | None) -> Experiment:
    try:
        return client.get_experiment(client.create_experiment(name, artifacts))
    except StoreError:
        # Another machine may have made it since, or this one, whose answer was lost.
        found = client.get_experiment_by_name(name)
        if not found:
            raise
        return found


def _make(file: Path, artifacts: str) -> None:
    """A new SQLite store: it takes its name when it is whole, so that a kill on the way leaves none that is half made."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    made = SqlAlchemyStore(sqlite_uri(unfinished), artifacts)
    made._dispose_engine()
    # Several sweeps that write at once then wait for each other half as long.
    with contextlib.closing(sqlite3.connect(unfinished)) as store:
        store.execute("pragma journal_mode = wal")
    unfinished.replace(file)
