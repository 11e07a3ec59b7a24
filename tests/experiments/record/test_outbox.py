"""Records that wait: what is damaged or a stranger's among them, two who deliver, an interrupt, a full disk."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess

import pytest
from filelock import FileLock

from experiments.record import outbox
from experiments.record.outbox import OUTBOX_FOLDER, RECORD_NAME, Outbox, deliver
from experiments.record.tracking import Store
from experiments.run.composition import parse_config
from experiments.run.config import TrackingConfig, UserError
from experiments.run.folder import LOCK_NAME
from experiments.run.stack import train_stack
from tests.experiments.conftest import empty_store

TAGS = {"kind": "run", "fingerprint": "f", "job": "0"}


@pytest.fixture(scope="module")
def trained(composed):
    (run,) = train_stack([parse_config(composed("dataset=iris", "training.epochs=1", "network.depth=2", "network.width=8"))])
    return run


@pytest.fixture
def tracking(lab):
    with contextlib.closing(sqlite3.connect(lab.folder / "runs.db")) as store:
        empty_store().backup(store)
    return TrackingConfig(uri=lab.uri, experiment="e")


@pytest.fixture
def record(lab, tracking, trained):
    """The folder of one record that waits for the lab's store."""
    waiting = Outbox(tracking, lab.folder)
    waiting.put("a run", TAGS, "", trained)
    return waiting.folder / "0"


def edited(record, **values):
    file = record / RECORD_NAME
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "MISSING"}))


def test_what_waits_is_delivered_once(lab, record):
    assert deliver(lab.folder / OUTBOX_FOLDER, uri=lab.uri) == 1
    assert deliver(lab.folder, uri=lab.uri) == 0
    (run,) = lab.runs()
    assert (run.info.status, run.info.run_name, run.data.tags["fingerprint"]) == ("FINISHED", "a run", "f")


DAMAGED = [
    {"parent": "MISSING"},
    {"parent": None},
    {"parent": "a' or 'b"},
    {"tags": "MISSING"},
    {"tags": ["job"]},
    {"tags": {"kind": "run"}},
    {"tags": {"job": "first"}},
    {"tags": {"job": "0", "kind": 3}},
    {"started": "yesterday"},
    {"ended": float("nan")},
    {"ended": 1e300},
    {"outcome": "RUNNING"},
    {"outcome": ["trained"]},
    {"name": 3},
    {"uri": 3},
    {"experiment": None},
]


def test_a_damaged_record_is_named_with_its_key_and_the_others_are_delivered(lab, record):
    honest = (record / RECORD_NAME).read_text()
    for number, edit in enumerate(DAMAGED):
        copy = shutil.copytree(record, record.with_name(f"0_{number}"))
        edited(copy, **edit)
    for number, content in enumerate(["", "{", "[]", "null", "[" * 10**5, "\xff", honest[:-20], "x" * 2**21]):
        copy = shutil.copytree(record, record.with_name(f"1_{number}"))
        (copy / RECORD_NAME).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"0_0/record.json is damaged: parent: Field required; 1 records are delivered, 24 wait"):
        deliver(lab.folder, uri=lab.uri)
    for number, edit in enumerate(DAMAGED):
        shutil.move(record.with_name(f"0_{number}"), lab.folder / str(number) / OUTBOX_FOLDER / "0")
        with pytest.raises(UserError, match=rf"0/record.json is damaged: {next(iter(edit))}.*; 0 records"):
            deliver(lab.folder / str(number), uri=lab.uri)
    assert len(lab.runs()) == 1


@pytest.mark.parametrize("status", ["RUNNING", "", None, ["FINISHED"]])
def test_a_sweep_ends_in_no_other_way_than_a_sweep_does(lab, tracking, status):
    content = lab.folder / "content"
    content.mkdir()
    waiting = Outbox(tracking, lab.folder)
    waiting.put_sweep("a" * 32, "FINISHED", "", {"network.depth": "2,3"}, content)
    edited(waiting.folder / "sweep", status=status)
    with pytest.raises(UserError, match=r"record\.json is damaged: status: Input should be 'FINISHED', 'FAILED' or 'KILLED'"):
        deliver(lab.folder, uri=lab.uri)
    edited(waiting.folder / "sweep", status="FINISHED", axes={"network.depth": [2, 3]})
    with pytest.raises(UserError, match=r"record\.json is damaged: axes"):
        deliver(lab.folder, uri=lab.uri)


def test_nothing_but_a_sweep_s_own_files_is_sent_to_the_store(lab, tracking):
    (lab.folder / "secret").write_text("password")
    content = lab.folder / "content"
    content.mkdir()
    store = Store(tracking)
    parent = store.begin("sweep", {"kind": "sweep"})
    for name, make in {"link": lambda at: at.symlink_to(lab.folder / "secret"), "fifo": os.mkfifo}.items():
        waiting = Outbox(tracking, lab.folder / name)
        waiting.owner = store.token
        waiting.put_sweep(parent.run_id, "FINISHED", "", {}, content)
        make(waiting.folder / "sweep" / "files" / "table.csv")
        with pytest.raises(UserError, match=r"table\.csv is damaged: it is no plain file"):
            deliver(lab.folder / name, uri=lab.uri)
    elsewhere = lab.folder / "linked" / OUTBOX_FOLDER
    elsewhere.mkdir(parents=True)
    (elsewhere / "0").symlink_to(waiting.folder / "sweep")
    assert deliver(lab.folder / "linked", uri=lab.uri) == 0


def test_a_sweep_s_end_ends_what_it_had_begun(lab, tracking):
    store = Store(tracking)
    parent = store.begin("sweep", {"kind": "sweep"})
    store.begin("begun", TAGS, parent.run_id)
    waiting = Outbox(tracking, lab.folder)
    waiting.owner = store.token
    content = lab.folder / "content"
    content.mkdir()
    waiting.put_sweep(parent.run_id, "FAILED", "a job failed", {}, content)
    assert deliver(lab.folder, uri=lab.uri) == 1
    assert [(run.info.status, run.data.tags["reason"]) for run in (*lab.runs("sweep"), *lab.runs())] == [
        ("FAILED", "a job failed"),
        ("KILLED", "its sweep ended while the store did not answer"),
    ]


def test_a_stranger_s_loader_is_called_where_it_is_allowed_alone(lab, record):
    config = record / "config.yaml"
    text = config.read_text()
    assert text.count("sklearn.datasets.load_iris") == 1
    config.write_text(text.replace("sklearn.datasets.load_iris", f"{__name__}.load"))
    with pytest.raises(UserError, match=rf"may name only a loader .* --allow {__name__}.load lets it be called"):
        deliver(lab.folder, uri=lab.uri)
    for loader in ("[sklearn.datasets.load_iris]", "{_target_: [sklearn.datasets.load_iris]}"):
        config.write_text(re.sub(r"loader:\n +_target_: \S+", f"loader: {loader}", text))
        with pytest.raises(UserError, match=r"the record's config does not fit: dataset\.loader"):
            deliver(lab.folder, uri=lab.uri)


def test_a_record_goes_to_no_store_but_the_one_that_is_named(lab, record):
    for uri in ("http://127.0.0.1:9", f"sqlite:///{lab.folder}/other.db", None):
        edited(record, uri=uri)
        with pytest.raises(UserError, match=r"undelivered/0: it belongs to \S+, not to \S+/runs\.db: --uri says to which store"):
            deliver(lab.folder, uri=lab.uri)
    assert not (lab.folder / "other.db").exists()
    edited(record, uri="http://user:p@ss@host:5000/mlflow")
    with pytest.raises(UserError, match=r"it belongs to http://\*\*\*@host:5000/mlflow, "):
        deliver(lab.folder, uri=lab.uri)


def test_what_the_store_does_not_take_waits_and_the_others_are_delivered(lab, record):
    edits = [{"experiment": ""}, {"experiment": "e" * 501}, {"parent": "0" * 32}]
    for number, edit in enumerate(edits):
        edited(shutil.copytree(record, record.with_name(f"-{number}")), **edit)
    with pytest.raises(UserError, match=r"undelivered/-0: .*xperiment name.*; 1 records are delivered, 3 wait still$"):
        deliver(lab.folder, uri=lab.uri)
    assert [run.info.status for run in lab.runs()] == ["FINISHED"]


def test_folders_within_each_other_without_end_are_one_line(lab, record, monkeypatch):
    monkeypatch.chdir(lab.folder)
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        with pytest.raises(UserError, match="has too many folders within each other"):
            deliver(lab.folder, uri=lab.uri)
    finally:
        # What pytest takes away its folders with cannot go so deep.
        subprocess.run(["rm", "-r", lab.folder / "d"], check=True)


def test_the_command_that_delivers_is_quoted_and_names_store_and_loaders(lab, tracking, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lab.uri)
    waiting = Outbox(tracking, tmp_path / "my sweep", ["mine.load"])
    assert waiting.instructions.endswith(f"; python -m experiments.deliver '{tmp_path}/my sweep' --allow mine.load delivers them")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another")
    assert waiting.instructions.endswith(f" --allow mine.load --uri {lab.uri} delivers them")


def test_two_do_not_deliver_at_once(lab, record):
    with FileLock(record.parent / LOCK_NAME):
        output = lab.run(str(lab.folder), module="experiments.deliver", status=1)
        assert output == f"error: {record.parent} is being delivered by another process: wait for it\n"
        # A sweep whose records somebody delivers by hand goes on.
        waiting = Outbox(TrackingConfig(uri=lab.uri, experiment="e"), lab.folder)
        waiting.is_closed = True
        waiting.try_again(None, now=True)
        assert waiting.is_closed
    waiting.try_again(None, now=True)
    assert not waiting.is_closed
    assert len(lab.runs()) == 1


def test_ctrl_c_leaves_every_record_delivered_or_waiting(lab, record):
    for number in range(1, 24):
        shutil.copytree(record, record.with_name(f"0_{number}"))
    process = lab.start(str(lab.folder), module="experiments.deliver")
    lab.wait_for("FINISHED", count=2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "interrupted: what waits is there still\n")
    left = len(list(outbox.waiting_records(lab.folder)))
    statuses = [run.info.status for run in lab.runs()]
    assert 0 < left < 23
    assert statuses == ["FINISHED"] * (24 - left)
    assert deliver(lab.folder, uri=lab.uri) == left
    assert len(lab.runs()) == 24
