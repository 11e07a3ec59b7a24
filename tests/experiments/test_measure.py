"""The measure that a sweep judges its runs by: table, best run, model and dashboard follow it."""

import csv

import pytest

from experiments import results
from experiments.run.composition import parse_config
from experiments.run.job import Result
from experiments.run.stack import train_stack
from tests.experiments.conftest import ALONE
from tests.experiments.record.test_view import state

# The larger the rate, the smaller the training loss; the smallest is best at what is held out, and 1e6 diverges.
SWEEP = [
    *("dataset=diabetes", "training.epochs=60", "network.width=16", "optimizer.learning_rate=0.01,0.3,1e6"),
    *("network.depth=3", "tracking.pictures=none"),
]


def table(lab):
    """The rows of the sweep's own file: measure, outcome."""
    (parent,) = lab.runs("sweep")
    with lab.artifact(parent, "table.csv").open() as lines:
        rows = list(csv.reader(lines))
    return rows[0][-2], [row[-2] for row in rows[1:]]


@pytest.mark.parametrize("launcher", ["stacked", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_sweep_that_is_typed_again_with_another_measure_is_judged_anew_and_not_trained(lab, launcher):
    own = [ALONE] if launcher == "stacked" else [f"hydra/launcher={launcher}"]
    first = lab.run("-m", *SWEEP, *own)
    assert "best (*): 0.1263 at optimizer.learning_rate=0.3;" in first
    assert table(lab)[0] == "final/loss_train"
    runs = {run.info.run_id: run for run in lab.runs()}
    output = lab.run("-m", *SWEEP, *own, "sweep.measure=r2/validation", "tracking.register=progression")
    assert "3 of 3 runs are in the record already" in output
    assert "final validation r2, network.depth down, optimizer.learning_rate across" in output
    frame, histories = results.load(None, lab.uri)
    assert set(frame["run_id"]) == set(runs)
    values = [history.measures["r2/validation"][-1] for history in histories]
    assert f"best (*): {values[0]:.4g} at optimizer.learning_rate=0.01;" in output
    assert values[0] > values[1]
    assert table(lab) == ("final/r2_validation", [str(float(values[0])), str(float(values[1])), "-inf"])
    best, (parent,) = runs[frame["run_id"][0]], lab.runs("sweep")
    (version,) = lab.client().search_model_versions("name = 'progression'")
    assert version.run_id == best.info.run_id
    note = parent.data.tags["mlflow.note.content"]
    assert f"Best run: final validation r2 **{values[0]:.4g}** at optimizer.learning_rate=0.01" in note
    assert parent.data.metrics["final/loss_train"] == best.data.metrics["final/loss_train"]
    view = state(lab.client().get_experiment("1").tags[f"mlflow.sharedViewState.{parent.info.run_id}"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`final/r2_validation`", False)
    assert [run.data.tags.get("mlflow.loggedImages") for run in lab.runs()].count("True") == 1
    header, *rows = lab.run(parent.info.run_id, parent.info.run_id, module="experiments.compare").splitlines()[:4]
    assert [header.count(f"{name} {side}") for name in ("loss/train", "r2/validation") for side in "AB"] == [1] * 4
    assert rows[0].split()[-3:] == [f"{values[0]:.4g}"] * 2 + ["identical"]
    lab.run(module="experiments.report")
    assert (lab.folder / "report.html").read_bytes() == lab.artifact(parent, "report.html").read_bytes()


def test_a_run_alone_ends_with_its_measure(lab):
    output = lab.run("dataset=iris", "training.epochs=3", "sweep.measure=accuracy/train", *SWEEP[-2:])
    (run,) = lab.runs()
    assert f": final training accuracy {run.data.metrics['final/accuracy_train']:.4g}\n" in output


@pytest.mark.parametrize(("measure", "worst"), [("loss/validation", "inf"), ("accuracy/validation", "-inf")])
def test_a_job_returns_the_last_value_of_its_measure_and_the_worst_where_it_diverged(composed, measure, worst):
    common = ["dataset=iris", "training.epochs=3", f"sweep.measure={measure}"]
    configs = [parse_config(composed(*common, f"optimizer.learning_rate={rate}")) for rate in (0.1, 1e30)]
    fine, diverged = train_stack(configs)
    assert float(Result.from_trained(fine)) == fine.history.measures[measure][-1]
    assert str(float(Result.from_trained(diverged))) == worst


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["dataset=diabetes", "sweep.measure=accuracy/validation"],
            "error: sweep.measure is 'accuracy/validation', which diabetes has not, "
            "allowed: loss/train, loss/validation, r2/train, r2/validation",
        ),
        (
            ["-m", "dataset=iris,diabetes", "sweep.measure=r2/train"],
            "error: sweep.measure is 'r2/train', which iris has not, "
            "allowed: loss/train, loss/validation, accuracy/train, accuracy/validation",
        ),
        (
            ["-m", "sweep.measure=loss"],
            "error: sweep.measure 'loss' is unknown, "
            "allowed: loss/train, loss/validation, accuracy/train, accuracy/validation, r2/train, r2/validation",
        ),
        (
            ["-m", "sweep.measure=loss/train,loss/validation"],
            "error: sweep.measure differs between job 0 and job 1: 'loss/train' and 'loss/validation'; "
            "a sweep is recorded as one, it must be the same",
        ),
    ],
)
def test_a_measure_that_cannot_be_is_one_line_before_anything_is_made(lab, arguments, line):
    assert lab.run(*arguments, status=1).splitlines() == [line]
    assert not list(lab.folder.iterdir())
