"""MLflow: a sweep is a parent run, each job a child run, written in batches."""

import json
import logging
import tempfile
import time
from collections.abc import Iterable
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
from experiments.run.config import TrackingConfig, UserError, flat
from experiments.run.data import Dataset, load
from experiments.run.stack import Trained

ARTIFACT_FOLDER = "mlartifacts"

for _chatty in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)


class Store:
    """An experiment in a tracking store, made where it is not there yet."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.uri = absolute(tracking.uri)
        self.points = tracking.points
        check_reachable(self.uri)
        try:
            self._open(tracking.experiment)
        except MlflowException as error:
            raise UserError(f"tracking.uri is {self.uri!r}: {str(error).splitlines()[0]}") from None

    def _open(self, experiment: str) -> None:
        if not self.uri.startswith("sqlite"):
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment(experiment, None)
            return
        file = Path(self.uri.removeprefix("sqlite:///"))
        # A new SQLite file that several processes open at once breaks.
        with FileLock(f"{file}.lock"):
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

    def begin(self, name: str, tags: dict[str, str], parent: str | None = None) -> str:
        """A new run, RUNNING; its id."""
        own = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "experiments.train", **_commit_tags(), **tags}
        if parent:
            own["mlflow.parentRunId"] = parent
        return self.client.create_run(self.experiment_id, run_name=name, tags=own).info.run_id

    def write(self, run_id: str, trained: Trained) -> None:
        """All of a trained run, and its end: FINISHED, whatever the outcome."""
        history, config = trained.history, trained.config
        tags = {"outcome": trained.outcome}
        if trained.outcome == "diverged":
            tags |= {"diverged_step": str(history.diverged_step), "diverged_block": str(history.diverged_block)}
        self.client.log_batch(
            run_id,
            metrics=list(metrics(trained, self.points)),
            params=[Param(key, str(value)) for key, value in flat(config).items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self.client.log_inputs(run_id, [_input(json.dumps(asdict(config.dataset), sort_keys=True), load(config.dataset))])
        self._artifacts(run_id, trained)
        self.end(run_id)

    def _artifacts(self, run_id: str, trained: Trained) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            save_history(path / "history.npz", trained.history)
            (path / "config.yaml").write_text(yaml.safe_dump(asdict(trained.config), sort_keys=False))
            threads = {"threads": trained.config.training.threads}
            (path / "environment.json").write_text(json.dumps({**environment(), **threads}, indent=2))
            if uncommitted():
                (path / "git.diff").write_text(uncommitted())
            self.client.log_artifacts(run_id, folder)

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """The run's end: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)


def metrics(trained: Trained, points: int) -> Iterable[Metric]:
    """A run's metrics, at most `points` a key, finite values alone; step = the updates made before the measurement.

    loss/batch, grad_norm/W_01 ... and grad_norm/all: at log-spaced steps; loss/train, loss/validation, accuracy/... or
    r2/...: over the whole set, at the history's evaluations; final/... and best/...: one value each.
    """
    history = trained.history
    steps = history.loss.shape[-1]
    shown = log_spaced(steps if history.diverged_step < 0 else max(int(history.diverged_step), 1), points)
    digits = max(2, len(str(history.grad_norm.shape[-1])))
    series: dict[str, tuple[Array, Array]] = {"loss/batch": (shown, history.loss[shown])}
    for block, norms in enumerate(history.grad_norm[shown].T, start=1):
        series[f"grad_norm/W_{block:0{digits}}"] = shown, norms
    squares = np.square(np.float64(history.grad_norm[shown])) + np.square(np.float64(history.grad_norm_b[shown]))
    series["grad_norm/all"] = shown, np.sqrt(squares.sum(axis=-1))
    for name, values in history.measures.items():
        kept = log_spaced(len(values), points)
        series[name] = history.evaluated[kept], values[kept]

    began, length = trained.started * 1000, trained.seconds * 1000 / steps
    for key, (at, values) in series.items():
        for step, value in zip(at.tolist(), values.tolist(), strict=True):
            if np.isfinite(value):
                yield Metric(key, value, int(began + step * length), step)
    now = int(time.time() * 1000)
    for key, value in summary(history).items():
        if np.isfinite(value):
            yield Metric(key, value, now, steps)


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


def save_history(file: Path, history: History) -> None:
    """Every array of the history, without pickle; the same history gives the same bytes."""
    arrays = {name: value for name, value in vars(history).items() if isinstance(value, np.ndarray)}
    measures = {f"measures/{name}": value for name, value in history.measures.items()}
    np.savez(file, allow_pickle=False, steps_an_epoch=history.steps_an_epoch, **arrays, **measures)


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


def _input(key: str, dataset: Dataset) -> DatasetInput:
    """The training data as MLflow's data set, made once: its digest is the start of ours."""
    if key not in _inputs:
        made = from_numpy(dataset.x.T, targets=dataset.y.T, name=dataset.name, digest=dataset.digest[:8])
        _inputs[key] = DatasetInput(made._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])
    return _inputs[key]
