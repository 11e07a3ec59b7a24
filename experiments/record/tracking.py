"""MLflow: a sweep is a parent run, each job a child run, written in batches."""

import contextlib
import gc
import json
import logging
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from blocks.arrays import Array
from blocks.history import History, log_spaced
from experiments.record.address import absolute, check_reachable
from experiments.record.identity import environment, uncommitted
from experiments.run.config import DatasetConfig, TrackingConfig, UserError, flat
from experiments.run.data import load
from experiments.run.stack import Trained

ARTIFACT_FOLDER = "mlartifacts"
# libyaml's is ten times faster.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

for _chatty in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)


class Store:
    """An experiment in a tracking store, made where it is not there yet."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.uri = absolute(tracking.uri)
        self.points, self.blocks = tracking.points, tracking.blocks
        check_reachable(self.uri)
        try:
            self._open(tracking.experiment)
        except MlflowException as error:
            raise UserError(f"tracking.uri is {self.uri!r}: {str(error).splitlines()[0]}") from None
        # The collector would look through MLflow's hundred thousand objects again and again: a fifth of the writing.
        gc.freeze()

    def _open(self, experiment: str) -> None:
        if not self.uri.startswith("sqlite"):
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment(experiment, None)
            return
        file = Path(self.uri.removeprefix("sqlite:///"))
        # A new SQLite file that several processes open at once breaks.
        with FileLock(f"{file}.lock"):
            if not file.exists():
                # Several sweeps that write at once then wait for each other half as long.
                with contextlib.closing(sqlite3.connect(file)) as new:
                    new.execute("pragma journal_mode = wal")
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment(experiment, (file.parent / ARTIFACT_FOLDER).as_uri())

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
            return f"open {self.uri}/{self._page}"
        return f"mlflow server --workers 1 --backend-store-uri {self.uri}   # then http://127.0.0.1:5000/{self._page}"

    @property
    def _page(self) -> str:
        # Sorted by a metric, MLflow's page shows a sweep's runs; sorted by date it hides them behind their parent.
        order = "orderByKey=metrics.%60final%2Floss_train%60&orderByAsc=true"
        return f"#/experiments/{self.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART&{order}"

    def begin(self, name: str, tags: dict[str, str], parent: str = "") -> "Run":
        """A new run, RUNNING."""
        own = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "experiments.train", **_commit_tags(), **tags}
        if parent:
            own["mlflow.parentRunId"] = parent
        return Run(self, self.client.create_run(self.experiment_id, run_name=name, tags=own).info.run_id)


class Run:
    """A run in the store, RUNNING until `finish` or `end`."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.client, self.run_id = store, store.client, run_id
        self.shown = 0

    def progress(self, history: History, steps: int) -> None:
        """The points of the curves that a training of `steps` steps has reached since the last call."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id, metrics=list(curves(history, steps, self.store.points, self.store.blocks, self.shown, lambda step: now))
        )
        self.shown = history.loss.shape[-1]

    def finish(self, trained: Trained) -> None:
        """All of a trained run, and its end: FINISHED, whatever the outcome."""
        self.client.log_batch(
            self.run_id,
            metrics=list(metrics(trained, self.store.points, self.store.blocks, self.shown)),
            params=[Param(key, str(value)) for key, value in flat(trained.config).items()],
            tags=[RunTag(key, value) for key, value in outcome_tags(trained).items()],
        )
        self.client.log_inputs(self.run_id, [_input(trained.config.dataset)])
        self._artifacts(trained)
        self.end()

    def describe(self, params: dict[str, str]) -> None:
        """Params of a run that trains nothing itself."""
        self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in params.items()])

    def keep(self, folder: Path) -> None:
        """The folder's files as artifacts."""
        self.client.log_artifacts(self.run_id, str(folder))

    def end(self, status: str = "FINISHED") -> None:
        """The run's end: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)

    def _artifacts(self, trained: Trained) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            trained.history.save(path / "history.npz")
            (path / "config.yaml").write_text(yaml.dump(asdict(trained.config), Dumper=DUMPER, sort_keys=False))
            threads = {"threads": trained.config.training.threads}
            (path / "environment.json").write_text(json.dumps({**environment(), **threads}, indent=2))
            if uncommitted():
                (path / "git.diff").write_text(uncommitted())
            self.keep(path)


def outcome_tags(trained: Trained) -> dict[str, str]:
    """outcome, and where the run diverged."""
    tags = {"outcome": trained.outcome}
    if trained.outcome == "diverged":
        tags |= {"diverged_step": str(trained.history.diverged_step), "diverged_block": str(trained.history.diverged_block)}
    return tags


def metrics(trained: Trained, points: int, blocks: int | None, since: int = 0) -> Iterator[Metric]:
    """A run's metrics: its curves from step `since` on, then final/... and best/..., one value each."""
    history = trained.history
    steps = history.loss.shape[-1]

    def when(step: int) -> int:
        return int(1000 * (trained.started + (trained.ended - trained.started) * step / steps))

    yield from curves(history, steps, points, blocks, since, when)
    for key, value in summary(history).items():
        if np.isfinite(value):
            yield Metric(key, value, when(steps), steps)


def curves(
    history: History, steps: int, points: int, blocks: int | None, since: int, when: Callable[[int], int]
) -> Iterator[Metric]:
    """Points of a training of `steps` steps, at most `points` a key, finite values alone; step = updates made before.

    loss/batch, grad_norm/W_01 ... and grad_norm/all at log-spaced steps, the last one before a divergence among them;
    the whole sets' loss/train, loss/validation, accuracy/... or r2/... at the history's evaluations.

    history: of the steps so far. blocks: at most so many, evenly spaced, first and last among them; None is all.
    since: the step from which on. when: step -> milliseconds.
    """
    shown = log_spaced(steps, points)
    shown = shown[shown < history.loss.shape[-1]]
    if history.diverged_step > 0:
        last = int(history.diverged_step) - 1
        shown = np.append(shown[shown < last], last)
    depth = history.grad_norm.shape[-1]
    digits = max(2, len(str(depth)))
    drawn = np.unique(np.linspace(0, depth - 1, min(depth, blocks or depth)).round().astype(int))
    series: dict[str, tuple[Array, Array]] = {"loss/batch": (shown, history.loss[shown])}
    for block in drawn:
        series[f"grad_norm/W_{block + 1:0{digits}}"] = shown, history.grad_norm[shown, block]
    squares = np.square(np.float64(history.grad_norm[shown])) + np.square(np.float64(history.grad_norm_b[shown]))
    series["grad_norm/all"] = shown, np.sqrt(squares.sum(axis=-1))
    for name, values in history.measures.items():
        kept = log_spaced(len(values), points)
        series[name] = history.evaluated[kept], values[kept]
    for key, (at, values) in series.items():
        for step, value in zip(at.tolist(), values.tolist(), strict=True):
            if step >= since and np.isfinite(value):
                yield Metric(key, value, when(step), step)


def summary(history: History) -> dict[str, float]:
    """final/loss_train, best/accuracy_validation and so on: the last and the best of every measure; nan where there is none."""
    values = {}
    for name, measured in history.measures.items():
        key = name.replace("/", "_")
        values[f"final/{key}"] = float(measured[-1])
        finite = measured[np.isfinite(measured)]
        if finite.size:
            values[f"best/{key}"] = float(finite.min() if key.startswith("loss") else finite.max())
    return values


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
