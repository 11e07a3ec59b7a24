"""A run in an MLflow store."""

import contextlib
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Param
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from blocks.history import History
from experiments.record.address import with_password
from experiments.record.client import in_one_line
from experiments.record.metrics import texts
from experiments.record.ownership import BEAT_SECONDS
from experiments.run.stack import Trained

if TYPE_CHECKING:
    from experiments.record.tracking import Store


class Run:
    """A run in the store, RUNNING until `finish` or `end`."""

    def __init__(self, store: "Store", run_id: str, parent: str = "", artifact_uri: str | None = None) -> None:
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
