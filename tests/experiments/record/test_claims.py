"""A sweep that lives is never taken over, one that is dead is, and what woke up too late writes nothing."""

import contextlib
import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from experiments.record import claims, experiment, ownership
from experiments.record.ownership import HEARTBEAT, OWNER, PROCESS, Owner, TakenOver, Watch
from experiments.record.reading import Archive
from experiments.record.tracking import Store
from experiments.run.composition import parse_config
from experiments.run.config import SweepConfig, TrackingConfig, UserError
from experiments.run.stack import train_stack
from tests.experiments.conftest import empty_store

STALE = 20.0


class Machines:
    """Stores of several machines on one tracking store, and one clock for the seconds that pass."""

    def __init__(self, uri, folder, monkeypatch) -> None:
        self.uri, self.folder, self.monkeypatch = uri, folder, monkeypatch
        self.seconds, self.wall, self.while_asleep = 0.0, 1e9, lambda: None
        clock = SimpleNamespace(
            monotonic=lambda: self.seconds,
            clock_gettime=lambda which: self.seconds,
            CLOCK_BOOTTIME=7,
            time=lambda: self.wall + self.seconds,
            sleep=self.sleep,
        )
        monkeypatch.setattr(ownership, "time", clock)
        monkeypatch.setattr(claims, "time", clock)

    def sleep(self, seconds):
        self.seconds += seconds
        self.while_asleep()

    def store(self, machine="") -> Store:
        """Another machine cannot see this one's locks."""
        place = self.folder / machine
        place.mkdir(exist_ok=True)
        self.monkeypatch.setattr(experiment, "lock_file", lambda uri: place / "store.lock")
        return Store(TrackingConfig(uri=self.uri, experiment=self.folder.name))

    def status(self, run):
        return run.client.get_run(run.run_id).info.status

    def locks(self):
        return sorted(path.name for path in self.folder.rglob("store.*.lock"))


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A store is opened once, and has an experiment for every test."""
    file = tmp_path_factory.mktemp("store") / "runs.db"
    with contextlib.closing(sqlite3.connect(file)) as empty:
        empty_store().backup(empty)
    return f"sqlite:///{file}"


@pytest.fixture
def machines(uri, tmp_path, monkeypatch):
    return Machines(uri, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained(composed):
    return train_stack([parse_config(composed("training.epochs=1", "network.width=4", "dataset=iris"))])[0]


def begin(store, fingerprint="f"):
    return store.begin_sweep("a sweep", {"kind": "sweep"}, fingerprint, SweepConfig(stale=STALE))


def job(store, sweep, number=0):
    return store.begin("a job", {"kind": "run", "fingerprint": f"f{number}", "job": str(number)}, sweep.run_id)


def die(store):
    """As the operating system ends a process: its lock is let go, its file stays."""
    store.claims.owner.lock.release()


@pytest.mark.parametrize("step", [0.0, 30.0, -30.0, 120.0, 1e6, -1e6])
def test_who_lives_on_this_machine_is_refused_at_once_whatever_the_clocks_say(machines, step):
    first, second = machines.store(), machines.store()
    sweep, _ = begin(first)
    own = job(first, sweep)
    machines.wall += step
    machines.seconds += 1000
    with pytest.raises(UserError, match=f"this sweep is being trained by another process, process .* .run {sweep.run_id}"):
        begin(second)
    begin(second, "another")
    assert machines.status(sweep) == machines.status(own) == "RUNNING"


# As MLflow's page lets anybody do, and as a container of the same host's name has it.
EDITS = [{HEARTBEAT: None}, {HEARTBEAT: "yesterday"}, {PROCESS: None}, {PROCESS: "x"}, {PROCESS: f"{os.uname().nodename}:1:0"}]


@pytest.mark.parametrize("edit", [*EDITS, {HEARTBEAT: None, OWNER: None}, {OWNER: "../../etc/passwd"}])
def test_who_lives_is_never_taken_over_whatever_somebody_has_made_of_its_tags(machines, edit):
    first, second = machines.store(), machines.store()
    sweep, _ = begin(first)
    for key, value in edit.items():
        if value is None:
            sweep.client.delete_tag(sweep.run_id, key)
        else:
            sweep.client.set_tag(sweep.run_id, key, value)
    machines.while_asleep = sweep.send_heartbeat
    if "../../etc/passwd" in edit.values():
        # Its own process takes this for another owner's.
        machines.while_asleep = lambda: None
        assert begin(second)[0].run_id == sweep.run_id
        with pytest.raises(TakenOver):
            sweep.send_heartbeat()
        return
    with pytest.raises(UserError, match="is being trained by another process"):
        begin(second)


def test_who_died_on_this_machine_is_taken_over_at_once_and_what_it_finished_is_kept(machines, trained):
    first = machines.store()
    sweep, _ = begin(first)
    first.finish([(job(first, sweep, 0), trained)])
    left = job(first, sweep, 1)
    single = machines.store()
    alone = single.begin("alone", {"kind": "run"})
    die(first)
    die(single)
    second = machines.store()
    again, finished = begin(second)
    assert machines.seconds == 0
    assert again.run_id == sweep.run_id
    assert finished == {(0, "f0"): (pytest.approx(trained.final("loss/train")), trained.outcome)}
    assert machines.status(left) == machines.status(alone) == "KILLED"
    assert machines.status(again) == "RUNNING"
    tags = {run.run_id: run.client.get_run(run.run_id).data.tags for run in (left, again)}
    assert tags[left.run_id]["reason"] == f"its process, {os.uname().nodename}:{os.getpid()}, is gone"
    assert "reason" not in tags[again.run_id]
    assert machines.locks() == [f"store.{second.token}.lock"]
    second.close()
    assert machines.status(again) == "KILLED"
    assert machines.locks() == []


@pytest.mark.parametrize("ahead", [0.0, 120.0, -3600.0])
@pytest.mark.parametrize("beats_after", [1, 15])
def test_on_another_machine_one_sign_of_life_is_enough(machines, capsys, ahead, beats_after):
    sweep, _ = begin(machines.store())
    machines.wall += ahead
    started = machines.seconds
    machines.while_asleep = lambda: sweep.send_heartbeat() if machines.seconds - started >= beats_after else None
    with pytest.raises(UserError, match="is being trained by another process"):
        begin(machines.store("other"))
    assert machines.seconds - started == pytest.approx(beats_after, abs=1)
    assert capsys.readouterr().out.count("its signs of life are waited for, 20 s") == 1
    assert machines.status(sweep) == "RUNNING"


def test_on_another_machine_the_dead_is_taken_over_when_it_was_silent_for_so_long_and_what_wakes_up_writes_nothing(
    machines, trained
):
    first = machines.store()
    sweep, _ = begin(first)
    early, late = job(first, sweep, 0), job(first, sweep, 1)
    early.experiment.finish([(early, trained)])
    second = machines.store("other")
    again, finished = begin(second)
    assert STALE <= machines.seconds <= STALE + 10
    assert again.run_id == sweep.run_id
    assert list(finished) == [(0, "f0")]
    assert machines.status(late) == "KILLED"
    second.finish([(job(second, again, 1), trained)])
    for attempt in (lambda: late.experiment.finish([(late, trained)]), sweep.send_heartbeat, sweep.check_owner):
        with pytest.raises(TakenOver, match=f"run {sweep.run_id} gave no sign of life and was taken over by another process"):
            attempt()
    first.close("FAILED")
    assert machines.status(again) == "RUNNING"
    assert machines.status(late) == "KILLED"
    assert len([*second.children(again.run_id, "attributes.status = 'FINISHED' and tags.job = '1'")]) == 1


def test_of_two_that_have_waited_one_gives_way(machines):
    sweep, _ = begin(machines.store())
    second, third = machines.store("second"), machines.store("third")

    def meanwhile():
        # The third has waited as long, and writes after the second.
        if machines.seconds > STALE + 1:
            sweep.client.set_tag(sweep.run_id, OWNER, third.token)

    machines.while_asleep = meanwhile
    with pytest.raises(TakenOver):
        begin(second)


def test_what_another_machine_left_is_killed_while_another_sweep_trains(machines):
    sweep, _ = begin(machines.store(), "dead")
    living, _ = begin(machines.store("third"), "living")
    other = machines.store("other")
    begin(other)
    assert machines.seconds == 0
    for seconds in range(5, 25, 5):
        assert machines.status(sweep) == "RUNNING"
        machines.seconds = seconds
        living.send_heartbeat()
        other.claims.end_silent_runs()
    assert machines.status(sweep) == "KILLED"
    assert machines.status(living) == "RUNNING"


def test_a_sweep_that_was_ended_while_it_slept_says_so(machines):
    sweep, _ = begin(machines.store())
    sweep.client.set_terminated(sweep.run_id, "KILLED")
    machines.seconds += 100
    with pytest.raises(TakenOver, match="was ended as KILLED by another process"):
        sweep.check_owner()


def test_runs_of_the_user_s_own_are_left_alone(machines):
    store = machines.store()
    client = store.client
    own = [client.create_run(store.experiment_id, tags=tags) for tags in ({}, {"kind": "run"}, {"kind": "mine", HEARTBEAT: "1"})]
    for _ in range(2):
        begin(machines.store(), str(machines.seconds))
        machines.seconds += 1000
        store.claims.end_silent_runs()
    assert {client.get_run(run.info.run_id).info.status for run in own} == {"RUNNING"}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_signs_of_life_decide(machines, monkeypatch, number):
    first, second = machines.store(), machines.store()
    flock = fcntl.flock

    def none(file, operation):
        if any(store.claims.owner.token in os.readlink(f"/proc/self/fd/{file}") for store in (first, second)):
            raise OSError(number, os.strerror(number))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", none)
    sweep, _ = begin(first)
    assert machines.locks() == []
    machines.while_asleep = sweep.send_heartbeat
    with pytest.raises(UserError, match="is being trained by another process"):
        begin(second)
    machines.while_asleep = lambda: None
    assert begin(second)[0].run_id == sweep.run_id
    assert machines.seconds >= STALE


CHANGED = [
    {"job": "two"},
    {"job": None, HEARTBEAT: "x"},
    {"job": "-1"},
    {"job": "7"},
    {"outcome": None},
    {"outcome": "splendid", OWNER: None},
    {"kind": None},
    {"kind": "mine", PROCESS: None},
    {"fingerprint": "0" * 64},
    {"fingerprint": None, "trajectory": None},
]


@pytest.mark.parametrize("changes", CHANGED)
def test_a_job_s_run_whose_tags_somebody_has_changed_is_left_alone(machines, trained, changes):
    store = machines.store()
    sweep, _ = begin(store)
    runs = [job(store, sweep, number) for number in range(2)]
    for run in runs:
        store.finish([(run, trained)])
    own = store.client.create_run(store.experiment_id, tags={"mlflow.parentRunId": sweep.run_id, "job": "0"})
    store.client.set_terminated(own.info.run_id, "FINISHED")
    for key, value in changes.items():
        if value is None:
            store.client.delete_tag(runs[0].run_id, key)
        else:
            store.client.set_tag(runs[0].run_id, key, value)
    sweep.end("KILLED")
    store.close()
    _, finished = begin(machines.store())
    assert (1, "f1") in finished
    assert (0, "f0") not in finished
    left = "fingerprint" in changes or changes == {"job": "7"}
    archived = Archive(machines.uri, machines.folder).sweep(sweep.run_id)
    assert [run.run_id for run in archived if run.run_id != runs[1].run_id] == [runs[0].run_id] * left
    assert own.info.run_id not in [run.run_id for run in archived]


HOLD = """
import subprocess, sys
from pathlib import Path
from experiments.record.ownership import Owner
owner = Owner(Path(sys.argv[1]))
owner.acquire_lock()
worker = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
print(owner.token, worker.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("namespace", [[], ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]])
def test_a_lock_is_seen_from_another_pid_namespace_and_ends_with_its_owner_whose_workers_live_on(tmp_path, namespace):
    if namespace and subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a PID namespace can be made by root alone")
    beside = tmp_path / "store.lock"
    command = [*namespace, sys.executable, "-c", HOLD, str(beside)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        token, worker = owner.stdout.readline().split()
        tags = {OWNER: token, PROCESS: f"{os.uname().nodename}:{2**22 + 1}"}
        try:
            assert Watch(beside, 0).is_alive("run", tags, "sign")
            owner.kill()
            owner.wait()
            deadline = time.monotonic() + 10
            while (lives := Watch(beside, 0).is_alive("run", tags, "sign")) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert lives is False
        finally:
            if not namespace:
                os.kill(int(worker), signal.SIGKILL)


def test_an_owner_s_lock_is_not_taken_twice_and_its_file_goes_with_it(tmp_path):
    owner = Owner(tmp_path / "store.lock")
    acting = Owner(tmp_path / "store.lock", owner.token)
    owner.acquire_lock()
    acting.acquire_lock()
    acting.release()
    assert Watch(tmp_path / "store.lock", 0).is_alive("run", owner.tags(), "sign")
    owner.release()
    assert list(tmp_path.iterdir()) == []
