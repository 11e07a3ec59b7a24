"""A run in the MLflow store, while it is written."""

import contextlib
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.record.address import with_password
from experiments.record.client import errors_in_one_line
from experiments.record.experiment import Experiment
from experiments.record.metrics import param_texts
from experiments.record.ownership import HEARTBEAT_SECONDS


class Run:
    """A run in the store. It is RUNNING until `Store.finish`, `fail` or `end`."""

    def __init__(self, experiment: Experiment, run_id: str, parent: str = "", artifact_uri: str | None = None) -> None:
        self.experiment, self.client, self.uri = experiment, experiment.client, experiment.uri
        self.run_id, self.parent = run_id, parent
        self.artifact_uri = artifact_uri
        self.logged_steps = 0
        self.has_ended = False

    @cached_property
    def artifacts(self) -> ArtifactRepository:
        """The repository of the run's artifacts."""
        artifact_uri = self.artifact_uri or self.client.get_run(self.run_id).info.artifact_uri
        return get_artifact_repository(artifact_uri, tracking_uri=with_password(self.uri))

    def send_heartbeat(self) -> None:
        """Send a heartbeat; raises TakenOver where another process has taken the run over."""
        self.experiment.claims.send_heartbeat(self.run_id)

    def check_owner(self) -> None:
        """Raise TakenOver where another process has taken over the sweep of this run."""
        self.experiment.check_owner(self.run_id)

    @contextlib.contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Send heartbeats every few seconds, in a thread, until the end of the context."""
        stop = threading.Event()

        def send_heartbeat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                # After an error the next heartbeat may succeed.
                with contextlib.suppress(Exception):
                    self.send_heartbeat()
                    self.experiment.claims.end_silent_runs()

        thread = threading.Thread(target=send_heartbeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            # The thread may be waiting for a server. The command waits for it no longer than this.
            thread.join(HEARTBEAT_SECONDS)

    def fail(self, reason: str, status: str) -> None:
        """End a run that was not trained, or a sweep that was interrupted, as FAILED or KILLED, with the reason."""
        self.experiment.claims.end(self.run_id, status, reason)
        self.has_ended = True

    def log_summary(self, params: dict[str, str], metrics: dict[str, float] | None = None, step: int = 0) -> None:
        """Log params and the finite metrics of a run that trains nothing itself. Params that it already has are kept."""
        finite_metrics = {key: value for key, value in (metrics or {}).items() if math.isfinite(value)}
        now = int(time.time() * 1000)
        points = [Metric(key, value, now, step) for key, value in finite_metrics.items()]
        existing_params = self.client.get_run(self.run_id).data.params if params else {}
        new_params = [Param(key, value) for key, value in param_texts(params).items() if key not in existing_params]
        self.client.log_batch(self.run_id, metrics=points, params=new_params)

    def log_table(self, columns: dict[str, list[Any]]) -> None:
        """Log a table, table.json, which the dashboard shows. columns: name -> values.

        A value that is not finite becomes an empty cell, since JSON has no such value. A dot in a column's name becomes a space,
        since MLflow's page reads it as a path into the cell. MLflow's own `log_table` would append to the table of an earlier
        start.
        """
        rows = [
            [None if isinstance(value, float) and not math.isfinite(value) else value for value in row]
            for row in zip(*columns.values(), strict=True)
        ]
        names = [name.replace(".", " ") for name in columns]
        tables = json.dumps([{"path": "table.json", "type": "table"}])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "table.json").write_text(json.dumps({"columns": names, "data": rows}))
            self.experiment.call_concurrently(
                lambda: self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", tables), *self.uploads(Path(folder))
            )

    def set_description(self, markdown: str) -> None:
        """Set the run's description, which the dashboard shows."""
        self.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def log_artifacts(self, folder: Path, artifact_path: str = "") -> None:
        """Log the folder's files as artifacts. artifact_path: the artifacts' folder for them, "" is the top."""
        self.experiment.call_concurrently(*self.uploads(folder, artifact_path))

    def uploads(self, folder: Path, artifact_path: str = "") -> list[Callable[[], None]]:
        """Return for every file of a folder a call that uploads it. artifact_path: see `log_artifacts`."""

        def upload(file: Path) -> None:
            folder_path = str(Path(artifact_path, file.relative_to(folder).parent))
            with errors_in_one_line(self.uri):
                self.artifacts.log_artifact(str(file), None if folder_path == "." else folder_path)

        return [partial(upload, file) for file in sorted(folder.rglob("*")) if file.is_file()]

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, or as FAILED where it is a check whose result does not hold."""
        self.client.set_terminated(self.run_id, status)
