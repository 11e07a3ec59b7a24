"""Stacked sweeps, as a user types them."""

import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.data import load_task
from experiments.run.stack import plan, train_stack
from tests.experiments.conftest import ALONE, FORKED, _main

# Nothing here looks at pictures or models.
BARE = ["tracking.pictures=none", "tracking.models=none"]
FEW = ["training.epochs=2", "network.width=16", *BARE]


def assert_bits_of_the_jobs_alone(lab, composed, *keys):
    """Every run's history has the bytes of the job trained alone in this process; how many histories there are."""
    alone = set()
    for run in lab.runs():
        (trained,) = train_stack([parse_config(composed(*FEW, *(f"{key}={run.data.params[key]}" for key in keys)))])
        trained.history.save(lab.folder / "alone.npz")
        assert lab.artifact(run, "history.npz").read_bytes() == (lab.folder / "alone.npz").read_bytes()
        alone.add((lab.folder / "alone.npz").read_bytes())
    return len(alone)


@pytest.mark.parametrize(
    "options", [[], pytest.param(["hydra.launcher.n_jobs=1", "hydra.launcher.stack_size=3"], marks=pytest.mark.slow)]
)
def test_a_stacked_sweep_has_the_bits_of_the_jobs_one_at_a_time(lab, composed, options):
    # Every optimizer in both dtypes: test_stack.py.
    axes = ["network.depth=2,33", "optimizer.learning_rate=0.01,1e9", "optimizer.name=gradient_descent,adam", "seed=0,1"]
    lab.run("-m", *FEW, *axes, *options)
    assert assert_bits_of_the_jobs_alone(lab, composed, *(axis.partition("=")[0] for axis in axes)) == len(lab.runs()) == 16
    deep = next(run for run in lab.runs() if run.data.params["network.depth"] == "33")
    with np.load(lab.artifact(deep, "history.npz"), allow_pickle=False) as history:
        assert history["grad_norm"].shape == history["grad_norm_b"].shape == (2 * 23, 33)
    assert len([key for key in deep.data.metrics if key.startswith("grad_norm/W")]) == 12


@pytest.mark.slow
def test_a_stacked_sweep_over_kinds_has_the_bits_of_the_jobs_one_at_a_time_and_is_reproduced(lab, composed):
    axes = ["network.kind=plain,residual,normalized", "network.depth=2,9", "optimizer.learning_rate=0.01,1e9"]
    lab.run("-m", *FEW, *axes)
    # At depth 2 no block is residual.
    assert assert_bits_of_the_jobs_alone(lab, composed, *(axis.partition("=")[0] for axis in axes)) == 12 - 2
    assert {run.data.tags["outcome"] for run in lab.runs()} >= {"trained", "diverged"}
    (parent,) = lab.runs("sweep")
    assert "12 of 12 runs are identical" in lab.run("--sweep", parent.info.run_id, module="experiments.reproduce")


# Three runs share a stack: each alone, two and one, all.
@pytest.mark.parametrize("size", [1, 2, None])
def test_weights_do_not_depend_on_the_size_of_a_stack(composed, size):
    axes = [(depth, rate, name) for depth in (2, 17) for rate in (0.01, 0.3, 1e6) for name in ("momentum", "nesterov")]
    configs = [
        parse_config(composed(*FEW, f"network.depth={d}", f"optimizer.learning_rate={r}", f"optimizer.name={n}"))
        for d, r, n in axes
    ]
    stacks = plan(configs, [load_task(config) for config in configs], size)
    assert sorted(index for stack in stacks for index in stack) == list(range(len(configs)))
    assert size is None or max(map(len, stacks)) <= size
    for stack in stacks:
        for index, run in zip(stack, train_stack([configs[k] for k in stack]), strict=True):
            (alone,) = train_stack([configs[index]])
            assert run.parameters.tobytes() == alone.parameters.tobytes()
            assert run.history.grad_norm.tobytes() == alone.history.grad_norm.tobytes()


def test_only_runs_that_share_shapes_and_data_are_stacked(composed):
    overrides = [
        "seed=0",
        "dataset.seed=1",
        "network.depth=4",
        "network.kind=residual",
        "training.batch_size=32",
        "dtype=float64",
        "optimizer.name=adam",
    ]
    configs = [parse_config(composed(override)) for override in overrides]
    assert len(plan(configs, [load_task(config) for config in configs])) == len(overrides)
    values = ["optimizer.learning_rate=1", "optimizer.weight_decay=1", "network.gain=2", "network.initializer=glorot"]
    values += ["seed=1", "network.bias_variance=1", "training.loss_bound=9"]
    configs = [parse_config(composed(override)) for override in values]
    assert len(plan(configs, [load_task(config) for config in configs])) == 1


def test_lanes_of_one_seed_are_side_by_side_in_a_stack(composed):
    configs = [
        parse_config(composed(f"optimizer.learning_rate={rate}", f"seed={seed}")) for rate in (0.1, 0.2) for seed in (0, 1, 2)
    ]
    stacks = plan(configs, [load_task(config) for config in configs], 2)
    assert [[configs[k].seed for k in stack] for stack in stacks] == [[0, 0], [1, 1], [2, 2]]


def test_every_job_has_hydras_files_its_log_and_its_place_under_the_parent(lab, tmp_path_factory):
    axes = ["network.depth=2,3", "optimizer.learning_rate=0.1"]
    output = lab.run("-m", *FEW, *axes, ALONE)
    assert "2 trained" in output
    basic = type(lab)(tmp_path_factory.mktemp("basic"))
    basic.run("-m", *FEW, *axes, "hydra/launcher=basic")
    (folder,), (other,) = (list(each.folder.glob("multirun/*/*")) for each in (lab, basic))
    for number in range(2):
        assert "[INFO] - trained: final training loss" in (folder / str(number) / "train.log").read_text()
        for name in ("config.yaml", "overrides.yaml"):
            here, there = (place / str(number) / ".hydra" / name for place in (folder, other))
            assert here.read_text() == there.read_text()
        here, there = (
            yaml.safe_load((place / str(number) / ".hydra/hydra.yaml").read_text())["hydra"] for place in (folder, other)
        )
        assert here["job"] == there["job"]
        assert here["runtime"]["choices"].pop("hydra/launcher") == "stacked"
        assert there["runtime"]["choices"].pop("hydra/launcher") == "basic"
        assert here["runtime"]["choices"] == there["runtime"]["choices"]
        assert here["runtime"]["output_dir"] == str(folder / str(number))
    (parent,) = lab.runs("sweep")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["network.depth"] == "2,3"
    assert {run.data.tags["mlflow.parentRunId"] for run in lab.runs()} == {parent.info.run_id}


def test_curves_of_a_long_run_appear_while_it_trains(lab):
    process = lab.start(
        "-m", "network.depth=9", "optimizer.learning_rate=0.1,0.2", "training.epochs=9000", "tracking.points=200", *BARE
    )
    try:
        # The sweep's own run and a job's.
        lab.wait_for("RUNNING", count=2)
        deadline = time.monotonic() + 60
        points = []
        while not points and time.monotonic() < deadline:
            time.sleep(0.2)
            run = lab.runs()[0]
            points = lab.client().get_metric_history(run.info.run_id, "loss/batch")
        assert run.info.status == "RUNNING"
        steps = [point.step for point in points]
        assert len(steps) > 10
        assert steps == sorted(set(steps))
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_the_children_and_keeps_what_is_finished(lab):
    process = lab.start(
        "-m", "network.depth=2,33", "optimizer.learning_rate=0.1,0.2", "training.epochs=1,20000", "hydra.launcher.n_jobs=3"
    )
    lab.wait_for("FINISHED")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in output
    assert "of 8 runs finished" in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    statuses = [run.info.status for run in lab.runs()]
    assert set(statuses) == {"FINISHED", "KILLED"}
    (parent,) = lab.runs("sweep")
    assert parent.info.status == "KILLED"
    for run in [*lab.runs(), parent]:
        assert run.data.tags.get("reason") == (None if run.info.status == "FINISHED" else "interrupted by SIGINT")
    assert {run.data.params["network.depth"] for run in lab.runs()} == {"2", "33"}
    assert all(run.data.params.keys() == lab.runs()[0].data.params.keys() for run in lab.runs())


@pytest.mark.slow
def test_a_killed_worker_loses_its_stack_alone_and_says_which(lab):
    axes = ["network.depth=2,3,33", "optimizer.learning_rate=0.1,0.2", "network.width=16"]
    process = lab.start("-m", *axes, "training.epochs=1000", ALONE, *BARE)
    # The sweep's own run and those of the deepest stack, the first.
    lab.wait_for("RUNNING", count=3)
    max(psutil.Process(process.pid).children(), key=lambda child: child.cpu_times().user).kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "lost: job 4 (depth 33, rate 0.1): its process was killed" in output
    assert "lost: job 5 (depth 33, rate 0.2): its process was killed" in output
    assert "4 of 6 runs finished" in output
    assert sorted(run.info.status for run in lab.runs()) == ["FINISHED"] * 4 + ["KILLED"] * 2
    (parent,) = lab.runs("sweep")
    assert parent.info.status == "FAILED"
    note = parent.data.tags["mlflow.note.content"].splitlines()
    assert note[0].startswith("**6 runs: ")
    assert note[0].endswith(", 2 lost**")
    assert "- lost: job 4 (depth 33, rate 0.1): its process was killed" in note
    lost = [run.data for run in lab.runs() if run.info.status == "KILLED"]
    assert {run.params["optimizer.learning_rate"] for run in lost} == {"0.1", "0.2"}
    assert all(run.tags["reason"].startswith("its process was killed") for run in lost)


def failing(*command):
    """The command in this forked process, in which no network deeper than 2 trains."""
    from experiments.run import stack

    def train_stack(configs, *arguments):
        if configs[0].network.depth > 2:
            raise UserError(f"depth {configs[0].network.depth} is too much")
        return train(configs, *arguments)

    train, stack.train_stack = stack.train_stack, train_stack
    _main(*command)


@pytest.mark.parametrize(("depths", "outcomes"), [("3,4", "2 failed"), ("2,3,4", "1 trained, 2 failed")])
def test_a_sweep_in_which_runs_fail_says_so_and_why(lab, depths, outcomes):
    axes = [*FEW, "dataset=iris", f"network.depth={depths}", "optimizer.learning_rate=0.1"]
    output = lab.folder.with_name(f"{lab.folder.name}.output")
    # In the command's own process.
    command = ("experiments.train", ("-m", *axes, "hydra/launcher=basic"), lab.folder, lab.environ, output)
    process = FORKED.Process(target=failing, args=command)
    process.start()
    process.join(120)
    assert process.exitcode == 1, output.read_text()
    (parent,) = lab.runs("sweep")
    assert (parent.info.status, parent.data.tags["reason"]) == ("FAILED", "depth 3 is too much")
    job = depths.count("2")
    assert parent.data.tags["mlflow.note.content"].splitlines() == [
        f"**{len(lab.runs())} runs: {outcomes}**",
        "",
        f"- failed: job {job} (depth 3): depth 3 is too much",
        f"- failed: job {job + 1} (depth 4): depth 4 is too much",
    ]
    if job:
        # Typed again, it is as any other.
        lab.run("-m", *axes, ALONE)
        (parent,) = lab.runs("sweep")
        assert parent.info.status == "FINISHED"
        assert "reason" not in parent.data.tags
        assert parent.data.tags["mlflow.note.content"].startswith("**3 runs: ")
        assert "failed" not in parent.data.tags["mlflow.note.content"]


def test_a_sweep_whose_processes_are_all_killed_says_so(lab):
    process = lab.start("-m", "network.depth=33", "optimizer.learning_rate=0.1,0.2", "training.epochs=20000", *BARE)
    lab.wait_for("RUNNING", count=3)
    for child in psutil.Process(process.pid).children():
        child.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.count("lost: job ") == 2
    (parent,) = lab.runs("sweep")
    assert parent.info.status == "FAILED"
    first, _, *lost = parent.data.tags["mlflow.note.content"].splitlines()
    assert first == "**2 runs: 2 lost**"
    assert [line.partition(": its process was killed")[0] for line in lost] == [
        "- lost: job 0 (rate 0.1)",
        "- lost: job 1 (rate 0.2)",
    ]


@pytest.mark.slow
def test_two_sweeps_may_write_into_one_new_store_at_once(lab):
    axes = ["network.depth=2,3", "optimizer.learning_rate=0.1,0.2,0.3"]
    processes = [lab.start("-m", *FEW, *axes, f"seed={seed}", new_store=True) for seed in (0, 1)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert [run.info.status for run in lab.runs()] == ["FINISHED"] * 12
    assert len(lab.runs("sweep")) == 2


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ("hydra.launcher.n_jobs=0", "error: hydra.launcher.n_jobs is 0, it must be -1 (all cores) or at least 1"),
        ("hydra.launcher.stack_size=0", "error: hydra.launcher.stack_size is 0, it must be null or at least 1"),
        ("hydra.launcher.n_jobs=many", "Value 'many' of type 'str' could not be converted to Integer"),
        ("network.depth=2,0", "error: network.depth is 0"),
        ("dataset=iris,nothing", "Could not find 'dataset/nothing'"),
    ],
)
def test_bad_input_starts_nothing(lab, bad, line):
    output = lab.run("-m", bad, status=1)
    assert line in output
    assert len(output.splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


@pytest.mark.slow
def test_a_wheel_finds_its_plugins_and_its_configs(lab):
    project = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", lab.folder, project], check=True)
    (wheel,) = lab.folder.glob("*.whl")
    installed = lab.folder / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    # Without `site`, what an editable install adds to the path is not there.
    environ = {"PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}", "DO_NOT_TRACK": "true", "PATH": ""}
    command = [sys.executable, "-S", "-m", "experiments.train", "-m", *FEW, "network.depth=2,3", "optimizer.learning_rate=0.1"]
    done = subprocess.run(command, cwd=lab.folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 trained" in done.stdout
    assert (lab.folder / "mlflow.db").exists()
