"""MLflow: a sweep is a parent run, each job a child run, written in batches."""

import contextlib
import gc
import json
import math
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from blocks.history import History, evenly_spaced
from experiments.record import files, liveness
from experiments.record.address import (
    StoreError,
    absolute,
    check_reachable,
    is_new,
    lock_file,
    sqlite_file,
    sqlite_uri,
    with_password,
)
from experiments.record.client import Client, in_one_line, patiently
from experiments.record.metrics import curves, metrics, outcome_tags, params
from experiments.record.moved import ARTIFACT_FOLDER, relocate
from experiments.record.reading import search
from experiments.record.view import TAG, link, norm_key, saved_view
from experiments.run.config import DatasetConfig, SweepConfig, TrackingConfig, UserError
from experiments.run.data import load
from experiments.run.environment import environment, uncommitted
from experiments.run.stack import Trained

PARENT_TAG = "mlflow.parentRunId"
# Gradient norms of so many blocks have a chart in a sweep's view.
VIEWED = 4
# An experiment with more sweeps than that keeps the views that it has.
MOST_TAGS = 500
# So many requests to a server are under way at once for a run, and so many runs are written at once.
AT_ONCE, RUNS_AT_ONCE = 8, 4

T = TypeVar("T")


class Store:
    """An experiment in a tracking store, made where it is not there yet."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.uri = absolute(tracking.uri)
        self.points, self.blocks = tracking.points, tracking.blocks
        check_reachable(self.uri)
        self._open(tracking.experiment)
        # The collector would look through MLflow's hundred thousand objects again and again: a fifth of the writing.
        gc.freeze()

    def _open(self, experiment: str) -> None:
        file = sqlite_file(self.uri)
        artifacts = (file.parent / ARTIFACT_FOLDER).as_uri() if file else None
        # A new database that several processes open at once breaks.
        with in_one_line(self.uri), FileLock(lock_file(self.uri)):
            if file and is_new(file):
                _make(file, str(artifacts))
            elif file:
                for line in patiently(self.uri, partial(relocate, file)):
                    print(line)
            self.client = Client(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
        if found and found.lifecycle_stage == "deleted":
            raise UserError(
                f"tracking.experiment is {experiment!r}, which was deleted in {self.uri}: restore it, or take another name"
            )
        self.views = len(found.tags) if found else 0
        self.page = link(self.experiment_id)

    @property
    def command(self) -> str:
        """What opens the dashboard on this store."""
        if self.uri.startswith("http"):
            return f"open {self.uri}/{self.page}"
        return f"python -m experiments.dashboard --uri {self.uri}   # opens http://127.0.0.1:5000/{self.page}"

    def save_view(self, parent: str, name: str, swept: Sequence[str], score: str, depth: int, instruments: Sequence[str]) -> None:
        """The dashboard's page for that sweep, from now on `page`.

        swept: the keys that differ between its runs. depth: of the deepest network. instruments: names of metrics of theirs.
        """
        if self.views < MOST_TAGS:
            blocks = [norm_key("W", block, depth) for block in evenly_spaced(depth, min(VIEWED, self.blocks or depth))]
            view = saved_view(name, parent, swept, score, blocks, instruments)
            self.client.set_experiment_tag(self.experiment_id, TAG + parent, view)
            self.page = link(self.experiment_id, parent)

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
        made = self.client.create_run(self.experiment_id, run_name=name, tags=own)
        return Run(self, made.info.run_id, made.info.artifact_uri)

    def run(self, run_id: str) -> "Run":
        """The run of that id."""
        return Run(self, run_id)

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

    def finished(self, parent: str, job: int) -> tuple[float, str] | None:
        """(final training loss, outcome) of a sweep's job, None where it is not finished."""
        found = self.children(parent, f"attributes.status = 'FINISHED' and tags.job = '{job}'")
        return _result(found[0]) if found else None

    @property
    def runs_at_once(self) -> int:
        """How many runs are to be written at once: a file is written by one after the other."""
        return 1 if sqlite_file(self.uri) else RUNS_AT_ONCE

    def at_once(self, *calls: Callable[[], T]) -> list[T]:
        """What they return, called side by side where each waits for a server's answer; raises the first error."""
        if sqlite_file(self.uri):
            return [call() for call in calls]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return [called.result() for called in [threads.submit(call) for call in calls]]

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
    made = SqlAlchemyStore(sqlite_uri(unfinished), artifacts)
    made._dispose_engine()
    # Several sweeps that write at once then wait for each other half as long.
    with contextlib.closing(sqlite3.connect(unfinished)) as store:
        store.execute("pragma journal_mode = wal")
    unfinished.replace(file)


class Run:
    """A run in the store, RUNNING until `finish` or `end`."""

    def __init__(self, store: Store, run_id: str, artifact_uri: str | None = None) -> None:
        self.store, self.client, self.uri, self.run_id = store, store.client, store.uri, run_id
        self.artifact_uri = artifact_uri
        self.shown = 0

    @cached_property
    def artifacts(self) -> ArtifactRepository:
        """Where its artifacts are put."""
        place = self.artifact_uri or self.client.get_run(self.run_id).info.artifact_uri
        return get_artifact_repository(place, tracking_uri=with_password(self.uri))

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

    def progress(self, history: History, steps: int) -> None:
        """The points of the curves that a training of `steps` steps has reached since the last call."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id, metrics=list(curves(history, steps, self.store.points, self.store.blocks, self.shown, lambda step: now))
        )
        self.shown = history.loss.shape[-1]

    def finish(self, trained: Trained) -> None:
        """All of a trained run, and its end: FINISHED, whatever the outcome."""
        with tempfile.TemporaryDirectory() as folder:
            files.write(trained, Path(folder))
            self.store.at_once(
                lambda: self.client.log_batch(
                    self.run_id,
                    metrics=list(metrics(trained, self.store.points, self.store.blocks, self.shown)),
                    params=[Param(key, str(value)) for key, value in params(trained.config).items()],
                    tags=[RunTag(key, value) for key, value in outcome_tags(trained).items()],
                ),
                lambda: self._use(_input(trained.config.dataset)),
                *self._uploads(Path(folder)),
            )
        # Last of all: what is FINISHED is whole.
        self.end()

    def _use(self, data: DatasetInput) -> None:
        try:
            self.client.log_inputs(self.run_id, [data])
        except StoreError:
            # Another run has told a database of the same data at the same moment; now they are there.
            self.client.log_inputs(self.run_id, [data])

    def describe(self, params: dict[str, str], values: dict[str, float] | None = None, step: int = 0) -> None:
        """Params and, where they are finite, metrics of a run that trains nothing itself."""
        now, finite = int(time.time() * 1000), {key: value for key, value in (values or {}).items() if math.isfinite(value)}
        metrics = [Metric(key, value, now, step) for key, value in finite.items()]
        self.client.log_batch(self.run_id, metrics=metrics, params=[Param(key, value) for key, value in params.items()])

    def tabulate(self, columns: dict[str, list[Any]]) -> None:
        """A table that the dashboard shows as one, table.json; inf is left empty, which JSON has no word for.

        As MLflow's `log_table` writes it, which adds to the table of an earlier start where it should replace it.
        """
        finite = [
            [None if isinstance(value, float) and not math.isfinite(value) else value for value in row]
            for row in zip(*columns.values(), strict=True)
        ]
        tables = json.dumps([{"path": "table.json", "type": "table"}])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "table.json").write_text(json.dumps({"columns": list(columns), "data": finite}))
            self.store.at_once(
                lambda: self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", tables), *self._uploads(Path(folder))
            )

    def note(self, markdown: str) -> None:
        """The run's description."""
        self.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def keep(self, folder: Path, below: str = "") -> None:
        """The folder's files as artifacts, in the artifacts' folder `below`."""
        self.store.at_once(*self._uploads(folder, below))

    def _uploads(self, folder: Path, below: str = "") -> list[Callable[[], None]]:
        """A call for every file of a folder."""

        def upload(file: Path) -> None:
            place = str(Path(below, file.relative_to(folder).parent))
            with in_one_line(self.uri):
                self.artifacts.log_artifact(str(file), None if place == "." else place)

        return [partial(upload, file) for file in sorted(folder.rglob("*")) if file.is_file()]

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
