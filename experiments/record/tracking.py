"""MLflow: a sweep is a parent run, each job a child run, written in batches."""

import contextlib
import gc
import json
import logging
import math
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from blocks.history import History
from experiments.record import files, liveness
from experiments.record.address import StoreError, Unreachable, absolute, check_reachable, is_new, lock_file
from experiments.record.metrics import curves, metrics, outcome_tags, params
from experiments.record.reading import search
from experiments.record.view import TAG, link, sweep_views
from experiments.run.config import Config, DatasetConfig, SweepConfig, TrackingConfig, UserError
from experiments.run.data import load
from experiments.run.environment import environment, uncommitted
from experiments.run.stack import Trained

ARTIFACT_FOLDER = "mlartifacts"
PARENT_TAG = "mlflow.parentRunId"
# An experiment with more sweeps than that keeps the views that it has.
MOST_TAGS = 500
# What a server does not answer at once waits on disk: MLflow's own seven tries would stop the sweep for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

Method = TypeVar("Method", bound=Callable[..., Any])

for _chatty in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)
# That a server does not answer is said once, by the outbox.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _in_one_line(method: Method) -> Method:
    """MLflow's errors as ours: Unreachable where a server does not answer, StoreError otherwise."""

    @wraps(method)
    def called(self: Any, *arguments: Any, **more: Any) -> Any:
        try:
            return method(self, *arguments, **more)
        except (MlflowException, OSError) as error:
            line = f"tracking.uri is {self.uri!r}: {str(error).splitlines()[0]}"
            answered = isinstance(error, RestException) and error.get_http_status_code() < 500
            lost = isinstance(error, MlflowException | requests.RequestException) and not answered
            raise (Unreachable if self.uri.startswith("http") and lost else StoreError)(line) from error

    return called  # type: ignore[return-value]


class Store:
    """An experiment in a tracking store, made where it is not there yet."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.uri = absolute(tracking.uri)
        self.points, self.blocks = tracking.points, tracking.blocks
        check_reachable(self.uri)
        self._open(tracking.experiment)
        # The collector would look through MLflow's hundred thousand objects again and again: a fifth of the writing.
        gc.freeze()

    @_in_one_line
    def _open(self, experiment: str) -> None:
        if not self.uri.startswith("sqlite"):
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment(experiment, None)
            self.page = link(self.experiment_id)
            return
        file = Path(self.uri.removeprefix("sqlite:///"))
        artifacts = (file.parent / ARTIFACT_FOLDER).as_uri()
        # A new SQLite file that several processes open at once breaks.
        with FileLock(lock_file(self.uri)):
            if is_new(file):
                _make(file, artifacts)
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment(experiment, artifacts)
            self.page = link(self.experiment_id)

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return self.client.create_experiment(name, artifact_location)
        if found.lifecycle_stage == "deleted":
            raise UserError(f"tracking.experiment is {name!r}, which was deleted in {self.uri}: restore it, or take another name")
        return found.experiment_id

    @property
    def command(self) -> str:
        """What opens the dashboard on this store."""
        if self.uri.startswith("http"):
            return f"open {self.uri}/{self.page}"
        return f"python -m experiments.dashboard --uri {self.uri}   # opens http://127.0.0.1:5000/{self.page}"

    @_in_one_line
    def save_view(self, parent: str, name: str, configs: Sequence[Config], score: str) -> None:
        """The dashboard's page for the sweep of those configs, from now on `page`. score: accuracy or r2."""
        if len(self.client.get_experiment(self.experiment_id).tags) < MOST_TAGS:
            for key, view in sweep_views(name, parent, configs, score, self.blocks).items():
                self.client.set_experiment_tag(self.experiment_id, TAG + key, view)
            self.page = link(self.experiment_id, parent)

    @_in_one_line
    def begin(self, name: str, tags: dict[str, str], parent: str = "") -> "Run":
        """A new run, RUNNING, of this process."""
        own = {
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "experiments.train",
            **_commit_tags(),
            **liveness.tags(),
            **tags,
        }
        if parent:
            own[PARENT_TAG] = parent
        return Run(self, self.client.create_run(self.experiment_id, run_name=name, tags=own).info.run_id)

    def run(self, run_id: str) -> "Run":
        """The run of that id."""
        return Run(self, run_id)

    @_in_one_line
    def begin_sweep(
        self, name: str, tags: dict[str, str], fingerprint: str, config: SweepConfig
    ) -> tuple["Run", dict[int, tuple[float, str]]]:
        """The parent run of a sweep, RUNNING, and what an earlier start has finished: job -> (final training loss, outcome).

        Runs whose process is gone are KILLED first. Raises UserError where another process is training the same sweep.
        """
        with FileLock(lock_file(self.uri)):
            self._bury(config.stale)
            kind = tags["kind"]
            found = self._search(f"tags.kind = '{kind}' and tags.fingerprint = '{fingerprint}'") if config.resume else []
            if not found:
                return self.begin(name, {**tags, "fingerprint": fingerprint}), {}
            sweep, run_id = found[0], found[0].info.run_id
            if sweep.info.status == "RUNNING":
                raise UserError(
                    f"this {kind} is being trained by another process, {sweep.data.tags[liveness.PROCESS]} "
                    f"(run {run_id}): wait for it, or train it anew with sweep.resume=false"
                )
            parent = self.run(run_id)
            parent.beat()
            self.client.update_run(run_id, status="RUNNING")
        finished = self.children(run_id, "attributes.status = 'FINISHED'")
        return parent, {int(run.data.tags["job"]): _result(run) for run in finished}

    @_in_one_line
    def finished(self, parent: str, job: int) -> tuple[float, str] | None:
        """(final training loss, outcome) of a sweep's job, None where it is not finished."""
        found = self.children(parent, f"attributes.status = 'FINISHED' and tags.job = '{job}'")
        return _result(found[0]) if found else None

    @_in_one_line
    def children(self, parent: str, which: str = "") -> list[MlflowRun]:
        """A sweep's runs, newest first; those that MLflow's filter `which` takes."""
        return self._search(" and ".join([f"tags.`{PARENT_TAG}` = '{parent}'", *filter(None, [which])]))

    def _search(self, which: str) -> list[MlflowRun]:
        return search(self.client, [self.experiment_id], which)

    def _bury(self, stale: float) -> None:
        """End as KILLED every RUNNING run whose process is gone, and whose sweep's process is."""
        running = {run.info.run_id: run for run in self._search("attributes.status = 'RUNNING'") if "kind" in run.data.tags}
        for run_id, run in running.items():
            parent = running.get(run.data.tags.get(PARENT_TAG, ""), run)
            if not any(liveness.alive(of.data.tags, stale) for of in (run, parent)):
                self.client.set_terminated(run_id, "KILLED")


def _result(run: MlflowRun) -> tuple[float, str]:
    return run.data.metrics.get("final/loss_train", math.inf), run.data.tags["outcome"]


def _make(file: Path, artifacts: str) -> None:
    """A new SQLite store: it takes its name when it is whole, so that a kill on the way leaves none that is half made."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    made = SqlAlchemyStore(f"sqlite:///{unfinished}", artifacts)
    made._dispose_engine()
    # Several sweeps that write at once then wait for each other half as long.
    with contextlib.closing(sqlite3.connect(unfinished)) as store:
        store.execute("pragma journal_mode = wal")
    unfinished.replace(file)


class Run:
    """A run in the store, RUNNING until `finish` or `end`."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.client, self.uri, self.run_id = store, store.client, store.uri, run_id
        self.shown = 0

    @_in_one_line
    def beat(self) -> None:
        """A sign of life."""
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in liveness.tags().items()])

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Signs of life every few seconds, from a thread of their own."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(liveness.BEAT_SECONDS):
                with contextlib.suppress(UserError):
                    self.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @_in_one_line
    def progress(self, history: History, steps: int) -> None:
        """The points of the curves that a training of `steps` steps has reached since the last call."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id, metrics=list(curves(history, steps, self.store.points, self.store.blocks, self.shown, lambda step: now))
        )
        self.shown = history.loss.shape[-1]

    @_in_one_line
    def finish(self, trained: Trained) -> None:
        """All of a trained run, and its end: FINISHED, whatever the outcome."""
        self.client.log_batch(
            self.run_id,
            metrics=list(metrics(trained, self.store.points, self.store.blocks, self.shown)),
            params=[Param(key, str(value)) for key, value in params(trained.config).items()],
            tags=[RunTag(key, value) for key, value in outcome_tags(trained).items()],
        )
        self.client.log_inputs(self.run_id, [_input(trained.config.dataset)])
        with tempfile.TemporaryDirectory() as folder:
            files.write(trained, Path(folder))
            self.keep(Path(folder))
        # Last of all: what is FINISHED is whole.
        self.end()

    @_in_one_line
    def describe(self, params: dict[str, str], values: dict[str, float] | None = None, step: int = 0) -> None:
        """Params and, where they are finite, metrics of a run that trains nothing itself."""
        now, finite = int(time.time() * 1000), {key: value for key, value in (values or {}).items() if math.isfinite(value)}
        metrics = [Metric(key, value, now, step) for key, value in finite.items()]
        self.client.log_batch(self.run_id, metrics=metrics, params=[Param(key, value) for key, value in params.items()])

    @_in_one_line
    def tabulate(self, columns: dict[str, list[Any]]) -> None:
        """A table that the dashboard shows as one, table.json; inf is left empty, which JSON has no word for.

        MLflow's page reads a dot in a column's name as a path into the cell: in its place stands a space.
        As MLflow's `log_table` writes it, which adds to the table of an earlier start where it should replace it.
        """
        finite = [
            [None if isinstance(value, float) and not math.isfinite(value) else value for value in row]
            for row in zip(*columns.values(), strict=True)
        ]
        names = [name.replace(".", " ") for name in columns]
        self.client.log_dict(self.run_id, {"columns": names, "data": finite}, "table.json")
        self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": "table.json", "type": "table"}]))

    @_in_one_line
    def note(self, markdown: str) -> None:
        """The run's description."""
        self.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    @_in_one_line
    def keep(self, folder: Path, below: str = "") -> None:
        """The folder's files as artifacts, in the artifacts' folder `below`."""
        self.client.log_artifacts(self.run_id, str(folder), below or None)

    @_in_one_line
    def end(self, status: str = "FINISHED") -> None:
        """The run's end: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


@cache
def _commit_tags() -> dict[str, str]:
    here = environment()
    if not here["git.commit"]:
        return {}
    return {
        "mlflow.source.git.commit": here["git.commit"],
        "mlflow.source.git.branch": here["git.branch"],
        "git.dirty": str(bool(uncommitted())).lower(),
    }


_inputs: dict[str, DatasetInput] = {}


def _input(config: DatasetConfig) -> DatasetInput:
    """The training data as MLflow's data set, made once: its digest is the start of ours."""
    dataset = load(config)
    if dataset.digest not in _inputs:
        made = from_numpy(dataset.x.T, targets=dataset.y.T, name=dataset.name, digest=dataset.digest[:8])
        _inputs[dataset.digest] = DatasetInput(made._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])
    return _inputs[dataset.digest]
