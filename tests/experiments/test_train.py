"""The command itself, as a user types it: real Hydra, a real store."""

import signal
from pathlib import Path

import numpy as np
import pytest

from blocks.activations import ACTIVATIONS
from blocks.initializers import INITIALIZERS
from blocks.losses import LOSSES
from blocks.network import KINDS
from blocks.optimizers import OPTIMIZERS
from blocks.parametrizations import PARAMETRIZATIONS
from blocks.schedules import SCHEDULES
from experiments import results
from experiments.record.reading import Archive
from experiments.record.tracking import Store
from experiments.run.composition import parse_config
from experiments.run.config import SweepConfig, TrackingConfig, UserError
from experiments.run.data import load_task
from experiments.run.stack import train_stack
from experiments.train import CONF
from tests.experiments.conftest import ALONE

PRESETS = sorted(file.stem for file in (Path(CONF) / "experiment").glob("*.yaml"))
# Nothing here looks at pictures or models.
FEW = ["training.epochs=1", "network.width=8", "tracking.pictures=none", "tracking.models=none"]


def history_bytes(file, composed, *overrides):
    """history.npz of that run, trained in this process and saved under that name."""
    (alone,) = train_stack([parse_config(composed(*FEW, *overrides))])
    alone.history.save(file)
    return file.read_bytes()


def test_one_command_trains_one_network_and_records_it(lab, composed):
    output = lab.run(*FEW, "seed=5")
    assert "final training loss" in output
    assert "python -m experiments.dashboard" in output
    (run,) = lab.runs()
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "trained")
    assert run.info.run_name == "depth 3, rate 0.1"
    assert f"python -m experiments.dashboard {run.info.run_id} --uri" in output
    assert lab.artifact(run, "history.npz").read_bytes() == history_bytes(lab.folder / "alone.npz", composed, "seed=5")
    assert not lab.artifact(run, "pictures").exists()
    assert not lab.client().search_logged_models(["1"])
    # Hydra keeps its files in the folder in which the command was typed.
    (config,) = lab.folder.glob("outputs/*/*/.hydra/config.yaml")
    assert "name: digits" in config.read_text()


def test_a_run_alone_is_opened_and_loaded_after_other_sweeps(lab, tmp_path):
    """Its trial is a run like it: a sweeper other than ours leaves no parent."""
    sweep = lab.run("-m", *FEW, "network.depth=2,3", "training.epochs=1", ALONE)
    output = lab.run(*FEW, "seed=1")
    (parent,), single = lab.runs("sweep"), lab.runs()[-1]
    archive = Archive(lab.uri, tmp_path)
    for run_id in (None, single.info.run_id):
        page, name = archive.page(run_id)
        assert page == f"#/experiments/1/runs/{single.info.run_id}?workflowType=machine_learning"
        assert name == "depth 3, rate 0.1"
        assert output.splitlines()[-3].endswith(page)
    page, name = archive.page(parent.info.run_id)
    assert name == "depth, 2 runs"
    assert sweep.splitlines()[-3].endswith(page)
    assert f"experiments.dashboard {parent.info.run_id} --uri" in sweep
    assert sweep.splitlines()[0] == "2 runs over network.depth (2 values)"
    assert {run.info.run_name for run in lab.runs()} == {"depth 2", "depth 3", "depth 3, rate 0.1"}

    for run_id in (None, single.info.run_id):
        frame, histories = results.load(run_id, lab.uri)
        assert frame["run_id"].tolist() == [single.info.run_id]
        assert len(histories) == 1
    child = lab.runs()[0]
    assert results.load(child.info.run_id, lab.uri)[0]["run_name"].tolist() == [child.info.run_name]
    assert len(results.load(parent.info.run_id, lab.uri)[0]) == 2

    # A sweep that goes on is what was begun last: its newest run is.
    store = Store(TrackingConfig(uri=lab.uri))
    begun = store.begin("a job", {"kind": "run", "job": "2"}, parent.info.run_id)
    assert archive.page(None)[0] == page
    begun.end()
    mapped, _ = store.begin_sweep("a map", {"kind": "map"}, "f", SweepConfig())
    assert archive.page(None) == (f"#/experiments/1/runs/{mapped.run_id}?workflowType=machine_learning", "a map")
    assert store.page.command.endswith(archive.page(None)[0])
    store.close("FINISHED")
    with pytest.raises(UserError, match=f"run {mapped.run_id} is neither a training nor a sweep: it has the tag kind=map"):
        results.load(mapped.run_id, lab.uri)
    lab.client().delete_run(single.info.run_id)
    with pytest.raises(UserError, match=f"run '{single.info.run_id}' was deleted: mlflow runs restore --run-id"):
        archive.page(single.info.run_id)


# The others: test_machine.py.
def test_a_sweep_records_every_job_under_one_parent_and_ends_with_the_table(lab, composed):
    axes = ["network.depth=2,3", "optimizer.learning_rate=0.1,1e9"]
    output = lab.run("-m", *FEW, *axes, "hydra/launcher=basic")
    runs = lab.runs()
    (parent,) = lab.runs("sweep")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert {run.info.status for run in [*runs, parent]} == {"FINISHED"}
    cells = {
        (run.data.params["network.depth"], run.data.params["optimizer.learning_rate"]): run.data.tags["outcome"] for run in runs
    }
    assert cells == {
        ("2", "0.1"): "trained",
        ("3", "0.1"): "trained",
        ("2", "1000000000.0"): "diverged",
        ("3", "1000000000.0"): "diverged",
    }

    for run in runs:
        place = (f"{key}={run.data.params[key]}" for key in ("network.depth", "optimizer.learning_rate"))
        assert lab.artifact(run, "history.npz").read_bytes() == history_bytes(lab.folder / "alone.npz", composed, *place)

    best = min(run.data.metrics["final/loss_train"] for run in runs if run.data.tags["outcome"] == "trained")
    assert f"{best:.3g}*" in output
    assert "2 trained, 2 diverged" in output
    assert lab.artifact(parent, "map.png").stat().st_size > 1000
    lines = lab.artifact(parent, "table.csv").read_text().splitlines()
    assert lines[0] == "network.depth,optimizer.learning_rate,sensitivity,final/loss_train,outcome"
    assert len(lines) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_trains_for_two_updates(composed, preset):
    cfg = composed(f"experiment={preset}", "training.batch_size=null", "training.epochs=2")
    (trained,) = train_stack([parse_config(cfg)])
    assert trained.history.loss.shape == (2,)
    assert np.isfinite(trained.history.loss).all()
    header = (Path(CONF) / "experiment" / f"{preset}.yaml").read_text().splitlines()
    command = "python -m experiments.train -m" + ("" if preset == "depth_by_learning_rate" else f" experiment={preset}")
    assert any(line == f"#   {command}" for line in header)


@pytest.mark.parametrize(
    "name", ["iris", "wine", "breast_cancer", "digits", "diabetes", "moons", "circles", "blobs", "friedman1"]
)
def test_every_data_set_trains_with_the_loss_that_fits_it(composed, name):
    config = parse_config(composed(f"dataset={name}", "training.epochs=10", "training.batch_size=16"))
    (trained,) = train_stack([config])
    assert trained.outcome == "trained"
    assert trained.final("loss/train") < 0.7 * load_task(config).constant_loss


def test_tracking_can_be_switched_off(lab):
    output = lab.run(
        "-m", *FEW, "network.depth=2,3", "optimizer.learning_rate=0.1", "tracking.enabled=false", "hydra/launcher=basic"
    )
    assert "best (*)" in output
    assert not (lab.folder / "runs.db").exists()


BAD_INPUT = {
    "network.depth=0": "error: network.depth is 0, it must be a whole number of at least 1",
    "network.depth=2.5": "Value '2.5' of type 'float' could not be converted to Integer; full_key: network.depth",
    "network.dpth=3": "Key 'dpth' not in 'NetworkConfig'; full_key: network.dpth; allowed: depth, width",
    "optimizer=adam": "error: optimizer=adam sets no key: did you mean optimizer.name=adam? optimizer has the keys name",
    "network=residual": "error: network=residual sets no key; network has the keys depth, width, kind, activation",
    "training=100": "error: training=100 sets no key; training has the keys epochs, batch_size",
    "dataset=nothing": "Could not find 'dataset/nothing'; Available options in 'dataset':; blobs; breast_cancer",
    "training.batch_size=5000": "error: training.batch_size is 5000, it must be null or 1 to 1437",
    "tracking.uri=http://127.0.0.1:9": "error: tracking.uri is 'http://127.0.0.1:9', which does not answer",
    "hydra.run.dir=/dev/null/x": "error: hydra.run.dir is '/dev/null/x', but /dev/null is not a folder that can be written to",
}


@pytest.mark.parametrize("bad", BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_made(lab, bad):
    output = lab.run(bad, status=1)
    assert BAD_INPUT[bad] in output
    assert len(output.splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


def test_help_names_what_every_table_has(lab):
    output = " ".join(lab.run("--help", status=0).split())
    for table in (KINDS, ACTIVATIONS, INITIALIZERS, PARAMETRIZATIONS, OPTIMIZERS, SCHEDULES, LOSSES):
        assert f"One of {', '.join(table)}." in output


@pytest.mark.parametrize("bad", ["optimizer.learning_rate=0.1,-1", "optimizer=adam", "hydra.sweep.dir=/dev/null/x"])
def test_a_sweep_with_one_bad_job_starts_none(lab, bad):
    output = lab.run("-m", bad, status=1)
    assert output.startswith("error: ")
    assert len(output.splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


def test_a_run_that_is_terminated_is_killed_in_the_record(lab):
    process = lab.start("training.epochs=100000")
    lab.wait_for("RUNNING")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    (run,) = lab.runs()
    assert run.info.status == "KILLED"
