"""The tracking server goes away, the disk is full: training goes on, nothing recorded is lost."""

import subprocess

import pytest

from experiments.record.outbox import OUTBOX_FOLDER, Outbox, deliver
from experiments.run.composition import parse_config
from experiments.run.config import TrackingConfig, UserError
from experiments.run.stack import train_stack
from tests.benchmarks.drills import outages, server

FEW = ["network.depth=2,3", "optimizer.learning_rate=0.1,0.2", "network.width=16", "training.epochs=600"]


def of_server(away, lab):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{away.folder / 'runs.db'}")


def finished(client):
    runs = client.search_runs(["1"], "tags.kind = 'run' and attributes.status = 'FINISHED'")
    return {run.data.tags["job"]: run for run in runs}


@pytest.mark.slow
def test_a_server_that_stays_away_leaves_records_that_wait_and_are_delivered(lab):
    with server(lab.folder) as away:
        lab.uri = away.uri
        process = lab.start("-m", *FEW)
        # The sweep's own run and one of its jobs': with the first one a sweep begins.
        lab.wait_for("RUNNING", count=2)
        away.kill()
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1, output
        assert output.count("training goes on") == 1
        assert "Traceback" not in output
        assert "4 trained" in output
        (folder,) = lab.folder.glob("multirun/*/*")
        assert f"python -m experiments.deliver {folder}" in output
        assert sorted(path.name for path in (folder / OUTBOX_FOLDER).iterdir()) == ["0", "1", "2", "3", "sweep"]

        refused = lab.run(str(folder), module="experiments.deliver", status=1)
        assert "which does not answer" in refused
        assert len(refused.splitlines()) == 1
        away.start()
        assert "5 records delivered" in lab.run(str(folder), module="experiments.deliver")
        assert "no record waits there" in lab.run(str(folder), module="experiments.deliver")
        runs = finished(of_server(away, lab))
        assert sorted(runs) == ["0", "1", "2", "3"]
        (parent,) = of_server(away, lab).search_runs(["1"], "tags.kind = 'sweep'")
        assert parent.info.status == "FINISHED"
        assert parent.data.params["network.depth"] == "2,3"
        assert list(away.folder.glob(f"artifacts/*/{parent.info.run_id}/artifacts/table.csv"))
        ids = [run.info.run_id for run in runs.values()]
        assert "4 of 4 runs are identical" in lab.run(*ids, "--uri", away.uri, module="experiments.reproduce")


@pytest.mark.slow
def test_a_single_run_waits_too(lab):
    with server(lab.folder) as away:
        lab.uri = away.uri
        process = lab.start("network.depth=9", "training.epochs=300")
        lab.wait_for("RUNNING")
        away.kill()
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1, output
        (folder,) = lab.folder.glob("outputs/*/*")
        assert f"python -m experiments.deliver {folder}" in output
        away.start()
        assert "1 records delivered" in lab.run(str(folder), module="experiments.deliver")
        assert len(finished(of_server(away, lab))) == 1


@pytest.mark.slow
def test_a_server_that_comes_and_goes_misses_no_point():
    assert outages(1, 1200) == []


def test_a_damaged_record_in_the_folder_is_one_line(lab):
    folder = lab.folder / OUTBOX_FOLDER / "0"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    assert "is damaged" in lab.run(str(lab.folder), module="experiments.deliver", status=1)
    assert "it must be a folder that is there" in lab.run("nowhere", module="experiments.deliver", status=1)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 700 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_with_one_line_and_what_is_recorded_stays(lab, small_disk):
    from experiments.record.tracking import Store

    Store(TrackingConfig(uri=lab.uri, experiment="another"))
    lab.client().create_experiment("depth laboratory", small_disk.as_uri())
    output = lab.run(
        "-m", "network.depth=17", "optimizer.learning_rate=0.01,0.02,0.03,0.05,0.07,0.1", "training.epochs=2", status=1
    )
    assert "No space left on device" in output
    assert "Traceback" not in output
    statuses = [run.info.status for run in lab.runs()]
    assert "FINISHED" in statuses
    assert "RUNNING" not in statuses
    whole = [run.info.run_id for run in lab.runs() if run.info.status == "FINISHED"]
    assert f"{len(whole)} of {len(whole)} runs are identical" in lab.run(*whole, module="experiments.reproduce")


def test_a_full_disk_leaves_whole_records_alone_and_says_which_is_lost(lab, composed, small_disk):
    # 450 KB of parameters each.
    (run,) = train_stack([parse_config(composed("training.epochs=1", "network.width=300"))])
    waiting = Outbox(TrackingConfig(uri=lab.uri), small_disk)
    waiting.put("a run", {"job": "0"}, "", run)
    with pytest.raises(UserError, match=r"no space is left there, so the record of 1 is lost.*; 1 records wait in") as full:
        waiting.put("a run", {"job": "1"}, "", run)
    assert f"python -m experiments.deliver {small_disk} --uri {lab.uri} delivers them" in str(full.value)
    assert [path.name for path in (small_disk / OUTBOX_FOLDER).iterdir()] == ["0"]
    assert deliver(small_disk, uri=lab.uri) == 1


@pytest.mark.slow
def test_a_sweep_whose_outbox_is_full_ends_in_one_line_and_nothing_stays_running(lab, small_disk):
    axes = ["network.depth=9,10", "optimizer.learning_rate=0.01,0.02,0.03", "network.width=16", "training.epochs=400"]
    with server(lab.folder) as away:
        lab.uri = away.uri
        process = lab.start("-m", *axes, "tracking.pictures=none", "tracking.models=none", f"hydra.sweep.dir={small_disk}/s")
        lab.wait_for("RUNNING", count=2)
        away.kill()
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1, output
        assert "Traceback" not in output
        assert output.count("training goes on") == 1
        assert output.count("no space is left there") == 1
        left = len(list((small_disk / "s" / OUTBOX_FOLDER).glob("[0-9s]*")))
        away.start()
        assert f"{left} records delivered" in lab.run(str(small_disk), module="experiments.deliver")
        statuses = [run.info.status for run in of_server(away, lab).search_runs(["1"], "")]
        assert statuses.count("FINISHED") == left - 1
        assert "FAILED" in statuses
        assert "RUNNING" not in statuses
