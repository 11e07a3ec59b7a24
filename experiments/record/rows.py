"""A writer of runs as rows of MLflow's tables: several runs in one transaction, in a sixth of the time of MLflow's client."""

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

from experiments.record.client import Client, retry_while_locked
from experiments.record.writer import FinishedRun, NewRun, Requests, Writer

# The schemas, by the numbers of MLflow's migrations, and the databases for which tests compare these rows with the client's.
REVISIONS = ("dc11669786a5",)
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# So many runs are written in one transaction, during which another sweep waits.
RUNS_PER_TRANSACTION = 16
# The columns by which MLflow orders the points of a metric, and those that it stores of the last point.
ORDER_COLUMNS, LATEST_COLUMNS = ("step", "timestamp", "value"), ("value", "timestamp", "step", "is_nan")

Row = dict[str, Any]


def create_writer(client: Client, experiment_id: str) -> Writer:
    """Return the writer of an experiment: `Rows` for a database with a known schema, `Requests` for every other store."""
    store = client.tracking_store
    is_known = type(store) is SqlAlchemyStore and store.db_type in INSERTS and store.read_engine is None
    if is_known and retry_while_locked(client.uri, lambda: _get_schema_version(store.engine)) in REVISIONS:
        return Rows(client.uri, store, experiment_id)
    return Requests(client, experiment_id)


class Rows:
    """Writes the same rows as MLflow's client, see `Writer`.

    The client spends most of its time on an object for each of a run's hundreds of points, and on a transaction for each request.
    """

    runs_at_once, is_atomic = RUNS_PER_TRANSACTION, True

    def __init__(self, uri: str, store: SqlAlchemyStore, experiment_id: str) -> None:
        self.uri, self.store, self.experiment_id = uri, store, experiment_id

    def create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        """See `Writer`."""
        return retry_while_locked(self.uri, lambda: self._create(runs))

    def log(self, points: Mapping[str, list[Metric]]) -> None:
        """See `Writer`."""

        def log() -> None:
            with self.store.ManagedSessionMaker(read_only=False) as session:
                self._log(session, points)

        retry_while_locked(self.uri, log)

    def finish(self, runs: Sequence[FinishedRun]) -> None:
        """See `Writer`."""
        for run in runs:
            for upload in run.uploads:
                upload()
        retry_while_locked(self.uri, lambda: self._finish(runs))

    def _create(self, runs: Sequence[NewRun]) -> list[tuple[str, str]]:
        experiment = self.store.get_experiment(self.experiment_id)
        self.store._check_experiment_is_active(experiment)
        ids = [uuid.uuid4().hex for _ in runs]
        artifact_uris = [
            append_to_uri_path(experiment.artifact_location, run_id, self.store.ARTIFACTS_FOLDER_NAME) for run_id in ids
        ]
        defaults = {"experiment_id": int(self.experiment_id), "status": "RUNNING", "lifecycle_stage": "active"}
        # MLflow fills these columns so, since it uses tags in their place now.
        defaults |= {
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "source_version": "",
            "user_id": "unknown",
        }
        # The start times are a millisecond apart, since runs are ordered by them.
        times = count(get_current_time_millis())
        rows = [
            {**defaults, "run_uuid": run_id, "name": run.name, "artifact_uri": artifact_uri, "start_time": start}
            for run, run_id, artifact_uri, start in zip(runs, ids, artifact_uris, times, strict=False)
        ]
        with self.store.ManagedSessionMaker(read_only=False) as session:
            self._insert(session, models.SqlRun, rows)
            self._insert(session, models.SqlTag, _key_value_rows(ids, [{MLFLOW_RUN_NAME: run.name, **run.tags} for run in runs]))
            self._insert(session, models.SqlParam, _key_value_rows(ids, [run.params for run in runs]))
        return list(zip(ids, artifact_uris, strict=True))

    def _finish(self, runs: Sequence[FinishedRun]) -> None:
        ids = [run.run_id for run in runs]
        table = models.SqlRun
        update_runs = update(table).where(table.run_uuid.in_(ids), table.lifecycle_stage == "active")
        with self.store.ManagedSessionMaker(read_only=False) as session:
            # The first statement writes: a transaction that reads first fails where another one has written since.
            result: Any = session.execute(update_runs.values(status="FINISHED", end_time=get_current_time_millis()))
            if result.rowcount != len(ids):
                raise MlflowException(f"one of the runs {', '.join(ids)} was deleted while it was trained")
            self._log(session, {run.run_id: run.metrics for run in runs})
            self._replace(session, models.SqlTag, _key_value_rows(ids, [run.tags for run in runs]), ("value",))
            self._use(session, runs)

    def _log(self, session: Session, points: Mapping[str, list[Metric]]) -> None:
        """Write metrics, and the last point of each."""
        rows = [row for run_id, metrics in points.items() for row in _metric_rows(run_id, metrics)]
        latest = {(row["run_uuid"], row["key"]): row for row in sorted(rows, key=_order_of)}
        self._insert(session, models.SqlMetric, rows)
        self._replace(session, models.SqlLatestMetric, list(latest.values()), LATEST_COLUMNS, order=ORDER_COLUMNS)

    def _use(self, session: Session, runs: Sequence[FinishedRun]) -> None:
        """Write each run's data set as its input. An experiment has each data set once."""
        inputs: list[Row] = []
        tags: list[Row] = []
        table = models.SqlDataset
        for run in runs:
            data = run.data.dataset
            identity = {"experiment_id": int(self.experiment_id), "name": data.name, "digest": data.digest}
            if not (dataset_id := session.scalar(select(table.dataset_uuid).filter_by(**identity))):
                content: Row = {"dataset_source_type": data.source_type, "dataset_source": data.source}
                content |= {"dataset_schema": data.schema, "dataset_profile": data.profile}
                self._replace(session, table, [{"dataset_uuid": uuid.uuid4().hex, **identity, **content}])
                # Another process may have written the same data set at the same moment.
                dataset_id = session.scalar(select(table.dataset_uuid).filter_by(**identity))
            input_id = uuid.uuid4().hex
            link = {"source_type": "DATASET", "source_id": dataset_id, "destination_type": "RUN", "destination_id": run.run_id}
            inputs.append({"input_uuid": input_id, **link})
            tags += [{"input_uuid": input_id, "name": tag.key, "value": tag.value} for tag in run.data.tags]
        self._insert(session, models.SqlInput, inputs)
        self._insert(session, models.SqlInputTag, tags)

    def _insert(self, session: Session, model: Any, rows: Sequence[Row]) -> None:
        """Insert rows that do not exist yet."""
        if rows:
            session.execute(INSERTS[self.store.db_type](model.__table__), list(rows))

    def _replace(
        self, session: Session, model: Any, rows: Sequence[Row], columns: Sequence[str] = (), order: Sequence[str] = ()
    ) -> None:
        """Insert rows, of which some may exist. An existing row takes over the new row's `columns`.

        order: the columns by which the new row must be larger than the existing one for that, none for always.
        """
        table = model.__table__
        statement = INSERTS[self.store.db_type](table)
        primary_key, new = list(table.primary_key), statement.excluded
        if columns:
            is_newer = tuple_(*(new[name] for name in order)) > tuple_(*(table.c[name] for name in order)) if order else None
            statement = statement.on_conflict_do_update(
                index_elements=primary_key, set_={name: new[name] for name in columns}, where=is_newer
            )
        else:
            statement = statement.on_conflict_do_nothing(index_elements=primary_key)
        if rows:
            session.execute(statement, list(rows))


def _metric_rows(run_id: str, metrics: list[Metric]) -> list[Row]:
    return [
        {"run_uuid": run_id, "key": m.key, "value": m.value, "timestamp": m.timestamp, "step": m.step, "is_nan": False}
        for m in metrics
    ]


def _order_of(row: Row) -> tuple[float, ...]:
    return tuple(row[name] for name in ORDER_COLUMNS)


def _key_value_rows(ids: Sequence[str], texts: Sequence[dict[str, str]]) -> list[Row]:
    """Return the rows of tags or params. texts: key -> value for each run."""
    return [{"run_uuid": run_id, "key": key, "value": text[key]} for run_id, text in zip(ids, texts, strict=True) for key in text]
