"""python -m experiments.report: a sweep and a run alone as one file, a run as a GIF, and what cannot be written."""

import json
import re

import pytest

from tests.experiments.conftest import ALONE, Lab

AXES = ["network.depth=2,3", "optimizer.learning_rate=0.1,1e6"]
SMALL = ["dataset=iris", "network.width=8", "training.epochs=2", "tracking.pictures=none", "tracking.models=none"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("reported"))
    lab.run("-m", *SMALL, *AXES, ALONE)
    return lab


def report(lab, *arguments, status=0):
    return lab.run(*arguments, module="experiments.report", status=status)


def content(text):
    return json.loads(re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_the_command_writes_what_the_sweep_has_logged(swept):
    (parent,) = swept.runs("sweep")
    assert report(swept).startswith("report.html (")
    text = (swept.folder / "report.html").read_text()
    assert text == swept.artifact(parent, "report.html").read_text()
    found = content(text)
    recorded = sorted(swept.runs(), key=lambda run: int(run.data.tags["job"]))
    assert [(run["id"], run["outcome"]) for run in found["runs"]] == [
        (run.info.run_id, run.data.tags["outcome"]) for run in recorded
    ]
    assert found["commands"][0]["types"] == (
        "python -m experiments.train -m '~experiment' dataset=iris network.depth=2,3 network.width=8 "
        "optimizer.learning_rate=0.1,1000000.0 training.epochs=2 tracking.pictures=none tracking.models=none"
    )
    # Where it is recorded is nobody's concern to whom it is handed.
    assert str(swept.folder) not in text


def test_one_run_of_a_sweep_is_a_page_of_its_own(swept):
    run = swept.runs()[0]
    report(swept, run.info.run_id, "-o", "run.html")
    found = content((swept.folder / "run.html").read_text())
    assert [run["id"] for run in found["runs"]] == [run.info.run_id]
    assert found["keys"] == []
    assert [line["types"] for line in found["commands"][1:]] == [
        f"python -m experiments.{command} {run.info.run_id}" for command in ("reproduce", "report")
    ]


def test_a_run_is_a_movie(swept):
    report(swept, "--movie", swept.runs()[0].info.run_id)
    assert (swept.folder / "movie.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-o", "nowhere/report.html"], "--output is 'nowhere/report.html', which is no file that can be written"),
        (["-o", "."], "--output is '.', which is no file that can be written"),
        (["-o", "/dev/null/report.html"], "--output is '/dev/null', but /dev/null is not a folder that can be written to"),
        (["nothing"], "run 'nothing': "),
        (["--uri", "sqlite:///nothing.db"], "but that file is not there"),
        (["--movie", "SWEEP"], "is a sweep, it must be a run that trains"),
    ],
)
def test_what_cannot_be_written_is_one_line(swept, arguments, line):
    arguments = [swept.runs("sweep")[0].info.run_id if argument == "SWEEP" else argument for argument in arguments]
    before = sorted(swept.folder.iterdir())
    output = report(swept, *arguments, status=1)
    assert output.startswith("error: ")
    assert line in output
    assert len(output.splitlines()) == 1
    assert sorted(swept.folder.iterdir()) == before


def test_a_movie_is_of_a_run_that_is_named(swept):
    assert "--movie takes the id of a run" in report(swept, "--movie", status=2)
