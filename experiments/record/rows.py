"""Runs as rows of MLflow's own tables: several in one transaction, in a sixth of the time of its client."""

import uuid
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_schema_version
from mlflow.store.tracking.dbmodels import models
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.uri import append_to_uri_path
from sqlalchemy import select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from experiments.record.client import Client, patiently
from experiments.record.writer import FinishedRun, NewRun, Requests, Writer

# The schemas, by the numbers of MLflow's migrations, and the databases in which the rows of both ways were laid side by side.
REVISIONS = ("dc11669786a5",)
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# So many runs are written in one transaction: while it lasts, another sweep waits.
TOGETHER = 16
# What MLflow orders the points of a metric by, and what it keeps of the last one.
AGE, LAST = ("step", "timestamp", "value"), ("value", "timestamp", "step", "is_nan")

Row = dict[str, Any]


def writer_of(client: Client, experiment_id: str) -> Writer:
    """The writer of an experiment: `Rows` into a database that is known, `Requests` to everything else."""
    store = client.tracking_store
    known = type(store) is SqlAlchemyStore and store.db_type in INSERTS and store.read_engine is None
    if known and patiently(client.uri, lambda: _get_schema_version(store.engine)) in REVISIONS:
        return Rows(client.uri, store, experiment_id)
    return Requests(client, experiment_id)


class Rows:
    """Runs as the rows that MLflow's client writes. It spends most of its time on an object for each of a run's hundreds of
    points, and on a transaction for each request.
    """

    runs_at_once, together = TOGETHER, True

    def __init__(self, uri: str, store: SqlAlchemyStore, experiment_id: str) -> None:
        self.uri, self.store, self.experiment_id = uri, store, experiment_id

    def create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        """See `Writer`."""
        return patiently(self.uri, lambda: self._create(runs))

    def log(self, points: Mapping[str, list[Metric]]) -> None:
        """See `Writer`."""

        def log() -> None:
            with self.store.ManagedSessionMaker(read_only=False) as session:
                self._log(session, points)

        patiently(self.uri, log)

    def finish(self, runs: Sequence[FinishedRun]) -> None:
        """See `Writer`."""
        for run in runs:
            for upload in run.uploads:
                upload()
        patiently(self.uri, lambda: self._finish(runs))

    def _create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        experiment = self.store.get_experiment(self.experiment_id)
        self.store._check_experiment_is_active(experiment)
        ids = [uuid.uuid4().hex for _ in runs]
        places = [append_to_uri_path(experiment.artifact_location, run_id, self.store.ARTIFACTS_FOLDER_NAME) for run_id in ids]
        begun = {"experiment_id": int(self.experiment_id), "status": "RUNNING", "lifecycle_stage": "active"}
        # As MLflow fills columns in whose place it has tags by now.
        begun |= {"source_type": "UNKNOWN", "source_name": "", "entry_point_name": "", "source_version": "", "user_id": "unknown"}
        # A millisecond each: MLflow's pages, and we, order runs by it.
        times = count(get_current_time_millis())
        rows = [
            {**begun, "run_uuid": run_id, "name": run.name, "artifact_uri": place, "start_time": start}
            for run, run_id, place, start in zip(runs, ids, places, times, strict=False)
        ]
        with self.store.ManagedSessionMaker(read_only=False) as session:
            self._insert(session, models.SqlRun, rows)
            self._insert(session, models.SqlTag, _texts(ids, [{MLFLOW_RUN_NAME: run.name, **run.tags} for run in runs]))
            self._insert(session, models.SqlParam, _texts(ids, [run.params for run in runs]))
        return list(zip(ids, places, strict=True))

    def _finish(self, runs: Sequence[FinishedRun]) -> None:
        ids = [run.run_id for run in runs]
        run = models.SqlRun
        ending = update(run).where(run.run_uuid.in_(ids), run.lifecycle_stage == "active")
        with self.store.ManagedSessionMaker(read_only=False) as session:
            # First of all: a transaction that reads before it writes may find that another one has written since.
            ended: Any = session.execute(ending.values(status="FINISHED", end_time=get_current_time_millis()))
            if ended.rowcount != len(ids):
                raise MlflowException(f"one of the runs {', '.join(ids)} was deleted while it was trained")
            self._log(session, {run.run_id: run.metrics for run in runs})
            self._replace(session, models.SqlTag, _texts(ids, [run.tags for run in runs]), ("value",))
            self._use(session, runs)

    def _log(self, session: Session, points: Mapping[str, list[Metric]]) -> None:
        """Metrics, and the last point of each."""
        rows = [row for run_id, metrics in points.items() for row in _points(run_id, metrics)]
        last = {(row["run_uuid"], row["key"]): row for row in sorted(rows, key=_age)}
        self._insert(session, models.SqlMetric, rows)
        self._replace(session, models.SqlLatestMetric, list(last.values()), LAST, newer=AGE)

    def _use(self, session: Session, runs: Sequence[FinishedRun]) -> None:
        """Each run's data set as its input. The experiment has a data set once."""
        inputs: list[Row] = []
        tags: list[Row] = []
        table = models.SqlDataset
        for run in runs:
            data = run.data.dataset
            named = {"experiment_id": int(self.experiment_id), "name": data.name, "digest": data.digest}
            if not (found := session.scalar(select(table.dataset_uuid).filter_by(**named))):
                about: Row = {"dataset_source_type": data.source_type, "dataset_source": data.source}
                about |= {"dataset_schema": data.schema, "dataset_profile": data.profile}
                self._replace(session, table, [{"dataset_uuid": uuid.uuid4().hex, **named, **about}])
                # Another process may have told a database of it at the same moment.
                found = session.scalar(select(table.dataset_uuid).filter_by(**named))
            own = uuid.uuid4().hex
            ends = {"source_type": "DATASET", "source_id": found, "destination_type": "RUN", "destination_id": run.run_id}
            inputs.append({"input_uuid": own, **ends})
            tags += [{"input_uuid": own, "name": tag.key, "value": tag.value} for tag in run.data.tags]
        self._insert(session, models.SqlInput, inputs)
        self._insert(session, models.SqlInputTag, tags)

    def _insert(self, session: Session, model: Any, rows: Sequence[Row]) -> None:
        """Rows that are not there yet."""
        if rows:
            session.execute(INSERTS[self.store.db_type](model.__table__), list(rows))

    def _replace(
        self, session: Session, model: Any, rows: Sequence[Row], columns: Sequence[str] = (), newer: Sequence[str] = ()
    ) -> None:
        """Rows of which some may be there: these take on the new ones' `columns`, where the new one is larger by `newer`."""
        table = model.__table__
        statement = INSERTS[self.store.db_type](table)
        key, new = list(table.primary_key), statement.excluded
        if columns:
            larger = tuple_(*(new[name] for name in newer)) > tuple_(*(table.c[name] for name in newer)) if newer else None
            statement = statement.on_conflict_do_update(
                index_elements=key, set_={name: new[name] for name in columns}, where=larger
            )
        else:
            statement = statement.on_conflict_do_nothing(index_elements=key)
        if rows:
            session.execute(statement, list(rows))


def _points(run_id: str, metrics: list[Metric]) -> list[Row]:
    return [
        {"run_uuid": run_id, "key": m.key, "value": m.value, "timestamp": m.timestamp, "step": m.step, "is_nan": False}
        for m in metrics
    ]


def _age(row: Row) -> tuple[float, ...]:
    return tuple(row[name] for name in AGE)


def _texts(ids: Sequence[str], texts: Sequence[dict[str, str]]) -> list[Row]:
    """Tags or params, of each run its own."""
    return [{"run_uuid": run_id, "key": key, "value": text[key]} for run_id, text in zip(ids, texts, strict=True) for key in text]
