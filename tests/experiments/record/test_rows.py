"""Both ways into a database: MLflow's client and rows of its tables."""

import contextlib
import sqlite3
from types import SimpleNamespace

import pytest
from mlflow.entities import Metric
from sqlalchemy import MetaData, create_engine

from experiments.record import rows, tracking
from experiments.record.rows import Rows
from experiments.record.tracking import Store
from experiments.record.writer import Requests
from experiments.run.composition import parse_config
from experiments.run.config import SweepConfig, TrackingConfig, UserError
from experiments.run.stack import load_task, steps_of, train_stack
from tests.experiments.conftest import empty_store

SMALL = ["training.epochs=2", "network.width=8"]
AFTER_ANY_STEP = 10**6
TIMES = {"start_time", "end_time", "creation_time", "last_update_time"}
SIGN = "heartbeat"


def record(uri, stacks):
    """A sweep of those stacks, of whose first one something was seen while it trained."""
    store = Store(TrackingConfig(uri=uri))
    parent, _ = store.begin_sweep("sweep", {"kind": "sweep"}, "f", SweepConfig())
    for number, stack in enumerate(stacks):
        new = [(f"run {number} {lane}", {"kind": "run", "job": str(lane)}, each.config) for lane, each in enumerate(stack)]
        begun = [run for some in store.transactions(new) for run in store.begin_runs(some, parent.run_id)]
        if number == 0:
            config, history = stack[0].config, stack[0].history
            store.progress([(begun[0], history, steps_of(config, load_task(config)))])
            begun[0].logged_steps = 5
            # Of the user's own, one later than all that comes and one earlier.
            for key, step in (("loss/batch", AFTER_ANY_STEP), ("final/loss_train", 0)):
                store.client.log_batch(begun[0].run_id, [Metric(key, 0.5, 1, step)])
            store.client.set_tag(begun[0].run_id, "outcome", "unknown")
        for some in store.transactions(list(zip(begun, stack, strict=True))):
            store.finish(some)
    parent.end()
    return store


def tables(store, folder):
    """Every table's rows, in which ids are names."""
    engine = create_engine(store.client.tracking_store.db_uri)
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        found = {name: [row._asdict() for row in connection.execute(table.select())] for name, table in metadata.tables.items()}
    engine.dispose()
    names = {run["run_uuid"]: run["name"] for run in found["runs"]}
    names |= {data["dataset_uuid"]: data["name"] for data in found["datasets"]}
    names |= {use["input_uuid"]: f"data of {names[use['destination_id']]}" for use in found["inputs"]}
    names |= {store.token: "owner", str(folder): ""}

    def named(value):
        for one, name in names.items():
            value = value.replace(one, name) if isinstance(value, str) else value
        return value

    def without(row):
        return {key: named(value) for key, value in row.items() if key not in TIMES}

    return {
        table: sorted([without(row) for row in content if row.get("key") != SIGN], key=repr) for table, content in found.items()
    }


def lay_side_by_side(monkeypatch, composed, uris, folders):
    """Record the same runs through MLflow's client and as rows: every table, every column but ids has the same in it."""
    stacks = [
        train_stack([parse_config(composed(*SMALL, f"optimizer.learning_rate={rate}", *more)) for rate in (0.1, 1e8)])
        for more in (["instruments.sharpness=log"], ["dataset=iris"])
    ]
    assert [run.outcome == "diverged" for stack in stacks for run in stack] == [False, True, False, True]
    # What was seen while it trained has the time of the looking.
    monkeypatch.setattr(tracking, "time", SimpleNamespace(time=stacks[0][0].start_time.__float__))
    known, found = rows.REVISIONS, {}
    for writer, revisions, uri, folder in zip((Requests, Rows), ((), known), uris, folders, strict=True):
        monkeypatch.setattr(rows, "REVISIONS", revisions)
        store = record(uri, stacks)
        assert type(store.writer) is writer
        found[writer] = tables(store, folder)
    assert found[Requests].keys() == found[Rows].keys()
    for table, expected in found[Requests].items():
        assert found[Rows][table] == expected, table
    filled = {table for table, content in found[Rows].items() if content}
    assert {"runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags"} <= filled
    return found[Rows]


def test_rows_are_what_mlflow_s_client_writes(tmp_path, composed, monkeypatch):
    folders = [tmp_path / "client", tmp_path / "rows"]
    for folder in folders:
        folder.mkdir()
        with contextlib.closing(sqlite3.connect(folder / "runs.db")) as store:
            empty_store().backup(store)
    found = lay_side_by_side(monkeypatch, composed, [f"sqlite:///{folder}/runs.db" for folder in folders], folders)
    last = {(row["run_uuid"], row["key"]): row for row in found["latest_metrics"]}
    assert last["run 0 0", "loss/batch"]["step"] == AFTER_ANY_STEP
    assert last["run 0 0", "final/loss_train"]["step"] > 0
    files = [sorted(file.name for file in folder.rglob("artifacts/*")) for folder in folders]
    assert files[0] == files[1]
    assert len(files[0]) >= 4 * 4


def test_of_runs_that_are_written_together_all_are_there_or_none(lab, composed):
    stack = train_stack([parse_config(composed(*SMALL, f"optimizer.learning_rate={rate}")) for rate in (0.1, 0.2, 0.3)])
    store = Store(TrackingConfig(uri=lab.uri))
    runs = store.begin_runs([(f"run {lane}", {"kind": "run"}, run.config) for lane, run in enumerate(stack)])
    store.client.delete_run(runs[1].run_id)
    with pytest.raises(UserError, match="was deleted while it was trained"):
        store.finish(list(zip(runs, stack, strict=True)))
    assert not any(run.has_ended for run in runs)
    with sqlite3.connect(lab.folder / "runs.db") as file:
        assert file.execute("select distinct status from runs").fetchall() == [("RUNNING",)]
        for table in ("metrics", "latest_metrics", "datasets", "inputs"):
            assert file.execute(f"select count(*) from {table}").fetchone() == (0,)
    store.client.restore_run(runs[1].run_id)
    store.finish(list(zip(runs, stack, strict=True)))
    assert [run.info.status for run in lab.runs()] == ["FINISHED"] * 3


def test_another_store_or_another_schema_goes_through_the_client(lab, monkeypatch):
    assert type(Store(TrackingConfig(uri=lab.uri)).writer) is Rows
    monkeypatch.setattr(rows, "INSERTS", {})
    assert type(Store(TrackingConfig(uri=lab.uri)).writer) is Requests
