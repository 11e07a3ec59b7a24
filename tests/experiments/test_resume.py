"""Sweeps that are killed, typed again, typed twice at once."""

import json
import os
import signal
import time

import pytest

from experiments import results
from experiments.record.ownership import HEARTBEAT
from tests.benchmarks.drills import SMALL, Store, kill_and_resume, unbroken
from tests.experiments.conftest import ALONE

# But for the best model's sake nothing here is drawn or kept.
FEW = ["dataset=iris", "training.epochs=1", "network.width=8", "network.depth=2,3", "optimizer.learning_rate=0.1,0.2"]
FEW += ["tracking.pictures=none"]
BARE = [*FEW, "tracking.models=none"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a sweep leaves that nothing disturbs, and its seconds."""
    return unbroken(tmp_path_factory.mktemp("unbroken"), SMALL)


# Of a sweep's time: while the store is made, in training, in writing; `benchmark kills` does a hundred.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2, 0.8])
def test_a_killed_sweep_is_resumed_to_the_bits_of_an_unbroken_one(tmp_path, whole, share):
    expected, seconds = whole
    assert kill_and_resume(Store(tmp_path), SMALL, share * seconds, expected) == ""


def test_the_same_command_again_trains_nothing_and_shows_the_table(lab):
    first = lab.run("-m", *FEW, ALONE)
    ids = [run.info.run_id for run in lab.runs()]
    second = lab.run("-m", *FEW, ALONE)
    assert "4 of 4 runs are in the record already" in second
    assert [run.info.run_id for run in lab.runs()] == ids
    (parent,) = lab.runs("sweep")
    assert parent.info.status == "FINISHED"
    table = first.partition("final training loss")[2].partition("dashboard")[0]
    assert table in second
    assert len(lab.client().search_logged_models(["1"])) == 1
    assert len(json.loads(lab.artifact(parent, "table.json").read_text())["data"]) == 4
    lab.run("-m", *BARE, ALONE, "sweep.resume=false")
    assert len(lab.runs()) == 8
    assert len(lab.runs("sweep")) == 2


@pytest.mark.slow
def test_another_sweep_is_another_sweep(lab):
    lab.run("-m", *BARE)
    output = lab.run("-m", *BARE, "seed=1")
    assert "in the record already" not in output
    assert len(lab.runs()) == 8


def test_jobs_of_another_launcher_are_resumed_too(lab):
    lab.run("-m", *BARE, "hydra/launcher=basic")
    client = lab.client()
    lost = lab.runs()[2]
    client.set_terminated(lost.info.run_id, "KILLED")
    kept = {run.info.run_id for run in lab.runs()} - {lost.info.run_id}
    output = lab.run("-m", *BARE, "hydra/launcher=basic")
    assert "3 of 4 runs are in the record already" in output
    finished = {run.info.run_id for run in lab.runs() if run.info.status == "FINISHED"}
    assert kept < finished
    assert len(finished) == 4
    (new,) = finished - kept
    assert lab.client().get_run(new).data.tags["trajectory"] == lost.data.tags["trajectory"]


@pytest.mark.slow
def test_of_two_starts_at_once_one_works_and_the_other_says_so(lab):
    axes = ["network.depth=9", "optimizer.learning_rate=0.1,0.2", "training.epochs=600"]
    killed = lab.start("-m", *axes)
    lab.wait_for("RUNNING")
    killed.kill()
    killed.communicate()
    processes = [lab.start("-m", *axes) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], outputs
    refused = outputs[[process.returncode for process in processes].index(1)]
    assert "error: this sweep is being trained by another process" in refused
    assert "sweep.resume=false" in refused
    assert "Traceback" not in refused
    statuses = [run.info.status for run in lab.runs()]
    assert statuses.count("FINISHED") == 2
    assert "RUNNING" not in statuses


def test_a_dead_run_is_killed_at_the_next_start(lab):
    process = lab.start("training.epochs=100000", "network.depth=9")
    lab.wait_for("RUNNING")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [run.info.status for run in lab.runs()] == ["RUNNING"]
    lab.run("-m", *BARE, ALONE)
    assert sorted(run.info.status for run in lab.runs()) == ["FINISHED"] * 4 + ["KILLED"]
    dead = lab.runs()[0].data
    assert dead.params["training.epochs"] == "100000"
    assert dead.tags["reason"] == f"its process, {dead.tags['process']}, is gone"
    assert dead.tags["process"].endswith(f":{process.pid}")


def test_the_runs_of_a_sweep_that_was_killed_have_their_params_and_the_reason(lab):
    process = lab.start("-m", "network.depth=33", "optimizer.learning_rate=0.1,0.2", "training.epochs=20000", *BARE[-2:])
    lab.wait_for("RUNNING", count=3)
    process.kill()
    process.communicate()
    lab.run("-m", *BARE, ALONE)
    killed = [run for run in [*lab.runs("sweep"), *lab.runs()] if run.info.status == "KILLED"]
    assert len(killed) == 3
    assert {run.data.params["optimizer.learning_rate"] for run in killed} == {"0.1,0.2", "0.1", "0.2"}
    assert all(run.data.tags["reason"].startswith("its process, ") for run in killed)


@pytest.mark.slow
def test_runs_that_somebody_has_edited_are_left_alone_and_their_jobs_trained_again(lab):
    lab.run("-m", *FEW)
    client, (parent,) = lab.client(), lab.runs("sweep")
    own = client.create_run(parent.info.experiment_id, tags={"mlflow.parentRunId": parent.info.run_id})
    client.set_terminated(own.info.run_id, "FINISHED")
    first, second, *_ = lab.runs()
    client.delete_tag(first.info.run_id, "job")
    client.set_tag(second.info.run_id, "outcome", "splendid")
    for key in ("owner", "process", HEARTBEAT):
        client.delete_tag(parent.info.run_id, key)
    output = lab.run("-m", *FEW)
    assert "2 of 4 runs are in the record already" in output
    assert "Traceback" not in output
    frame, histories = results.load(parent.info.run_id, lab.uri)
    assert len(frame) == len(histories) == 4
    assert set(frame["outcome"]) <= {"trained", "stuck"}


@pytest.mark.slow
def test_a_sweep_gives_signs_of_life(lab):
    process = lab.start("-m", "network.depth=9", "optimizer.learning_rate=0.1,0.2", "training.epochs=100000")
    try:
        lab.wait_for("RUNNING")
        beats = set()
        deadline = time.monotonic() + 30
        while len(beats) < 2 and time.monotonic() < deadline:
            beats |= {parent.data.tags[HEARTBEAT] for parent in lab.runs("sweep")}
            time.sleep(1)
        assert len(beats) > 1
    finally:
        process.kill()
        process.communicate()
