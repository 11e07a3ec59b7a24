"""A sweep's record as a whole: compared with another, exported, deleted."""

import csv

import numpy as np
import pytest

from experiments import compare, store
from experiments.record.reading import Archive
from experiments.record.removal import delete
from experiments.record.tracking import Store
from experiments.run.config import SweepConfig, TrackingConfig, UserError
from tests.experiments.conftest import ALONE, Lab

TINY = [
    "dataset=iris",
    "training.epochs=1",
    "network.width=8",
    "optimizer.learning_rate=0.1,1e30",
    "tracking.pictures=none",
    ALONE,
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A store with two sweeps: of seed 0, and of one more depth with weight decay."""
    lab = Lab(tmp_path_factory.mktemp("swept"))
    lab.run("-m", *TINY, "network.depth=2,3")
    lab.run("-m", *TINY, "network.depth=2,3,4", "network.initializer=glorot", "tracking.models=none")
    lab.first, lab.second = (run.info.run_id for run in lab.runs("sweep"))
    return lab


def compared(swept, left, right, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", left, right, "--uri", swept.uri])
    compare.main.__wrapped__()
    return capsys.readouterr().out.splitlines()


def test_two_sweeps_are_laid_side_by_side(swept, tmp_path, monkeypatch, capsys):
    lines = compared(swept, swept.first, swept.second, tmp_path, monkeypatch, capsys)
    assert lines[0] == "network.initializer: 'he' and 'glorot'"
    assert lines[1].split() == [*("network.depth", "optimizer.learning_rate", "loss/train", "A", "loss/train", "B", "histories")]
    rows = [line.split()[:4] for line in lines[2:-1]]
    finals = {
        (run.data.tags["mlflow.parentRunId"], run.data.params["network.depth"]): run.data.metrics["final/loss_train"]
        for run in swept.runs()
        if run.data.params["optimizer.learning_rate"] == "0.1"
    }
    for depth in ("2", "3"):
        both = [f"{finals[sweep, depth]:.4g}" for sweep in (swept.first, swept.second)]
        assert [depth, "0.1", *both] in rows
        assert [depth, "1e+30", "nan", "nan"] in rows
    assert all("differ from step 0" in line for line in lines[2:-1])
    assert lines[-1] == "4 pairs of runs, 0 identical; 0 runs are in A alone, 2 in B alone"


def test_a_sweep_beside_itself_is_identical(swept, tmp_path, monkeypatch, capsys):
    lines = compared(swept, swept.first, swept.first, tmp_path, monkeypatch, capsys)
    assert lines[-1] == "4 pairs of runs, 4 identical; 0 runs are in A alone, 0 in B alone"


def test_all_curves_are_a_csv(swept, tmp_path):
    file = tmp_path / "curves.csv"
    count = store.export(swept.first, file, swept.uri)
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == count
    assert list(rows[0]) == ["run_id", "network.depth", "optimizer.learning_rate", "step", "metric", "value"]
    for run in swept.runs():
        own = [row for row in rows if row["run_id"] == run.info.run_id]
        if run.data.tags["mlflow.parentRunId"] != swept.first:
            assert not own
            continue
        assert {row["network.depth"] for row in own} == {run.data.params["network.depth"]}
        with np.load(swept.artifact(run, "history.npz")) as history:
            for metric, values in (("loss/batch", history["loss"]), ("grad_norm/W_02", history["grad_norm"][:, 1])):
                exported = {int(row["step"]): float(row["value"]) for row in own if row["metric"] == metric}
                assert exported == {step: float(value) for step, value in enumerate(values) if np.isfinite(value)}


def wrong(swept, tmp_path):
    """What is wrong -> the call, and the line that it ends in."""
    single = swept.runs()[0].info.run_id
    there = tmp_path / "there.csv"
    there.write_text("mine")
    return {
        "a sweep and a run": (("compare", swept.first, single), f"run {single} is no sweep"),
        "no such sweep": (("store", "export", "nothing", str(tmp_path / "new.csv")), "error: run 'nothing': "),
        "a file that is there": (("store", "export", swept.first, str(there)), "there already: name another one"),
        "no folder": (("store", "export", swept.first, str(tmp_path / "none" / "new.csv")), "No such file or directory"),
        "delete nothing": (("store", "delete", "nothing"), "error: run 'nothing': "),
        "no file": (("store", "export", swept.first), "export takes SWEEP_ID and FILE.csv"),
    }


def test_what_can_be_got_wrong_is_one_line(swept, tmp_path, monkeypatch, capsys):
    for (name, *arguments), line in wrong(swept, tmp_path).values():
        monkeypatch.setattr("sys.argv", [name, *arguments, "--uri", swept.uri])
        with pytest.raises(SystemExit) as left:
            {"compare": compare, "store": store}[name].main.__wrapped__()
        assert line in f"{left.value.code} {capsys.readouterr().err}"
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["there.csv"]


def test_a_sweep_is_deleted_whole(lab):
    lab.run("-m", *TINY, "network.depth=2", "training.epochs=1")
    lab.run("-m", *TINY, "network.depth=3", "tracking.register=digits")
    (first, second), client = lab.runs("sweep"), lab.client()
    others = {run.info.run_id for run in lab.runs() if run.data.tags["mlflow.parentRunId"] == second.info.run_id}
    told = delete(first.info.run_id, lab.uri)
    assert told.startswith("3 runs and 1 model deleted; mlflow runs restore --run-id ID")
    assert {run.info.run_id for run in [*lab.runs(), *lab.runs("sweep")]} == others | {second.info.run_id}
    (model,) = client.search_logged_models(["1"])
    assert model.source_run_id in others
    assert "3 runs and 0 models deleted (the registered m-" in delete(second.info.run_id, lab.uri)
    assert not [*lab.runs(), *lab.runs("sweep")]
    assert len(client.search_logged_models(["1"])) == 1
    with pytest.raises(UserError, match="was deleted: mlflow runs restore"):
        delete(first.info.run_id, lab.uri)


def test_a_sweep_that_is_running_is_not_deleted(lab, tmp_path):
    opened = Store(TrackingConfig(uri=lab.uri))
    sweep, _ = opened.begin_sweep("a sweep", {"kind": "sweep"}, "f", SweepConfig())
    job = opened.begin("a job", {"kind": "run", "job": "0"}, sweep.run_id)
    with pytest.raises(UserError, match="is RUNNING, nothing is deleted"):
        delete(sweep.run_id, lab.uri)
    sweep.end()
    with pytest.raises(UserError, match=f"run {job.run_id} is RUNNING, nothing is deleted"):
        delete(sweep.run_id, lab.uri)
    job.end("KILLED")
    assert "2 runs and 0 models deleted" in delete(sweep.run_id, lab.uri)
    with pytest.raises(UserError, match="has no sweep, run or map yet"):
        Archive(lab.uri, tmp_path).page(None)
