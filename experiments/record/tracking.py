"""MLflow: a sweep is a parent run, each job a child run, written in batches."""

import gc
import math
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag
from mlflow.entities import Run as MlflowRun

from blocks.history import History
from experiments.record import files
from experiments.record.address import (
    absolute,
    check_reachable,
    lock_file,
)
from experiments.record.claims import PARENT_TAG, Claims
from experiments.record.client import in_one_line
from experiments.record.experiment import open_experiment
from experiments.record.identity import Finished
from experiments.record.metrics import curves, metrics, outcome_tags, params, texts
from experiments.record.moved import local
from experiments.record.page import Page
from experiments.record.reading import is_job, search
from experiments.record.rows import writer_of
from experiments.record.run import Run
from experiments.record.writer import FinishedRun, NewRun, at_once
from experiments.run.config import MEASURE, Config, DatasetConfig, SweepConfig, TrackingConfig
from experiments.run.data import load
from experiments.run.environment import environment, uncommitted_diff
from experiments.run.measure import MEASURES, Measure
from experiments.run.stack import Trained

T = TypeVar("T")


class Store:
    """An experiment in a tracking store, made where it is not there yet."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.uri = absolute(tracking.uri)
        self.points, self.blocks = tracking.points, tracking.blocks
        check_reachable(self.uri)
        self.client, experiment = open_experiment(self.uri, tracking.experiment)
        self.experiment_id: str = experiment.experiment_id
        self.page = Page(self, len(experiment.tags))
        self.claims = Claims(self.client, self.experiment_id, lock_file(self.uri))
        self.writer = writer_of(self.client, self.experiment_id)
        # The collector would look through MLflow's hundred thousand objects again and again: a fifth of the writing.
        gc.freeze()

    @property
    def token(self) -> str:
        """Of the owner of what is begun here."""
        return self.claims.owner.token

    def begin(self, name: str, tags: dict[str, str], parent: str = "", config: Config | None = None) -> Run:
        """A new run, RUNNING, of this process. config: of one that trains: its params, which it has however it ends."""
        (made,) = self.begin_runs([(name, tags, config)], parent)
        if not parent:
            self.page.open_on(made.run_id, tags["kind"])
        return made

    def begin_runs(self, runs: Sequence[tuple[str, dict[str, str], Config | None]], parent: str = "") -> list[Run]:
        """`begin` for the name, the tags and the config of each."""
        source = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "experiments.train", **_commit_tags()}
        own = {**source, **self.claims.tags(), **({PARENT_TAG: parent} if parent else {})}
        new = [NewRun(name, {**own, **tags}, texts(params(config)) if config else {}) for name, tags, config in runs]
        return [Run(self, run_id, parent, artifact_uri) for run_id, artifact_uri in self.writer.create(new)]

    def progress(self, runs: Sequence[tuple[Run, History, int]]) -> None:
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

    def finish(self, runs: Sequence[tuple[Run, Trained]]) -> None:
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

    def _finished_run(self, run: Run, trained: Trained, folder: Path) -> FinishedRun:
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

    def run(self, run_id: str) -> Run:
        """The run of that id."""
        return Run(self, run_id)

    def close(self, status: str = "KILLED", reason: str = "its process has ended") -> None:
        """End with that status, for that reason, what this process has begun here and not ended; others may take it over then."""
        self.claims.close(status, reason)

    def begin_sweep(self, name: str, tags: dict[str, str], fingerprint: str, config: SweepConfig) -> tuple[Run, Finished]:
        """The parent run of a sweep, RUNNING, and what an earlier start has finished of it.

        Runs whose owner is dead are KILLED first. Raises UserError where another process is training the same sweep; where it
        is not to be seen whether that lives, its signs of life are waited for.
        """
        created = []

        def create() -> str:
            created.append(self.begin(name, {**tags, "fingerprint": fingerprint}).run_id)
            return created[0]

        run_id = self.claims.take_over(tags["kind"], fingerprint, config, create)
        self.page.open_on(run_id, tags["kind"])
        if tags["kind"] == "sweep":
            self.client.set_tag(run_id, MEASURE, config.measure)
        # Of a new one nothing is finished: a server that has just gone need not be asked.
        return self.run(run_id), {} if created else self._finished(run_id, MEASURES[config.measure])

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


@cache
def _commit_tags() -> dict[str, str]:
    here = environment()
    if not here["git.commit"]:
        return {}
    return {
        "mlflow.source.git.commit": here["git.commit"],
        "mlflow.source.git.branch": here["git.branch"],
        "git.dirty": str(bool(uncommitted_diff())).lower(),
    }


_inputs: dict[str, DatasetInput] = {}


def _input(config: DatasetConfig) -> DatasetInput:
    """The training data as MLflow's data set, made once: its digest is the start of ours."""
    dataset = load(config)
    if dataset.digest not in _inputs:
        made = from_numpy(dataset.x.T, targets=dataset.y.T, name=dataset.name, digest=dataset.digest[:8])
        _inputs[dataset.digest] = DatasetInput(made._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])
    return _inputs[dataset.digest]
