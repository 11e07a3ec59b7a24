"""The MLflow store, in which a sweep is a parent run and each of its jobs a child run."""

import gc
import math
import tempfile
import time
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag

from blocks.history import History
from experiments.record import files
from experiments.record.claims import PARENT_TAG
from experiments.record.client import errors_in_one_line
from experiments.record.experiment import Experiment
from experiments.record.identity import FinishedJobs
from experiments.record.metrics import curves, metrics, outcome_tags, param_texts, params
from experiments.record.page import Page
from experiments.record.reading import is_job
from experiments.record.relocation import local_folder
from experiments.record.rows import create_writer
from experiments.record.run import Run
from experiments.record.writer import FinishedRun, NewRun
from experiments.run.config import MEASURE, Config, DatasetConfig, SweepConfig, TrackingConfig
from experiments.run.data import load_dataset
from experiments.run.environment import environment, uncommitted_diff
from experiments.run.measure import MEASURES, Measure
from experiments.run.stack import TrainedRun

T = TypeVar("T")


class Store(Experiment):
    """An experiment whose runs are written here. tracking: where it is, and what is written of a run."""

    def __init__(self, tracking: TrackingConfig) -> None:
        super().__init__(tracking.uri, tracking.experiment)
        self.points, self.blocks = tracking.points, tracking.blocks
        self.page = Page(self, tracking.blocks)
        self.writer = create_writer(self.client, self.experiment_id)
        # Otherwise the garbage collector would search MLflow's hundred thousand objects again and again, a fifth of the time.
        gc.freeze()

    def begin(self, name: str, tags: dict[str, str], parent: str = "", config: Config | None = None) -> Run:
        """Create a RUNNING run of this process.

        parent: the id of its sweep's run, "" for none. config: of a run that trains, whose params are logged at once.
        """
        (run,) = self.begin_runs([(name, tags, config)], parent)
        if not parent:
            self.page.open_on(run.run_id, tags.get("kind", ""))
        return run

    def begin_runs(self, runs: Sequence[tuple[str, dict[str, str], Config | None]], parent: str = "") -> list[Run]:
        """Create RUNNING runs, see `begin`. runs: the name, the tags and the config of each."""
        source = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "experiments.train", **_commit_tags()}
        common_tags = {**source, **self.claims.tags(), **({PARENT_TAG: parent} if parent else {})}
        new_runs = [
            NewRun(name, {**common_tags, **tags}, param_texts(params(config)) if config else {}) for name, tags, config in runs
        ]
        return [Run(self, run_id, parent, artifact_uri) for run_id, artifact_uri in self.writer.create(new_runs)]

    def progress(self, runs: Sequence[tuple[Run, History, int]]) -> None:
        """Log the points of several runs' curves since the last call. runs: with the history so far, and the steps of it all."""
        now = int(time.time() * 1000)
        points = {
            run.run_id: list(curves(history, steps, self.points, self.blocks, run.logged_steps, lambda step: now))
            for run, history, steps in runs
        }
        self.writer.log(points)
        for run, history, _ in runs:
            # In a later round of halving a training begins again, so that its history may be shorter.
            run.logged_steps = max(run.logged_steps, history.loss.shape[-1])

    def finish(self, runs: Sequence[tuple[Run, TrainedRun]]) -> None:
        """Log the metrics, tags and files of trained runs, and end them as FINISHED, whatever their outcome.

        runs: of one sweep, or one run alone. Raises TakenOver where another process has taken the sweep over.
        """
        if parent := runs[0][0].parent:
            self.check_owner(parent)
        finished_runs: list[FinishedRun] = []
        with tempfile.TemporaryDirectory() as folder:
            try:
                for run, trained in runs:
                    finished_runs.append(self._finished_run(run, trained, Path(folder, run.run_id)))
            finally:
                # Where the disk is full, the runs whose files are complete are finished.
                if finished_runs:
                    self.writer.finish(finished_runs)
                for run, _ in runs[: len(finished_runs)]:
                    run.has_ended = True

    def _finished_run(self, run: Run, trained: TrainedRun, folder: Path) -> FinishedRun:
        """Write the files of a run and return what else is to be logged. folder: for files that must be uploaded."""
        artifact_folder = local_folder(run.artifact_uri or "")
        with errors_in_one_line(self.uri):
            (artifact_folder or folder).mkdir(parents=True, exist_ok=True)
            files.write(trained, artifact_folder or folder)
        points = list(metrics(trained, self.points, self.blocks, run.logged_steps))
        uploads = [] if artifact_folder else run.uploads(folder)
        return FinishedRun(run.run_id, points, outcome_tags(trained), _dataset_input(trained.config.dataset), uploads)

    def transactions(self, runs: Sequence[T]) -> list[Sequence[T]]:
        """Return the groups of runs that the writer writes in one transaction: all runs at once, or each by itself."""
        return [runs] if self.writer.is_atomic and runs else [[run] for run in runs]

    def run(self, run_id: str) -> Run:
        """Return the run of that id."""
        return Run(self, run_id)

    def close(self, status: str = "KILLED", reason: str = "its process has ended") -> None:
        """End all runs that this process has begun and not ended, with that status and reason; others may take them over."""
        self.claims.close(status, reason)

    def begin_sweep(self, name: str, tags: dict[str, str], fingerprint: str, config: SweepConfig) -> tuple[Run, FinishedJobs]:
        """Return a sweep's RUNNING parent run, new or of an earlier start, and the jobs that an earlier start has finished.

        First, runs whose owner is dead are ended as KILLED. Where it is unknown whether the owner of an earlier start lives, its
        heartbeats are awaited. Raises UserError where another process is training the same sweep.
        """
        new_ids = []

        def create() -> str:
            new_ids.append(self.begin(name, {**tags, "fingerprint": fingerprint}).run_id)
            return new_ids[0]

        run_id = self.claims.take_over(tags["kind"], fingerprint, config, create)
        self.page.open_on(run_id, tags["kind"])
        if tags["kind"] == "sweep":
            self.client.set_tag(run_id, MEASURE, config.measure)
        # A new sweep has no finished jobs, so that the server need not be asked.
        return self.run(run_id), {} if new_ids else self._finished_jobs(run_id, MEASURES[config.measure])

    def act_for(self, token: str, sweep: str) -> None:
        """Act for the owner of that token from now on, see `Claims.act_for`."""
        self.claims.act_for(token, sweep)

    def finished_job(self, parent: str, job: int, fingerprint: str, measure: Measure) -> tuple[float, str] | None:
        """Return (value of the measure, outcome) of a sweep's job, None where it is not finished."""
        return self._finished_jobs(parent, measure, f" and tags.job = '{job}'").get((job, fingerprint))

    def _finished_jobs(self, parent: str, measure: Measure, filter_string: str = "") -> FinishedJobs:
        runs = self.children(parent, f"attributes.status = 'FINISHED'{filter_string}")
        return {
            (int(run.data.tags["job"]), run.data.tags.get("fingerprint", "")): (
                run.data.metrics.get(measure.metric, math.nan),
                run.data.tags["outcome"],
            )
            for run in runs
            if is_job(run.data.tags)
        }

    def tags_of(self, parent: str, jobs: Collection[int]) -> dict[int, dict[str, str]]:
        """Return the tags of the finished runs of those jobs of a sweep, by job. Without jobs the store is not asked."""
        runs = self.children(parent, "attributes.status = 'FINISHED'") if jobs else []
        tags = {int(run.data.tags["job"]): run.data.tags for run in runs if is_job(run.data.tags)}
        return {job: tags[job] for job in jobs}

    @property
    def runs_at_once(self) -> int:
        """The number of runs that should be written at once."""
        return self.writer.runs_at_once


@cache
def _commit_tags() -> dict[str, str]:
    process_environment = environment()
    if not process_environment["git.commit"]:
        return {}
    return {
        "mlflow.source.git.commit": process_environment["git.commit"],
        "mlflow.source.git.branch": process_environment["git.branch"],
        "git.dirty": str(bool(uncommitted_diff())).lower(),
    }


_dataset_inputs: dict[str, DatasetInput] = {}


def _dataset_input(config: DatasetConfig) -> DatasetInput:
    """Return the training data as MLflow's data set, whose digest is the beginning of ours. It is created once."""
    dataset = load_dataset(config)
    if dataset.digest not in _dataset_inputs:
        mlflow_dataset = from_numpy(dataset.x.T, targets=dataset.y.T, name=dataset.name, digest=dataset.digest[:8])
        _dataset_inputs[dataset.digest] = DatasetInput(
            mlflow_dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")]
        )
    return _dataset_inputs[dataset.digest]
