"""Stores in databases: PostgreSQL as a server like any other, a SQLite file that is locked, moved or odd."""

import contextlib
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from experiments.record.reading import Archive
from experiments.record.tracking import Store
from experiments.run.composition import parse_config
from experiments.run.config import TrackingConfig, UserError
from experiments.run.stack import train_stack
from tests.experiments.record.test_rows import lay_side_by_side

PASSWORD = "s3cret-enough"
TINY = ["dataset=iris", "network.width=8", "training.epochs=1", "tracking.pictures=none", "tracking.models=none"]
FOUR = ["-m", *TINY, "network.depth=2,3", "optimizer.learning_rate=0.1,0.2"]


class PostgreSQL:
    """A cluster in a folder, on a port of its own, whose user ann has a password."""

    def __init__(self, folder: Path) -> None:
        self.bin = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        word = folder / "word"
        word.write_text(PASSWORD)
        if os.geteuid() == 0:
            # It does not let root have a cluster.
            for place in (folder, word):
                shutil.chown(place, "postgres")
        self.run("initdb", "--username=ann", f"--pwfile={word}", "--auth=scram-sha-256")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        as_postgres = {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid} if os.geteuid() == 0 else {}
        command = [str(self.bin / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **as_postgres)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c fsync=off"
        self.run("pg_ctl", "start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-m", "immediate")

    def uri(self, name: str = "", password: str = PASSWORD) -> str:
        """Of a database of that name, made here; `name` empty is one that is always there."""
        uri = f"postgresql://ann:{password}@127.0.0.1:{self.port}/"
        if name:
            engine = create_engine(f"{uri}postgres", isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text(f"create database {name}"))
            engine.dispose()
        return f"{uri}{name or 'postgres'}"


@pytest.fixture(scope="module")
def database():
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed")
    # Not below pytest's folder, which it keeps from the user postgres.
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        cluster = PostgreSQL(Path(folder))
        yield cluster
        cluster.stop()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setenv("DEPTH_LABORATORY_DATABASE", "")
    monkeypatch.delenv("DEPTH_LABORATORY_DATABASE")


def files_with(word: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_database_s_rows_are_what_mlflow_s_client_writes(database, tmp_path, composed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uris = [database.uri(name) for name in ("by_client", "by_rows")]
    lay_side_by_side(monkeypatch, composed, uris, [database.folder] * 2)


@pytest.mark.slow
def test_a_sweep_into_postgresql_is_resumed_reproduced_and_has_the_password_nowhere(lab, database):
    lab.uri = database.uri("whole")
    # With pictures and a model: these MLflow writes itself.
    output = lab.run(*FOUR[:-4], *FOUR[-2:])
    assert "trained" in output
    assert "4 of 4 runs are in the record already" in lab.run(*FOUR, f"tracking.uri={lab.uri}")
    runs = [run.info.run_id for run in lab.runs()]
    again = lab.run(*runs, module="experiments.reproduce")
    assert "4 of 4 runs are identical" in again
    assert PASSWORD not in output + again
    assert files_with(PASSWORD, lab.folder) == []
    assert {run.info.status for kind in ("run", "sweep") for run in lab.runs(kind)} == {"FINISHED"}


@pytest.mark.slow
def test_two_sweeps_at_once_into_a_new_database_both_end(lab, database):
    lab.uri = database.uri("twice")
    processes = [lab.start("-m", *TINY, "network.depth=2,3", f"optimizer.learning_rate={rate}") for rate in (0.1, 0.2)]
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert "Traceback" not in output
    assert len(lab.runs()) == 4


@pytest.mark.slow
def test_what_is_wrong_with_a_database_is_one_line_without_the_password(lab, database):
    for uri, said in (
        (database.uri(password="wr0ng"), "password authentication failed"),
        (f"postgresql://ann:{PASSWORD}@127.0.0.1:{database.port}/nothing", 'database "nothing" does not exist'),
        (f"postgresql://ann:{PASSWORD}@127.0.0.1:9/runs", "refused"),
    ):
        lab.uri = uri
        start = time.monotonic()
        output = lab.run(*FOUR, status=1)
        assert time.monotonic() - start < 15
        assert said in output
        assert len(output.splitlines()) == 1
        assert PASSWORD not in output
        assert "wr0ng" not in output
    assert not list(lab.folder.iterdir())


@pytest.mark.slow
def test_a_database_that_stops_in_the_middle_gets_the_records_later(lab, database):
    lab.uri = database.uri("stops")
    process = lab.start(*(word.replace("epochs=1", "epochs=3000") for word in FOUR))
    # Past MLflow, which would make the tables itself.
    engine, deadline, begun = create_engine(lab.uri), time.monotonic() + 90, 0
    while time.monotonic() < deadline and begun < 2:
        time.sleep(0.5)
        with contextlib.suppress(SQLAlchemyError), engine.connect() as connection:
            begun = connection.execute(text("select count(*) from runs")).scalar_one()
    engine.dispose()
    database.stop()
    try:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1, output
        assert output.count("training goes on") == 1
        assert "Traceback" not in output
        assert PASSWORD not in output
    finally:
        database.start()
    (folder,) = lab.folder.glob("multirun/*/*")
    assert files_with(PASSWORD, lab.folder) == []
    assert "5 records delivered" in lab.run(str(folder), module="experiments.deliver")
    finished = [run.data.tags["job"] for run in lab.runs() if run.info.status == "FINISHED"]
    assert sorted(finished) == ["0", "1", "2", "3"]
    assert [run.info.status for run in lab.runs("sweep")] == ["FINISHED"]


@pytest.fixture
def run(composed):
    (trained,) = train_stack([parse_config(composed(*TINY))])
    return trained


@pytest.mark.slow
def test_options_of_a_sqlite_uri_are_honoured_by_a_sweep_and_by_what_reads_it(lab):
    uri = f"sqlite:///{lab.folder}/m?.db?timeout=60".replace("m?", "m%3F")
    lab.run(*FOUR, f"tracking.uri='{uri}'")
    names = {path.name for path in lab.folder.iterdir()}
    assert {"m?.db", "m?.db.lock"} <= names
    assert not any("timeout" in name or "%" in name for name in names)
    assert "4 of 4 runs are identical" in lab.run("--all", "depth laboratory", "--uri", uri, module="experiments.reproduce")


@contextlib.contextmanager
def locked(file: Path, seconds: float):
    """Another program has the file for so many seconds at most."""
    holder = sqlite3.connect(file, check_same_thread=False)
    holder.execute("begin exclusive")
    timer = threading.Timer(seconds, holder.rollback)
    timer.start()
    yield
    timer.cancel()
    timer.join()
    holder.rollback()
    holder.close()


@pytest.mark.slow
def test_a_locked_file_is_waited_for_and_said(lab, run, capsys):
    store = Store(TrackingConfig(uri=lab.uri))
    begun = store.begin("a run", {"kind": "run"})
    with locked(lab.folder / "runs.db", 30):
        begun.experiment.finish([(begun, run)])
    assert "runs.db is locked by another program; waiting for it" in capsys.readouterr().out
    (found,) = lab.runs()
    assert found.info.status == "FINISHED"
    assert found.data.tags["outcome"] == run.outcome


def test_a_file_that_stays_locked_is_one_line(lab, monkeypatch):
    Store(TrackingConfig(uri=lab.uri))
    # MLflow's own twenty seconds.
    monkeypatch.setattr("mlflow.store.db.utils.sql.text", lambda query: text(query.replace("20000", "50")))
    store = Store(TrackingConfig(uri=f"{lab.uri}?timeout=1"))
    with locked(lab.folder / "runs.db", 60), pytest.raises(UserError, match="database is locked") as raised:
        store.begin("a run", {"kind": "run"})
    assert len(str(raised.value).splitlines()) == 1


def test_a_moved_store_is_read_and_written_where_it_lies_now(tmp_path, run, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    first = Store(TrackingConfig(uri=f"sqlite:///{old / 'm.db'}")).begin("a run", {"kind": "run"})
    first.experiment.finish([(first, run)])
    old.rename(new)
    uri = f"sqlite:///{new / 'm.db'}"

    assert Archive(uri, tmp_path).run(first.run_id).files().history.loss.tolist() == run.history.loss.tolist()
    second = Store(TrackingConfig(uri=uri)).begin("another", {"kind": "run"})
    second.experiment.finish([(second, run)])
    assert "was moved" in capsys.readouterr().out
    assert not old.exists()
    assert (new / "mlartifacts" / second.run_id / "artifacts" / "history.npz").exists()
    # MLflow itself, and so its page, finds what was recorded before the move.
    assert "history.npz" in [file.path for file in MlflowClient(uri).list_artifacts(first.run_id)]
    Store(TrackingConfig(uri=uri))
    assert "was moved" not in capsys.readouterr().out


def test_artifacts_that_are_nowhere_are_one_line(tmp_path, run):
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    begun = Store(TrackingConfig(uri=uri)).begin("a run", {"kind": "run"})
    begun.experiment.finish([(begun, run)])
    shutil.rmtree(tmp_path / "mlartifacts")
    with pytest.raises(UserError, match=r"are not in .*, nor beside") as raised:
        Archive(uri, tmp_path).run(begun.run_id)
    assert len(str(raised.value).splitlines()) == 1


def test_a_place_of_the_user_s_own_is_left_alone(tmp_path, run):
    old, own = tmp_path / "old", tmp_path / "own"
    old.mkdir()
    Store(TrackingConfig(uri=f"sqlite:///{old / 'm.db'}"))
    MlflowClient(f"sqlite:///{old / 'm.db'}").create_experiment("mine", own.as_uri())
    old.rename(tmp_path / "new")
    begun = Store(TrackingConfig(uri=f"sqlite:///{tmp_path / 'new' / 'm.db'}", experiment="mine")).begin("a run", {"kind": "run"})
    assert begun.artifact_uri == f"{own.as_uri()}/{begun.run_id}/artifacts"
