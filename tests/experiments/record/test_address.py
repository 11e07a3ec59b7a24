"""Tracking URIs: what is written as SQLAlchemy and MLflow read it, what is not said in one line, no password anywhere."""

import contextlib
import os
import sqlite3
import subprocess
import sys

import pytest
from sqlalchemy.engine import make_url

from experiments.record.address import (
    absolute_uri,
    check_reachable,
    check_uri,
    sqlite_file,
    strip_password,
    strip_typed_passwords,
    with_password,
)
from experiments.run.config import UserError


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What `strip_password` sets is taken back."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "DEPTH_LABORATORY_DATABASE", "PGCONNECT_TIMEOUT"):
        # Set first: so that it is unset afterwards, whatever was set in between.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "uri",
    [
        *("sqlite:store.db", "sqlite:/x.db", "sqlite://x.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite"),
        *("sqlite:///m.db?mode=ro", "sqlite:///m.db?timeout=soon", "sqlite:///file:m.db?uri=true", "sqlite+aiosqlite:///m.db"),
        *("sqlite:////nowhere/at/all.db", "sqlite:///.", "sqlite:///pipe", "foo", "ftp://host/x", "file:///tmp/mlruns", "mlruns"),
        *(
            "databricks",
            "databricks-uc://profile",
            "http://127.0.0.1:abc",
            "http://[::1",
            "http://",
            "http:/host",
            "http://:5000",
        ),
        *("sqlite:///m.db?timeout=inf", "sqlite:///m.db?timeout=nan", "sqlite:///m.db?timeout=-1", "sqlite:///m%00.db"),
        *("http://host:99999", "http://host/?a=b", "https://host#runs", "postgresql:host/d", "postgresql://host:abc/d", "mysql"),
    ],
)
def test_a_uri_that_cannot_be_a_store_is_one_line_that_says_what_is_allowed(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=r"tracking\.uri is '") as raised:
        absolute_uri(uri)
    assert len(str(raised.value).splitlines()) == 1
    assert "sqlite:///FILE" in str(raised.value) or "not a f" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_name_longer_than_files_have_is_one_line(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        absolute_uri(f"sqlite:///{tmp_path}/{'a' * 300}.db")


@pytest.mark.parametrize(
    "typed",
    [
        *("sqlite:///m.db", "sqlite:///m.db?timeout=60", "sqlite+pysqlite:///m.db", "sqlite:///a b/ä#1.db", "sqlite:///50%25.db"),
        "sqlite:///really%3F.db?timeout=1.5&cached_statements=10",
    ],
)
def test_a_sqlite_file_is_the_one_that_sqlalchemy_opens(typed, tmp_path, monkeypatch):
    from sqlalchemy import create_engine, text

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    uri = absolute_uri(typed)
    monkeypatch.chdir("/")
    assert absolute_uri(uri) == uri
    assert make_url(uri).query == make_url(typed).query
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("create table t (x)"))
    engine.dispose()
    assert sqlite_file(uri).stat().st_size > 0
    assert sqlite_file(uri).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("typed", "clean", "told"),
    [
        ("http://ann:se%40cret@host:5000", "http://host:5000", ("ann", "se@cret")),
        ("https://ann:se@cret@host/prefix/", "https://host/prefix", ("ann", "se@cret")),
        ("http://[::1]:5000", "http://[::1]:5000", None),
        ("postgresql://ann:secret@host/runs", "postgresql://ann@host/runs", None),
        ("postgresql+psycopg2://host/runs?user=ann&password=secret", "postgresql+psycopg2://host/runs?user=ann", None),
        ("postgresql://ann@host/runs?sslkey=k&sslpassword=secret", "postgresql://ann@host/runs?sslkey=k", None),
        ("mysql+pymysql://ann@host/runs?passwd=secret", "mysql+pymysql://ann@host/runs", None),
        ("mysql+pymysql://ann:s%2Fecret@[::1]:3306/runs", "mysql+pymysql://ann@[::1]:3306/runs", None),
    ],
)
def test_a_password_goes_where_the_client_finds_it_and_nowhere_else(typed, clean, told, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "-m", f"tracking.uri='{typed}'", "seed=1"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", typed)
    strip_typed_passwords()
    assert sys.argv == ["train", "-m", f"tracking.uri='{clean}'", "seed=1"]
    assert os.environ["MLFLOW_TRACKING_URI"] == absolute_uri(typed) == clean
    if told:
        assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == told
    elif "ann" in typed:
        assert make_url(with_password(clean)) == make_url(typed)
        # Another database is not told it.
        assert with_password("postgresql://ann@elsewhere/runs") == "postgresql://ann@elsewhere/runs"


@pytest.mark.parametrize(
    "uri",
    [
        *("http://ann:sec/ret@host", "http://ann:secret@host:abc", "postgresql://ann:secret@host:abc/d", "ftp://ann:secret@host"),
        # A database's password is not written with an @.
        *("postgresql://ann:my@secret@host/d", "mysql+pymysql://ann:se@c@ret@host/d", "mysql://host:x/d?passwd=secret"),
        *("http://ann:secret@[::1", "oracle://host/d?password=secret", "postgresql://host:x/d?password=secret&sslmode=require"),
    ],
)
def test_what_cannot_be_read_is_said_without_its_password(uri):
    with pytest.raises(UserError) as raised:
        absolute_uri(uri)
    assert "sec" not in str(raised.value)
    assert "ret" not in str(raised.value)


@pytest.mark.parametrize("uri", ["http://ann:secret@127.0.0.1:9", "postgresql://127.0.0.1:9/d?password=secret"])
def test_a_password_in_a_file_is_refused(uri):
    with pytest.raises(UserError, match="every run would show its password") as raised:
        check_uri(uri)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://127.0.0.1:9", "does not answer: .*refused"),
        ("postgresql://ann:secret@127.0.0.1:9/runs", "does not answer: .*refused"),
        ("postgresql+pg8000://ann:secret@127.0.0.1:9/runs", "driver 'pg8000' is not installed"),
        ("postgresql+psycopg9://ann@127.0.0.1:9/runs", "driver 'postgresql' is not installed"),
        ("mssql+pyodbc://ann@127.0.0.1:9/runs", "driver 'pyodbc' is not installed"),
    ],
)
def test_a_store_that_does_not_answer_is_named(uri, said):
    with pytest.raises(UserError, match=said) as raised:
        check_reachable(absolute_uri(uri))
    assert len(str(raised.value).splitlines()) == 1
    assert "secret" not in str(raised.value)


def test_the_password_of_a_database_is_put_back_for_the_processes_that_are_started():
    clean = strip_password("postgresql://ann:secret@host/runs")
    code = f"from experiments.record.address import with_password as w; print(w('{clean}'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "postgresql://ann:secret@host/runs"


def damaged(file):
    with contextlib.closing(sqlite3.connect(file)) as store, store:
        store.execute("create table experiments (x)")
        store.executemany("insert into experiments values (?)", [("x" * 1000,)] * 100)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def of_another_program(file):
    with contextlib.closing(sqlite3.connect(file)) as store, store:
        store.execute("create table songs (name)")


def text(file):
    file.write_text("no database at all, but long enough for a header of a hundred bytes" * 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [(damaged, "damaged.*malformed"), (text, "not a database"), (of_another_program, "another program made .* songs")],
)
def test_a_file_that_is_no_store_is_named_and_left_as_it_is(make, said, tmp_path):
    file = tmp_path / "m.db"
    make(file)
    before = file.read_bytes()
    with pytest.raises(UserError, match=said):
        check_reachable(absolute_uri(f"sqlite:///{file}"))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
