"""A signal at any moment, and again and again from then on: the command ends in order, and no run is left RUNNING."""

import contextlib
import functools
import os
import pty
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.experiments.conftest import FORKED, _main

TINY = ["dataset=iris", "network.width=8", "training.epochs=1", "network.depth=2,3", "optimizer.learning_rate=0.1,0.2"]
PLAIN = ["tracking.pictures=none", "tracking.models=none", "sweep.resume=false"]
STATUS = {signal.SIGINT: 1, signal.SIGTERM: 143, signal.SIGHUP: 129}
# (which function, its how manyth call, before or after it, which signal)
MOMENTS = [
    ("experiments.record.experiment._open", 1, "after", signal.SIGTERM),
    ("experiments.record.rows.Rows.create", 1, "after", signal.SIGINT),
    ("experiments.record.rows.Rows.create", 2, "after", signal.SIGHUP),
    ("experiments.record.tracking.Store._finished_run", 2, "before", signal.SIGTERM),
    ("experiments.sweep.sweep.Sweep._finish", 1, "before", signal.SIGINT),
    ("experiments.record.rows.Rows._use", 1, "before", signal.SIGHUP),
]
MORE = [
    ("experiments.record.experiment._open", 1, "before", signal.SIGHUP),
    ("mlflow.MlflowClient.search_runs", 1, "before", signal.SIGINT),
    ("experiments.record.ownership.Owner.acquire_lock", 1, "after", signal.SIGTERM),
    ("experiments.record.rows.Rows.create", 1, "before", signal.SIGHUP),
    ("mlflow.MlflowClient.set_experiment_tag", 1, "before", signal.SIGTERM),
    ("experiments.run.pool.Pool.__exit__", 1, "before", signal.SIGINT),
    ("experiments.record.rows.Rows.finish", 1, "before", signal.SIGINT),
    ("experiments.record.rows.Rows.finish", 1, "after", signal.SIGTERM),
    ("experiments.pictures.gallery.log_sweep", 1, "after", signal.SIGTERM),
    ("experiments.record.run.Run.log_table", 1, "before", signal.SIGHUP),
    ("experiments.sweep.record.SweepRecord.close", 1, "before", signal.SIGTERM),
]


def interrupted_at(place, count, when, number, *command):
    """The command in this forked process, whose `count`th call of that function is the first moment of the signals."""
    owner, name = _found(place)
    original, calls = getattr(owner, name), []

    @functools.wraps(original)
    def called(*arguments, **more):
        if threading.current_thread() is threading.main_thread():
            calls.append(name)
        now = len(calls) == count and calls.append("only once") is None
        if now and when == "before":
            send()
        result = original(*arguments, **more)
        if now and when == "after":
            send()
        return result

    def send():
        # Python handles signals that wait together by their numbers: the first one is handled before a second one is sent.
        try:
            os.kill(os.getpid(), number)
        finally:
            threading.Thread(target=again, daemon=True).start()

    def again():
        while True:
            time.sleep(0.01)
            for further in STATUS:
                os.kill(os.getpid(), further)

    setattr(owner, name, called)
    _main(*command)


def _found(place):
    import importlib

    *path, name = place.split(".")
    for parts in range(len(path), 0, -1):
        with contextlib.suppress(ImportError):
            owner = importlib.import_module(".".join(path[:parts]))
            return functools.reduce(getattr, path[parts:], owner), name
    raise ImportError(place)


def run_interrupted(lab, moment, module, *arguments):
    """Its status and its output; the store is there."""
    lab.make_store()
    output = lab.folder.with_name(f"{lab.folder.name}.output")
    command = (module, arguments, lab.folder, lab.environ, output)
    process = FORKED.Process(target=interrupted_at, args=(*moment, *command))
    process.start()
    process.join(120)
    assert not process.is_alive(), output.read_text()
    return process.exitcode, output.read_text()


def check(lab, moment, kind, module, *arguments):
    status, output = run_interrupted(lab, moment, module, *arguments)
    assert status == STATUS[moment[-1]], (moment, output)
    assert "Traceback" not in output
    for run in [*lab.runs(kind), *lab.runs()]:
        assert run.info.status != "RUNNING", moment
        if run.info.status == "KILLED":
            assert run.data.tags["reason"] == f"interrupted by {moment[-1].name}"
    # Whoever is cut off right after it was made has them, too.
    assert all("optimizer.learning_rate" in run.data.params for run in lab.runs())
    assert list(lab.folder.glob("runs.db.*.lock")) == []
    return output


@pytest.mark.parametrize("moment", [*MOMENTS, *(pytest.param(moment, marks=pytest.mark.slow) for moment in MORE)])
def test_a_sweep_ends_in_order_whenever_signals_come(lab, moment):
    check(lab, moment, "sweep", "experiments.train", "-m", *TINY, *PLAIN)


@pytest.mark.parametrize(
    ("moment", "kind", "module", "arguments"),
    [
        (("experiments.record.rows.Rows.create", 1, "after", signal.SIGTERM), "run", "experiments.train", [*TINY[:3], *PLAIN]),
        (("experiments.record.rows.Rows.finish", 1, "before", signal.SIGHUP), "run", "experiments.train", [*TINY[:3], *PLAIN]),
        (
            ("experiments.record.rows.Rows.create", 1, "after", signal.SIGINT),
            "map",
            "experiments.trainability",
            ["dataset=iris", "trainability=rate_by_gain", "map.resolution=4", "map.floor=false", "map.folder=there"],
        ),
        (
            ("experiments.record.run.Run.log_table", 1, "after", signal.SIGTERM),
            "verify",
            "experiments.verify",
            ["--only", "scaling"],
        ),
        (
            ("experiments.record.rows.Rows.create", 2, "after", signal.SIGHUP),
            "sweep",
            "experiments.train",
            ["-m", *TINY, *PLAIN, "hydra/launcher=basic"],
        ),
    ],
)
def test_every_command_that_records_ends_in_order(lab, moment, kind, module, arguments):
    check(lab, moment, kind, module, *arguments)


def on_terminal(name, *command):
    """The command in this forked process, whose controlling terminal it is."""
    os.setsid()
    os.open(name, os.O_RDWR)
    _main(*command, name)


def test_a_closed_terminal_ends_a_sweep_in_order(lab):
    ours, theirs = pty.openpty()
    lab.make_store()
    typed = ("-m", *TINY[:2], "training.epochs=100000", *TINY[3:])
    command = (Path(os.ttyname(theirs)), "experiments.train", typed, lab.folder, lab.environ)
    process = FORKED.Process(target=on_terminal, args=command)
    process.start()
    try:
        lab.wait_for("RUNNING", count=2)
        os.close(theirs)
        os.close(ours)
        process.join(60)
        assert process.exitcode == STATUS[signal.SIGHUP]
    finally:
        process.kill()
    assert {run.info.status for run in [*lab.runs(), *lab.runs("sweep")]} == {"KILLED"}
