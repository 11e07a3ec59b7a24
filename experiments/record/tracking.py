"""MLflow: a sweep is a parent run, each job a child run, written in batches."""

import contextlib
import gc
import json
import math
import shlex
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

from blocks.history import History
from experiments.record import files
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
from experiments.record.claims import PARENT_TAG, Claims
from experiments.record.client import Client, in_one_line, patiently
from experiments.record.identity import Finished
from experiments.record.metrics import curves, metrics, outcome_tags, params, texts
from experiments.record.moved import ARTIFACT_FOLDER, local, relocate
from experiments.record.ownership import BEAT_SECONDS
from experiments.record.reading import is_job, search
from experiments.record.rows import writer_of
from experiments.record.view import TAG, link, run_link, sweep_views
from experiments.record.writer import FinishedRun, NewRun, at_once
from experiments.run.config import MEASURE, Config, DatasetConfig, SweepConfig, TrackingConfig, UserError
from experiments.run.data import load
from experiments.run.environment import environment, uncommitted
from experiments.run.measure import MEASURES, Measure
from experiments.run.stack import Trained

# An experiment with more sweeps than that keeps the views that it has.
MOST_TAGS = 500

T = TypeVar("T")


class Store:
    """An experiment in a tracking store, made where it is not there yet."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.uri = absolute(tracking.uri)
        self.points, self.blocks = tracking.points, tracking.blocks
        check_reachable(self.uri)
        self._open(tracking.experiment)
        self.claims = Claims(self.client, self.experiment_id, lock_file(self.uri))
        self.writer = writer_of(self.client, self.experiment_id)
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
            self.experiment_id = found.experiment_id if found else self._create_experiment(experiment, artifacts)
        if found and found.lifecycle_stage == "deleted":
            raise UserError(
                f"tracking.experiment is {experiment!r}, which was deleted in {self.uri}: restore it, or take another name"
            )
        self.views = len(found.tags) if found else 0
        # What the dashboard is opened on, and its page.
        self.opened, self.page = "", link(self.experiment_id)

    def _create_experiment(self, name: str, artifacts: str | None) -> str:
        try:
            made: str = self.client.create_experiment(name, artifacts)
        except StoreError:
            # Another machine may have made it since, or this one, whose answer was lost.
            found = self.client.get_experiment_by_name(name)
            if not found:
                raise
            made = found.experiment_id
        return made

    @property
    def token(self) -> str:
        """Of the owner of what is begun here."""
        return self.claims.owner.token

    @property
    def command(self) -> str:
        """What opens the dashboard on the sweep, run or map that was begun here."""
        if self.uri.startswith("http"):
            return f"open {shlex.quote(f'{self.uri}/{self.page}')}"
        options = f"{self.opened} --uri {shlex.quote(self.uri)}".strip()
        return f"python -m experiments.dashboard {options}   # opens http://127.0.0.1:5000/{self.page}"

    def save_view(self, parent: str, name: str, configs: Sequence[Config], score: str, pictures: Sequence[str] = ()) -> None:
        """The dashboard's page for the sweep of those configs, from now on `page`.

        score: accuracy or r2. pictures: the keys of its images, see `show`.
        """
        if self.views < MOST_TAGS:
            for key, view in sweep_views(name, parent, configs, score, self.blocks, pictures).items():
                self.client.set_experiment_tag(self.experiment_id, TAG + key, view)
            self.page = link(self.experiment_id, parent)

    def show(self, sweep: str, run_id: str, pictures: Sequence[Path]) -> None:
        """A sweep's pictures as images of that run of it, which MLflow's page of charts shows where it shows the run.

        The key of each is its file's name. As MLflow's `log_image` writes them, which adds to those of an earlier start; another
        run that had them then has them no longer.
        """
        from PIL import Image

        for other in self.children(sweep, f"tags.`{MLFLOW_LOGGED_IMAGES}` = 'True'"):
            if other.info.run_id != run_id:
                self.client.delete_tag(other.info.run_id, MLFLOW_LOGGED_IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            for file in pictures:
                place = Path(folder, f"{file.stem}+step+0+timestamp+0+{sweep}")
                shutil.copy(file, f"{place}.png")
                with Image.open(file) as picture:
                    compress_image_size(picture).save(f"{place}+compressed.webp")
            self.run(run_id).keep(Path(folder), "images")
        self.client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")

    def begin(self, name: str, tags: dict[str, str], parent: str = "", config: Config | None = None) -> "Run":
        """A new run, RUNNING, of this process. config: of one that trains: its params, which it has however it ends."""
        (made,) = self.begin_runs([(name, tags, config)], parent)
        if not parent:
            self._open_on(made.run_id, tags)
        return made

    def begin_runs(self, runs: Sequence[tuple[str, dict[str, str], Config | None]], parent: str = "") -> list["Run"]:
        """`begin` for the name, the tags and the config of each."""
        source = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "experiments.train", **_commit_tags()}
        own = {**source, **self.claims.tags(), **({PARENT_TAG: parent} if parent else {})}
        new = [NewRun(name, {**own, **tags}, texts(params(config)) if config else {}) for name, tags, config in runs]
        return [Run(self, run_id, parent, artifact_uri) for run_id, artifact_uri in self.writer.create(new)]

    def progress(self, runs: "Sequence[tuple[Run, History, int]]") -> None:
        """`Run.progress` of each: the points of its curves since the last call."""
        now = int(time.time() * 1000)
        points = {
            run.run_id: list(curves(history, steps, self.points, self.blocks, run.shown, lambda step: now))
            for run, history, steps in runs
        }
        self.writer.log(points)
        for run, history, _ in runs:
            # A later round of a sweep with halving begins anew.
            run.shown = max(run.shown, history.loss.shape[-1])

    def finish(self, runs: "Sequence[tuple[Run, Trained]]") -> None:
        """All of those runs of a sweep, or of one alone, and their end: FINISHED, whatever the outcome.

        Raises TakenOver where the sweep is another process's.
        """
        if parent := runs[0][0].parent:
            self.check_owner(parent)
        finished: list[FinishedRun] = []
        with tempfile.TemporaryDirectory() as folder:
            try:
                for run, trained in runs:
                    finished.append(self._finished_run(run, trained, Path(folder, run.run_id)))
            finally:
                # Where the disk is full, those whose files it has.
                if finished:
                    self.writer.finish(finished)
                for run, _ in runs[: len(finished)]:
                    run.ended = True

    def _finished_run(self, run: "Run", trained: Trained, folder: Path) -> FinishedRun:
        """folder: for its files, where they are not written where they belong at once."""
        place = local(run.artifact_uri or "")
        with in_one_line(self.uri):
            (place or folder).mkdir(parents=True, exist_ok=True)
            files.write(trained, place or folder)
        points = list(metrics(trained, self.points, self.blocks, run.shown))
        uploads = [] if place else run.uploads(folder)
        return FinishedRun(run.run_id, points, outcome_tags(trained), _input(trained.config.dataset), uploads)

    def together(self, runs: Sequence[T]) -> list[Sequence[T]]:
        """Those of them that are written together, in one transaction: all, or each by itself."""
        return [runs] if self.writer.together and runs else [[run] for run in runs]

    def run(self, run_id: str) -> "Run":
        """The run of that id."""
        return Run(self, run_id)

    def close(self, status: str = "KILLED", reason: str = "its process has ended") -> None:
        """End with that status, for that reason, what this process has begun here and not ended; others may take it over then."""
        self.claims.close(status, reason)

    def begin_sweep(self, name: str, tags: dict[str, str], fingerprint: str, config: SweepConfig) -> tuple["Run", Finished]:
        """The parent run of a sweep, RUNNING, and what an earlier start has finished of it.

        Runs whose owner is dead are KILLED first. Raises UserError where another process is training the same sweep; where it
        is not to be seen whether that lives, its signs of life are waited for.
        """
        created = []

        def create() -> str:
            created.append(self.begin(name, {**tags, "fingerprint": fingerprint}).run_id)
            return created[0]

        run_id = self.claims.take_over(tags["kind"], fingerprint, config, create)
        self._open_on(run_id, tags)
        if tags["kind"] == "sweep":
            self.client.set_tag(run_id, MEASURE, config.measure)
        # Of a new one nothing is finished: a server that has just gone need not be asked.
        return self.run(run_id), {} if created else self._finished(run_id, MEASURES[config.measure])

    def _open_on(self, run_id: str, tags: dict[str, str]) -> None:
        self.opened = run_id
        # A sweep's is `save_view`'s.
        if tags.get("kind") != "sweep":
            self.page = run_link(self.experiment_id, run_id)

    def act_for(self, token: str, sweep: str) -> None:
        """Write for that owner from now on, and where the sweep was ended by another one since, for that one."""
        self.claims.act_for(token, sweep)

    def check_owner(self, sweep: str) -> None:
        """Raise TakenOver where the sweep of that parent run belongs to another process by now."""
        self.claims.check(sweep)

    def finished(self, parent: str, job: int, fingerprint: str, measure: Measure) -> tuple[float, str] | None:
        """(value of that measure, outcome) of a sweep's job, None where it is not finished."""
        return self._finished(parent, measure, f" and tags.job = '{job}'").get((job, fingerprint))

    def _finished(self, parent: str, measure: Measure, which: str = "") -> Finished:
        runs = [run for run in self.children(parent, f"attributes.status = 'FINISHED'{which}") if is_job(run.data.tags)]
        return {
            (int(run.data.tags["job"]), run.data.tags.get("fingerprint", "")): (
                run.data.metrics.get(measure.metric, math.nan),
                run.data.tags["outcome"],
            )
            for run in runs
        }

    def tags_of(self, parent: str, jobs: Collection[int]) -> dict[int, dict[str, str]]:
        """Job -> the tags of its finished run, of those jobs of a sweep; a request only where there are any."""
        runs = self.children(parent, "attributes.status = 'FINISHED'") if jobs else []
        tags = {int(run.data.tags["job"]): run.data.tags for run in runs if is_job(run.data.tags)}
        return {job: tags[job] for job in jobs}

    @property
    def runs_at_once(self) -> int:
        """How many runs are to be written at once."""
        return self.writer.runs_at_once

    def at_once(self, *calls: Callable[[], T]) -> list[T]:
        """What they return, called side by side where each waits for a server's answer; raises the first error."""
        return at_once(self.uri, calls)

    def children(self, parent: str, which: str = "") -> list[MlflowRun]:
        """A sweep's runs, newest first; those that MLflow's filter `which` takes."""
        return self._search(" and ".join([f"tags.`{PARENT_TAG}` = '{parent}'", *filter(None, [which])]))

    def _search(self, which: str) -> list[MlflowRun]:
        return search(self.client, [self.experiment_id], which)


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

    def __init__(self, store: Store, run_id: str, parent: str = "", artifact_uri: str | None = None) -> None:
        self.store, self.client, self.uri, self.run_id, self.parent = store, store.client, store.uri, run_id, parent
        self.artifact_uri = artifact_uri
        self.shown = 0
        self.ended = False

    @cached_property
    def artifacts(self) -> ArtifactRepository:
        """Where its artifacts are put."""
        place = self.artifact_uri or self.client.get_run(self.run_id).info.artifact_uri
        return get_artifact_repository(place, tracking_uri=with_password(self.uri))

    def beat(self) -> None:
        """A sign of life; raises TakenOver where the run is another process's by now."""
        self.store.claims.beat(self.run_id)

    def check_owner(self) -> None:
        """Raise TakenOver where this run of a sweep is another process's by now."""
        self.store.check_owner(self.run_id)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Signs of life every few seconds, from a thread of their own."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                # Whatever this one comes to, the next may be given.
                with contextlib.suppress(Exception):
                    self.beat()
                    self.store.claims.bury_silent()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            # One that waits for a server is not waited for.
            thread.join(BEAT_SECONDS)

    def progress(self, history: History, steps: int) -> None:
        """The points of the curves that a training of `steps` steps has reached since the last call."""
        self.store.progress([(self, history, steps)])

    def finish(self, trained: Trained) -> None:
        """See `Store.finish`."""
        self.store.finish([(self, trained)])

    def fail(self, reason: str, status: str) -> None:
        """The end of a run that was not trained, or of a sweep that was cut off: FAILED or KILLED, and why."""
        self.store.claims.end(self.run_id, status, reason)
        self.ended = True

    def describe(self, params: dict[str, str], values: dict[str, float] | None = None, step: int = 0) -> None:
        """Params and, where they are finite, metrics of a run that trains nothing itself. Params that it has stay."""
        now, finite = int(time.time() * 1000), {key: value for key, value in (values or {}).items() if math.isfinite(value)}
        metrics = [Metric(key, value, now, step) for key, value in finite.items()]
        there = self.client.get_run(self.run_id).data.params if params else {}
        missing = [Param(key, value) for key, value in texts(params).items() if key not in there]
        self.client.log_batch(self.run_id, metrics=metrics, params=missing)

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
        tables = json.dumps([{"path": "table.json", "type": "table"}])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "table.json").write_text(json.dumps({"columns": names, "data": finite}))
            self.store.at_once(
                lambda: self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", tables), *self.uploads(Path(folder))
            )

    def note(self, markdown: str) -> None:
        """The run's description."""
        self.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def keep(self, folder: Path, below: str = "") -> None:
        """The folder's files as artifacts, in the artifacts' folder `below`."""
        self.store.at_once(*self.uploads(folder, below))

    def uploads(self, folder: Path, below: str = "") -> list[Callable[[], None]]:
        """A call for every file of a folder."""

        def upload(file: Path) -> None:
            place = str(Path(below, file.relative_to(folder).parent))
            with in_one_line(self.uri):
                self.artifacts.log_artifact(str(file), None if place == "." else place)

        return [partial(upload, file) for file in sorted(folder.rglob("*")) if file.is_file()]

    def end(self, status: str = "FINISHED") -> None:
        """The run's end by itself: FINISHED, or FAILED where it is a check that does not hold."""
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
