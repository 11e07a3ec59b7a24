"""Runs trained again from their record alone."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import experiments.compare
import experiments.reproduce
from experiments.record.reading import Archive
from experiments.run import stack
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.machine import PORTABLE_VARIABLES
from experiments.run.trust import from_record

# Nothing here looks at pictures or models.
FEW = ["training.epochs=2", "network.width=8", "tracking.pictures=none", "tracking.models=none"]
AXES = [
    "network.depth=1,5",
    "optimizer.learning_rate=0.1,1e6",
    "optimizer.name=adam",
    "dtype=float32,float64",
    "dataset=digits,diabetes",
]
NEWER = "X86_V4 AVX512_ICL AVX512_SPR"
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    from tests.experiments.conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("swept"))
    lab.run("-m", *FEW, *AXES, "hydra.launcher.n_jobs=1")
    return lab


@pytest.fixture
def one(lab):
    """A store with one run of its own."""
    lab.run("network.depth=5", "optimizer.learning_rate=0.1", *FEW)
    (run,) = lab.runs()
    return lab, run


def again(lab, *arguments, status=0):
    return lab.run(*arguments, module="experiments.reproduce", status=status)


def test_a_whole_sweep_is_reproduced_bit_for_bit(swept):
    (parent,) = swept.runs("sweep")
    # Each of its runs twice: as the sweep's, and as one of the experiment's.
    output = again(swept, "--sweep", parent.info.run_id, "--all", "depth laboratory")
    assert "32 of 32 runs are identical" in output
    assert output.count("  identical") == 32


def test_a_changed_value_of_the_stored_config_is_not_identical(one):
    lab, run = one
    file = lab.artifact(run, "config.yaml")
    config = yaml.safe_load(file.read_text())
    config["optimizer"]["learning_rate"] = float(np.nextafter(0.1, 1) + 1e-8)
    file.write_text(yaml.safe_dump(config))
    output = again(lab, run.info.run_id, status=1)
    # Step 0 comes before any update.
    assert "differs from step 1: " in output
    assert "the fingerprint differs" in output
    assert "0 of 1 runs are identical" in output


def test_a_record_from_before_there_were_kinds_is_of_a_plain_network(one):
    lab, run = one
    file = lab.artifact(run, "config.yaml")
    config = yaml.safe_load(file.read_text())
    assert config["network"].pop("kind") == "plain"
    file.write_text(yaml.safe_dump(config))
    assert "1 of 1 runs are identical" in again(lab, run.info.run_id)


def test_the_last_bit_of_one_initial_weight_is_found_at_its_first_step(one, monkeypatch, tmp_path):
    lab, run = one
    made = stack._network

    def perturbed(configs, task):
        network = made(configs, task)
        network.parameters[:, -12] = np.nextafter(network.parameters[:, -12], np.float32(np.inf))
        return network

    monkeypatch.setattr(stack, "_network", perturbed)
    recorded = Archive(lab.uri, tmp_path).run(run.info.run_id)
    kept = recorded.files()
    config = from_record(kept.config)
    task = stack.load_task(config)
    (trained,) = stack.train_stack([config], task)
    verdict = experiments.reproduce.judge(recorded, kept, trained, task, None)
    assert not verdict.holds
    assert re.match(r"differs from step \d+: (loss/batch|grad_norm/[Wb]_0\d) is", verdict.line)
    assert "units in the last place apart" in verdict.line
    assert experiments.reproduce.judge(recorded, kept, trained, task, 0.1).line.startswith(
        "within 0.1: losses and norms are at most"
    )


def test_equal_bits_under_another_fingerprint_are_not_identical_and_one_such_run_is_enough(one, tmp_path, capsys):
    lab, run = one
    recorded = Archive(lab.uri, tmp_path).run(run.info.run_id)
    kept = recorded.files()
    config = from_record(kept.config)
    task = stack.load_task(config)
    (trained,) = stack.train_stack([config], task)
    other = replace(recorded, tags={**recorded.tags, "fingerprint": "0" * 64})
    same, verdict = (experiments.reproduce.judge(each, kept, trained, task, None) for each in (recorded, other))
    assert (same.holds, same.line) == (True, "identical")
    assert (verdict.holds, verdict.line) == (False, "the bits are identical, the record is not")
    assert not experiments.reproduce._print_verdicts([same, verdict], None)
    assert "1 of 2 runs are identical" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["history.npz", "parameters.npy"])
def test_an_edited_file_is_never_taken_for_the_record(one, name):
    lab, run = one
    file = lab.artifact(run, name)
    content = bytearray(file.read_bytes())
    # A bit of a number, past the headers. A zip has a checksum of its own.
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    output = again(lab, run.info.run_id, status=1)
    assert "is not what was recorded" in output or "is damaged" in output
    assert "Traceback" not in output


HOSTILE = [
    ({"dataset": {"loader": {"_target_": "os.system", "command": "touch sprung"}}}, "may name only a loader of sklearn.datasets"),
    (
        {"dataset": {"loader": {"_target_": "sklearn.datasets._base.os.system", "command": "touch sprung"}}},
        "may name only a loader",
    ),
    (
        {"dataset": {"loader": {"_target_": "sklearn.datasets.load_digits", "n_class": {"_target_": "os.system"}}}},
        "dataset.loader.n_class._target_ is 'os.system', a record may name nothing to be called",
    ),
    (
        {"network": {"_target_": "os.system", "command": "touch sprung"}},
        "network._target_ is 'os.system', a record may name nothing",
    ),
    ({"_target_": "os.system"}, "_target_ is 'os.system', a record may name nothing"),
    ({"network": {"activation": "${oc.env:HOME}"}}, "a record may not refer to anything outside it"),
    ({"dataset": {"loader": {"_target_": "sklearn.datasets.fetch_california_housing", "data_home": "."}}}, "data_home is set"),
    ({"netwerk": {"depth": 3}}, "'netwerk' not in 'Config'"),
    ({"network": {"depth": 0}}, "network.depth is 0, it must be"),
    ({"network": {"depth": "deep"}}, "Value 'deep' of type 'str' could not be converted to Integer"),
]


def edited(config, edit):
    return {
        **config,
        **{key: {**config.get(key, {}), **value} if isinstance(value, dict) else value for key, value in edit.items()},
    }


@pytest.mark.parametrize(("edit", "line"), HOSTILE)
def test_a_hostile_config_is_refused_before_anything_is_called(composed, monkeypatch, tmp_path, edit, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(line)):
        from_record(edited(asdict(parse_config(composed())), edit))
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_record_executes_nothing(one):
    lab, run = one
    file = lab.artifact(run, "config.yaml")
    honest = yaml.safe_load(file.read_text())
    for edit, line in HOSTILE[:3]:
        file.write_text(yaml.safe_dump(edited(honest, edit)))
        output = again(lab, run.info.run_id, status=1)
        assert line in output
        assert "Traceback" not in output
        assert not (lab.folder / "sprung").exists()


def test_a_hostile_record_is_one_line_and_sends_the_terminal_nothing_else(one, tmp_path, capsys):
    lab, run = one
    lab.client().set_tag(run.info.run_id, "mlflow.runName", "\x1b]0;owned\x07\u202ename")
    edits = [
        ("config.yaml", lambda text: text.replace("width: 8", "width: 1000000000"), "which does not fit: it takes"),
        ("config.yaml", lambda text: text.replace("depth: 5", "depth: 1000000000"), "which does not fit: it takes"),
        ("config.yaml", lambda text: text.replace("seed: 0", f"seed: {10**400}"), "the record's config does not fit: "),
        ("config.yaml", lambda text: text.replace("depth: 5", "depth: &a [*a]"), "config.yaml is damaged: "),
        ("config.yaml", lambda text: text.replace("depth: 5", f"depth: {'[' * 1000}"), "config.yaml is damaged: "),
        ("config.yaml", lambda text: text.replace("relu", '"\\e[2J"'), r"network.activation '\x1b[2J' is unknown"),
        ("environment.json", lambda text: "[" * 10**5, "environment.json is damaged: "),
        ("parameters.npy", lambda text: "PK", "parameters.npy is damaged: "),
    ]
    for name, edit, line in edits:
        file = lab.artifact(run, name)
        honest = file.read_text("latin-1")
        assert edit(honest) != honest
        file.write_text(edit(honest), "latin-1")
        recorded = Archive(lab.uri, tmp_path).run(run.info.run_id)
        verdicts = experiments.reproduce.reproduce([recorded], [], None)
        file.write_text(honest, "latin-1")
        assert not experiments.reproduce._print_verdicts(verdicts, None)
        first, last = capsys.readouterr().out.splitlines()
        assert line in first
        assert r"\x1b]0;owned\x07\u202ename" in first
        assert last == "0 of 1 runs are identical"
        assert (first + last).isprintable()


def test_a_loader_of_the_user_s_own_is_called_where_its_module_is_allowed(lab):
    (lab.folder / "mine.py").write_text("from sklearn.datasets import load_iris\n\ndef load(**more):\n    return load_iris()\n")
    lab.run("dataset=iris", "dataset.loader._target_=mine.load", *FEW)
    (run,) = lab.runs()
    assert "--allow mine.load lets it be called" in again(lab, run.info.run_id, status=1)
    assert "1 of 1 runs are identical" in again(lab, run.info.run_id, "--allow", "mine.load")


def test_another_thread_count_and_commit_are_named(one):
    lab, run = one
    file = lab.artifact(run, "environment.json")
    recorded = json.loads(file.read_text())
    assert recorded["threads"] == "1"
    file.write_text(json.dumps({**recorded, "threads": "8", "git.commit": "f" * 40, "blas_kernel": "Katmai"}))
    history = lab.artifact(run, "config.yaml")
    config = yaml.safe_load(history.read_text())
    config["seed"] = 9
    history.write_text(yaml.safe_dump(config))
    output = again(lab, run.info.run_id, status=1)
    assert "may explain it: threads 8, here 1" in output
    assert f"may explain it: git.commit {'f' * 40}, here" in output
    assert "may explain it: blas_kernel Katmai, here" in output


def started(lab, module, *arguments, status=0, **environ):
    """Its output, from a process with these variables, as a user starts one."""
    own = {key: value for key, value in lab.environ.items() if key not in PORTABLE_VARIABLES}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=lab.folder, env={**own, **environ}, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def surroundings(lab, run):
    """The kernel and the targets that trained it."""
    recorded = json.loads(lab.artifact(run, "environment.json").read_text())
    return recorded["blas_kernel"], recorded["simd"]


@pytest.mark.slow
def test_runs_of_several_machines_are_each_trained_again_as_recorded(lab):
    run = ["network.depth=9", *FEW]
    # No variable makes a portable run another one, and a native one is what they say.
    started(lab, "experiments.train", *run, OPENBLAS_CORETYPE="Nehalem")
    started(lab, "experiments.train", *run, "machine=native", OPENBLAS_CORETYPE="SandyBridge", NPY_DISABLE_CPU_FEATURES=NEWER)
    started(
        lab, "experiments.train", *run, "machine=native", OPENBLAS_CORETYPE="Nehalem", NPY_DISABLE_CPU_FEATURES=f"X86_V3 {NEWER}"
    )
    runs = lab.runs()
    assert [surroundings(lab, run) for run in runs] == [("Haswell", "X86_V3"), ("Sandybridge", "X86_V3"), ("Nehalem", "")]
    assert len({run.data.tags["trajectory"] for run in runs}) == 3
    assert [run.data.params["machine"] for run in runs] == ["portable", "native", "native"]
    ids = [run.info.run_id for run in runs]
    assert "3 of 3 runs are identical" in started(lab, "experiments.reproduce", *ids)
    compared = started(lab, "experiments.compare", *ids[:2])
    assert "machine: 'portable' and 'native'\n" in compared
    assert "environment blas_kernel: 'Haswell' and 'Sandybridge'\n" in compared


def test_a_run_of_a_processor_that_can_more_is_refused_before_it_is_trained_and_compared_where_asked(one):
    lab, run = one
    file = lab.artifact(run, "environment.json")
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps({**recorded, "blas_kernel": "SkylakeX", "simd": "X86_V3 X86_V4 AVX1024"}))
    output = again(lab, run.info.run_id, status=1)
    assert "it was trained with OpenBLAS's kernel SkylakeX and NumPy's targets X86_V3 X86_V4 AVX1024, which need" in output
    assert "AVX1024; --tolerance compares with what this one has" in output
    assert "may explain" not in output
    output = again(lab, run.info.run_id, "--tolerance", "1e-3", status=0)
    assert "1 of 1 runs are identical or within 0.001" in output


def test_a_record_of_before_there_was_a_choice_is_native(one, tmp_path):
    lab, run = one
    file = lab.artifact(run, "config.yaml")
    config = yaml.safe_load(file.read_text())
    assert config.pop("machine") == "portable"
    file.write_text(yaml.safe_dump(config))
    kept = Archive(lab.uri, tmp_path).run(run.info.run_id).files()
    assert from_record(kept.config).machine == "native"


@pytest.mark.slow
def test_a_clone_at_another_commit_under_another_numpy_names_both(one, tmp_path_factory):
    lab, run = one
    folder = tmp_path_factory.mktemp("elsewhere")
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True)
    git = ["git", "-C", clone, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "another"], check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = [folder / "venv/bin/pip", "install", "--quiet", "--no-deps", "-e", clone, "numpy<2.4.6", "numpy>=2.4"]
    subprocess.run(install, check=True, capture_output=True)
    # All else is this environment's, behind its own.
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    environ = {**os.environ, "MLFLOW_TRACKING_URI": lab.uri, "DO_NOT_TRACK": "true"}
    command = [folder / "venv/bin/python", "-m", "experiments.reproduce", run.info.run_id, "--tolerance", "1e-3"]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "  identical" not in done.stdout:
        assert "may explain it: numpy" in done.stdout
        assert "may explain it: git.commit" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing"], "error: run 'nothing': "),
        (["--all", "nowhere"], "error: experiment 'nowhere' is not in"),
        (["--sweep", "nothing"], "error: sweep 'nothing': "),
    ],
)
def test_what_is_not_there_is_one_line(swept, arguments, line):
    output = again(swept, *arguments, status=1)
    assert line in output
    assert len(output.splitlines()) == 1


def test_a_store_that_is_not_there_is_not_made(lab):
    output = again(lab, "some", status=1)
    assert "but that file is not there" in output
    assert list(lab.folder.iterdir()) == []


def test_a_run_that_is_not_finished_is_not_reproduced(one):
    lab, run = one
    lab.client().set_terminated(run.info.run_id, "KILLED")
    assert f"error: run {run.info.run_id} is KILLED, it must be FINISHED" in again(lab, run.info.run_id, status=1)


def test_compare_says_what_differs_and_from_which_step(swept, tmp_path):
    runs = swept.runs()

    def found(depth, rate, dtype="float32"):
        wanted = {
            "network.depth": depth,
            "optimizer.learning_rate": rate,
            "dtype": dtype,
            "optimizer.name": "adam",
            "dataset.name": "digits",
        }
        (run,) = [run for run in runs if wanted.items() <= run.data.params.items()]
        return run.info.run_id

    def compared(*ids):
        return swept.run(*ids, module="experiments.compare")

    slow, fast = found("5", "0.1"), found("5", "1000000.0")
    output = compared(slow, fast)
    assert "optimizer.learning_rate: 0.1 and 1000000.0" in output
    # The first step's loss and norms come before any update.
    assert "histories differ from step 1: loss/batch" in output
    assert "histories and final parameters are identical" in compared(slow, slow)
    assert "cannot be laid side by side: 46 steps of 5 blocks beside 46 steps of 1" in compared(slow, found("1", "0.1"))
    assert "cannot be laid side by side: float32 beside float64" in compared(slow, found("5", "0.1", "float64"))
    here = Archive(swept.uri, tmp_path).run(slow).files()
    elsewhere = replace(here, environment={**here.environment, "numpy": "1.26"}, diff=here.diff + "+1")
    assert experiments.compare.compare_runs(here, elsewhere) == [
        f"environment numpy: '{np.__version__}' and '1.26'",
        "environment: the code's uncommitted changes differ",
        "histories and final parameters are identical",
    ]


def test_a_record_with_a_bad_loader_raises_before_anything_is_called():
    with pytest.raises(UserError, match="may name only a loader"):
        from_record({"dataset": {"name": "x", "loader": {}}})
