"""What Hydra's language can say, on the command line: it works, or one line says why not."""

import contextlib
import itertools
import shlex
import sqlite3
import sys

import pytest

from experiments import results, train
from tests.experiments.conftest import ALONE, Lab

S = ["dataset=iris", "network.width=8", "training.epochs=1", "tracking.pictures=none", "tracking.models=none"]
LONG = "x" * 260

# What is typed -> the line that it ends with, before anything is made.
REFUSED = {
    "-m --cfg job": "Only one of --run, --multirun, --cfg, --info and --shell_completion can be specified",
    "--resolve": "The --resolve flag can only be used in conjunction with --cfg or --help",
    "experiment=null": "Got NoneType: no group is null, ~GROUP leaves one out; '~experiment' has no preset",
    "-m experiment=null,kinds": "'~experiment' has no preset",
    "-m dataset=null": "Got NoneType: no group is null",
    "-m network.depth=range(3,2)": "has no job: an axis has no value",
    "-m dataset=glob(zzz*)": "dataset=glob(zzz*) has no job: an axis has no value",
    "-m network.depth=interval(2,3)": "is an interval, of which a grid has no values: hydra/sweeper=random",
    "-m hydra.sweeper.max_batch_size=0": "hydra.sweeper.max_batch_size is 0, it must be null or at least 1",
    "-m experiment=catapult,vanishing_tanh": "sweep.study differs between job 0 and job 14: 'catapult' and None",
    "-m tracking.experiment=at-${dataset.name} dataset=iris,wine": "tracking.experiment differs between job 0 and job 1",
    "-m tracking.points=10,20": "tracking.points differs between job 0 and job 1: 10 and 20; a sweep is recorded as one",
    "-m tracking.uri=sqlite:///${hydra:job.num}.db": "tracking.uri differs between job 0 and job 1; a sweep is recorded as one",
    "-m hydra.sweep.dir=m/${hydra:job.name}": "HydraConfig was not set; full_key: hydra.sweep.dir",
    "-m tracking.experiment=${hydra:nothing}": "'${hydra:nothing}': Incompatible value 'None'",
    "tracking.experiment=${hydra:nothing}": "'${hydra:nothing}': Incompatible value 'None'",
    "seed=${oc.env:NOT_SET_ANYWHERE}": "Environment variable 'NOT_SET_ANYWHERE' not found",
    f"hydra.run.dir={LONG}": "xxx'... of 260 bytes, allowed: at most 255",
    f"hydra.run.dir={'ab/' * 1400}": "bytes, allowed: at most 3996 here",
    f"-m hydra.sweep.dir=m/{LONG}": "hydra.sweep.dir has the name 'xxx",
    f"-m hydra.sweep.subdir=${{hydra.job.override_dirname}} tracking.experiment={LONG}": "subdir has the name 'network.depth=2",
    "hydra.job.name=a/b": "hydra.job_logging.handlers.file.filename has the folder ",
    "seed=[1": "seed=[1: no viable alternative at input '[1'",
    "-m seed=1,${oc.env:A": "seed=1,${oc.env:A: ",
    f"seed={'9' * 5000}": "it must be a whole number from 0 to 340282366920938463463374607431768211455",
    f"-m seed=1,{'9' * 5000}": "it must be a whole number from 0 to 340282366920938463463374607431768211455",
    f"optimizer.learning_rate={10**400}": "int too large to convert to float",
    "training.epochs=2000000": "training.epochs is 2000000 and network.depth 3, whose history takes ",
    "network.width=16384": "network.width is 16384 and network.depth 3, whose final parameters take 1.00 GiB: ",
    "-m hydra.job.name=a/b": "/0/a', which is not there",
    f"-m hydra.job.name={LONG}": "filename is 'xxx",
    "hydra.job_logging.root.handlers=[nothing]": "Unable to configure root logger; Unable to add handler 'nothing'",
    "-m hydra.job_logging.root.level=LOUD": "hydra.job_logging cannot be: Unable to configure root logger; Unknown level: 'LOUD'",
    "-m hydra.sweep.subdir=/dev/null/${hydra.job.num}": "hydra.sweep.subdir is '/dev/null/0', but /dev/null is not a folder",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_cannot_be_is_one_line_and_nothing_is_made(typed, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *typed.split()])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    with pytest.raises(SystemExit) as left:
        train.main()
    (line,) = str(left.value).splitlines()
    assert line.startswith("error: ")
    assert len(line) < 3000
    assert REFUSED[typed] in line
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def params(run, *keys):
    return tuple(run.data.params[key] for key in keys)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A sweep in which everything is said in a way of its own, in a folder whose name a shell would read."""
    lab = Lab(tmp_path_factory.mktemp("said") / "a b's")
    lab.folder.mkdir()
    lab.typed = [
        *("-m", *S, "~experiment", "dataset=blobs,moons", "++dataset.loader.n_samples=100,200", "+dataset.loader.shuffle=true"),
        *("network.depth=choice(2)", "optimizer.block_rates=[0.1,0.2],[0.1,0.20],[0.3,0.4]", "optimizer.learning_rate=1e-1"),
        *("tracking.experiment=on-${hydra:job.name}-${now:%f}", "hydra.sweep.subdir=${hydra:job.num}", ALONE),
    ]
    lab.output = lab.run(*lab.typed)
    return lab


def test_what_was_typed_in_any_way_is_trained_and_recorded_by_plain_keys(said):
    assert "12 jobs are 8 different runs: each is trained once" in said.output
    (parent,) = said.runs("sweep")
    keys = ("dataset.name", "dataset.loader.n_samples", "optimizer.block_rates", "network.depth", "optimizer.learning_rate")
    assert params(parent, *keys) == ("blobs,moons", "100,200", "[0.1, 0.2],[0.3, 0.4]", "2", "0.1")
    every = itertools.product(("blobs", "moons"), ("100", "200"), ("[0.1, 0.2]", "[0.3, 0.4]"))
    assert sorted(params(run, *keys[:3]) for run in said.runs()) == sorted(every)
    assert {run.info.status for run in [parent, *said.runs()]} == {"FINISHED"}
    assert len({run.info.experiment_id for run in [parent, *said.runs()]}) == 1
    for rates in ("[0.1, 0.2]", "[0.3, 0.4]"):
        assert f"dataset.name down, dataset.loader.n_samples across (optimizer.block_rates {rates})" in said.output


def test_it_is_read_back_and_reproduced(said):
    (parent,) = said.runs("sweep")
    frame, histories = results.load(parent.info.run_id, said.uri)
    assert list(frame.columns[:3]) == ["dataset.name", "dataset.loader.n_samples", "optimizer.block_rates"]
    assert len(histories) == 8
    assert "8 of 8 runs are identical" in said.run("--sweep", parent.info.run_id, module="experiments.reproduce")


def test_names_of_a_stranger_s_config_are_printable_in_a_frame(said):
    (parent,) = said.runs("sweep")
    file = said.artifact(said.runs()[0], "config.yaml")
    honest = file.read_text()
    file.write_text(honest + '"\\e[2J": ["\\e]0;owned\\a"]\n')
    frame, _ = results.load(parent.info.run_id, said.uri)
    file.write_text(honest)
    assert r"\x1b[2J" in frame.columns
    assert "\x1b" not in frame.to_string()


def test_what_a_sweep_says_to_do_next_can_be_pasted(said):
    (parent,) = said.runs("sweep")
    words = {
        "dashboard": ["experiments.dashboard", parent.info.run_id],
        "report": ["experiments.report", parent.info.run_id],
        "reproduce": ["experiments.reproduce", "--sweep", parent.info.run_id],
    }
    for line, (name, command) in zip(said.output.splitlines()[-3:], words.items(), strict=True):
        assert line.startswith(f"{name}:")
        assert shlex.split(line.partition(":")[2], comments=True) == ["python", "-m", *command, "--uri", said.uri]


def test_a_sweep_typed_again_in_other_words_is_the_same_sweep(lab):
    lab.run("-m", *S, "network.depth=2,3", "optimizer.learning_rate=0.1", ALONE)
    (before,) = lab.runs("sweep")
    lab.client().set_terminated(lab.runs()[0].info.run_id, "KILLED")
    lab.client().set_terminated(before.info.run_id, "KILLED")
    moved = lab.folder / "moved.db"
    with contextlib.closing(sqlite3.connect(lab.folder / "runs.db")) as old, contextlib.closing(sqlite3.connect(moved)) as new:
        old.backup(new)
    lab.uri = f"sqlite:///{moved}"
    again = ["-m", *S[:3], "tracking.pictures=none", "tracking.models=none", "tracking.points=9"]
    again += ["tracking.uri=sqlite:///moved.db"]
    output = lab.run(*again, "++network.depth=range(2,4)", "optimizer.learning_rate=1e-1,0.10", "hydra/launcher=basic")
    assert "1 of 2 runs are in the record already" in output
    (parent,) = lab.runs("sweep")
    assert parent.info.run_id == before.info.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.params == before.data.params
    assert sorted(run.info.status for run in lab.runs()) == ["FINISHED", "FINISHED", "KILLED"]


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stacked", "joblib", "submitit_local"))]
)
def test_jobs_that_change_their_folder_write_into_one_store(lab, launcher, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    told = ["tracking.uri=sqlite:///${oc.env:STORE}", "+hydra.job.env_set.STORE=runs.db", "hydra.job.chdir=true"]
    lab.uri = "sqlite:///runs.db"
    output = lab.run(
        "-m",
        *S,
        *told,
        "network.depth=2,3",
        "optimizer.learning_rate=0.1",
        "tracking.experiment=${now:%f}",
        f"hydra/launcher={launcher}",
    )
    lab.uri = f"sqlite:///{lab.folder / 'runs.db'}"
    assert list(lab.folder.rglob("*.db")) == [lab.folder / "runs.db"]
    assert lab.uri in output
    (parent,) = lab.runs("sweep")
    assert [(run.info.status, run.info.experiment_id) for run in lab.runs()] == [("FINISHED", parent.info.experiment_id)] * 2
    lab.run(*S, *told)
    assert list(lab.folder.rglob("*.db")) == [lab.folder / "runs.db"]
    assert len(lab.runs()) == 3


def test_presets_that_are_swept_are_trained_each_with_its_own_axes(lab):
    axes = ["experiment=kinds,vanishing_tanh", "network.depth=2", "optimizer.learning_rate=0.1"]
    output = lab.run("-m", *S, *axes, "hydra/launcher=basic")
    found = {params(run, "network.kind", "network.activation", "network.initializer") for run in lab.runs()}
    kinds = {(kind, "relu", "he") for kind in ("plain", "residual", "normalized")}
    assert found == kinds | {("plain", activation, "glorot") for activation in ("sigmoid", "tanh")}
    assert len(lab.runs()) == 5
    assert "5 trained" in output
