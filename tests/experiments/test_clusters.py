"""Sweeps on real clusters, as a user types them: a Ray cluster of two nodes, a Dask scheduler with two workers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psutil
import pytest

from experiments.run.machine import PORTABLE_VARIABLES, has_avx2

SCRIPTS = Path(sysconfig.get_path("scripts"))
SMALL = ["training.epochs=2", "network.width=16", "network.depth=2,9", "optimizer.learning_rate=0.01,0.1,1e9"]
# Some seconds of work, in stacks enough that both workers always have one.
LONG = [
    "training.epochs=100",
    "network.width=32",
    "network.depth=5,17,33",
    "optimizer.learning_rate=0.01,0.1,1e9",
    "hydra.launcher.stack_size=1",
]
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def running(*command, log):
    """The command in the background; with it, all that it has started ends."""
    with log.open("w") as output:
        process = psutil.Popen([*map(str, command)], stdout=output, stderr=output, env={**os.environ, **RAY})
    try:
        yield process
    finally:
        all_of_it = [process]
        with contextlib.suppress(psutil.NoSuchProcess):
            all_of_it += process.children(recursive=True)
            process.terminate()
        _, alive = psutil.wait_procs(all_of_it, timeout=20)
        for left in alive:
            left.kill()


def wait_until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} not within {seconds} s"
        time.sleep(0.1)
    return value


@contextlib.contextmanager
def _ray(logs):
    """The address of a Ray cluster of nodes with a core each, and the processes that started them."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as running_nodes:
        for key, value in RAY.items():
            patch.setenv(key, value)
        own = ["--head", f"--port={address.partition(':')[2]}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        started = []
        for name in ("head", "second"):
            log, where = logs / name, own if name == "head" else [f"--address={address}"]
            node = running(SCRIPTS / "ray", "start", "--block", "--num-cpus=1", *where, log=log)
            started.append(running_nodes.enter_context(node))
            wait_until(lambda log=log: "Ray runtime started" in log.read_text(), "a Ray node")
        yield address, started


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """The address of a Ray cluster of two nodes with a core each, and the processes that started them."""
    with _ray(tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


@contextlib.contextmanager
def _dask(logs):
    """The address of a Dask scheduler with two workers, its process, and those that started the workers."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as started:
        command = [SCRIPTS / "dask", "scheduler", "--host", address, "--no-dashboard"]
        scheduler = started.enter_context(running(*command, log=logs / "scheduler"))
        command = [SCRIPTS / "dask", "worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", logs]
        workers = [started.enter_context(running(*command, log=logs / f"worker{k}")) for k in range(2)]
        for k in range(2):
            wait_until(lambda k=k: "Starting established connection" in (logs / f"worker{k}").read_text(), "a Dask worker")
        yield address, scheduler, workers


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory):
    """The address of a Dask scheduler with two workers, and the processes that started those."""
    with _dask(tmp_path_factory.mktemp("dask")) as (address, _, workers):
        yield address, workers


def trajectories(lab):
    """What tells a run -> the hash of its bits; every run is finished, under one parent."""
    runs = lab.runs()
    (parent,) = lab.runs("sweep")
    assert {run.info.status for run in [*runs, parent]} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    keys = ("network.depth", "optimizer.learning_rate")
    return {tuple(run.data.params[key] for key in keys): run.data.tags["trajectory"] for run in runs}


@pytest.fixture(scope="module")
def on_this_machine(tmp_path_factory):
    """on_this_machine(axes) -> the trajectories of that sweep with loky, trained once."""
    from tests.experiments.conftest import Lab

    known = {}

    def trained(axes):
        if tuple(axes) not in known:
            lab = Lab(tmp_path_factory.mktemp("loky"))
            lab.run("-m", *axes)
            known[tuple(axes)] = trajectories(lab)
        return known[tuple(axes)]

    return trained


def on(backend, address=None):
    return [f"hydra.launcher.backend={backend}", *([f"hydra.launcher.address={address}"] if address else [])]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "where"), [("ray", "cluster"), ("dask", "cluster"), ("dask", "this machine")])
def test_a_sweep_has_the_same_bits_on_every_engine(lab, request, on_this_machine, backend, where):
    address = request.getfixturevalue(f"{backend}_cluster")[0] if where == "cluster" else None
    output = lab.run("-m", *SMALL, *on(backend, address))
    assert output.partition("\n\n")[2].startswith("final training loss"), "an engine's own words"
    assert trajectories(lab) == on_this_machine(SMALL)


@pytest.mark.slow
@pytest.mark.skipif(not has_avx2(), reason="no process is portable here")
def test_a_cluster_that_was_started_native_trains_a_portable_sweep(lab, tmp_path, on_this_machine):
    # Whose workers find it out by themselves, on Ray's as on Dask's.
    with contextlib.ExitStack() as started:
        with pytest.MonkeyPatch.context() as patch:
            for name in PORTABLE_VARIABLES:
                patch.delenv(name)
            address, *_ = started.enter_context(_dask(tmp_path))
        lab.run("-m", *SMALL, *on("dask", address))
    assert trajectories(lab) == on_this_machine(SMALL)
    recorded = [json.loads(lab.artifact(run, "environment.json").read_text()) for run in lab.runs()]
    assert {(environment["blas_kernel"], environment["simd"]) for environment in recorded} == {("Haswell", "X86_V3")}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_map_has_the_same_bytes_on_every_engine(lab, request, tmp_path_factory, backend):
    address, _ = request.getfixturevalue(f"{backend}_cluster")
    small = ["trainability=fractal_tanh", "map.resolution=16", "map.tile=8", "training.epochs=20"]
    here = type(lab)(tmp_path_factory.mktemp("here"))
    here.run(*small, module="experiments.trainability")
    lab.run(*small, f"map.backend={backend}", f"map.address={address}", module="experiments.trainability")
    (run,), (run_here,) = lab.runs("map"), here.runs("map")
    for name in ("map.npy", "floor.npy"):
        assert lab.artifact(run, name).read_bytes() == here.artifact(run_here, name).read_bytes()
    assert run.data.tags["fingerprint"] == run_here.data.tags["fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_killed_worker_costs_nothing_but_time(lab, request, on_this_machine, backend):
    address, started = request.getfixturevalue(f"{backend}_cluster")

    def workers():
        """Of each node, the process that trains."""
        children = [node.children(recursive=True) for node in started]
        if backend == "ray":
            return [child for node in children for child in node if child.name().startswith("ray::work")]
        return [max(node, key=lambda child: child.memory_info().rss) for node in children if node]

    process = lab.start("-m", *LONG, *on(backend, address))
    lab.wait_for("RUNNING", 180, count=3)
    at_work = wait_until(lambda: len(found := workers()) == 2 and found, "work on both nodes")
    assert len({child.ppid() for child in at_work}) == 2
    lab.wait_for("FINISHED")
    victim = workers()[-1]
    victim.kill()
    output, _ = process.communicate(timeout=240)
    assert not victim.is_running()
    assert process.returncode == 0, output
    assert "lost" not in output
    assert trajectories(lab) == on_this_machine(LONG)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "number"), [("ray", signal.SIGTERM), ("dask", signal.SIGINT)])
def test_an_interrupted_sweep_leaves_no_run_running_and_no_process(lab, backend, number):
    axes = ["network.depth=2,33", "optimizer.learning_rate=0.1,0.2", "training.epochs=40000"]
    process = lab.start("-m", *axes, *on(backend))
    lab.wait_for("RUNNING", 180, count=3)
    children = wait_until(lambda: psutil.Process(process.pid).children(recursive=True), "workers")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else 128 + number), output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert {run.info.status for run in [*lab.runs(), *lab.runs("sweep")]} == {"KILLED"}


@pytest.mark.slow
def test_an_interrupted_sweep_s_stacks_end_on_a_ray_cluster_too(lab, ray_cluster):
    address, started = ray_cluster
    process = lab.start("-m", "network.depth=33", "optimizer.learning_rate=0.1,0.2", "training.epochs=40000", *on("ray", address))

    def at_work():
        children = [child for node in started for child in node.children(recursive=True)]
        return [child for child in children if child.name().startswith("ray::work")]

    wait_until(at_work, "work")
    lab.wait_for("RUNNING", 180, count=3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    wait_until(lambda: not at_work(), "the end of all work", 20)


# The last test of that cluster.
@pytest.mark.slow
def test_a_ray_head_that_is_killed_is_one_line(lab, ray_cluster):
    address, started = ray_cluster
    axes = ["network.depth=33", "optimizer.learning_rate=0.1,0.2", "training.epochs=40000"]
    process = lab.start("-m", *axes, *on("ray", address))
    lab.wait_for("RUNNING", 180, count=3)
    (head,) = (child for child in started[0].children(recursive=True) if child.name() == "gcs_server")
    head.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("error: the Ray head at ")
    assert "does not answer any more" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert {run.info.status for run in [*lab.runs(), *lab.runs("sweep")]} == {"FAILED"}


@pytest.mark.slow
def test_a_dask_scheduler_that_is_killed_is_one_line_and_costs_nothing_that_is_finished(lab, tmp_path_factory, on_this_machine):
    logs = tmp_path_factory.mktemp("lost")
    with _dask(logs) as (address, scheduler, _):
        process = lab.start("-m", *LONG, *on("dask", address))
        lab.wait_for("FINISHED")
        scheduler.kill()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("error: the Dask scheduler does not answer any more")
    assert "Traceback" not in output
    assert {run.info.status for run in lab.runs()} <= {"FINISHED", "FAILED"}
    lab.run("-m", *LONG)
    finished = [run for run in lab.runs() if run.info.status == "FINISHED"]
    assert {run.data.tags["trajectory"] for run in finished} == {*on_this_machine(LONG).values()}
    assert len(finished) == 9


NOBODY = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (on("slurm"), "error: hydra.launcher.backend 'slurm' is unknown, allowed: loky, ray, dask"),
        (
            on("loky", NOBODY),
            "error: hydra.launcher.address is '127.0.0.1:9', which is for ray and dask: with loky it must be null",
        ),
        (
            ["network.depth=2,0", *on("ray", NOBODY)],
            "error: network.depth is 0, it must be a whole number of at least 1",
        ),
        *(
            pytest.param(on(backend, address), f"error: hydra.launcher.address is '{address}', where no ", marks=pytest.mark.slow)
            for backend, address in [("ray", NOBODY), ("dask", "nonsense")]
        ),
    ],
)
def test_bad_input_is_one_line_within_half_a_minute_and_nothing_is_made(lab, bad, line):
    started = time.monotonic()
    output = lab.run("-m", *bad, status=1)
    assert time.monotonic() - started < 45
    assert line in output
    assert len(output.splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


@pytest.mark.slow
def test_something_else_at_the_address_is_one_line_too(lab):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        output = lab.run("-m", *on("ray", address), status=1)
    assert f"error: hydra.launcher.address is '{address}', where no " in output
    assert len(output.splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_an_engine_that_is_not_installed_is_one_line_that_names_the_extra(lab, backend, package):
    # An import that fails, in a package that is found before the installed one.
    (lab.folder / f"{package}.py").write_text("raise ModuleNotFoundError")
    output = lab.run("-m", *on(backend), status=1)
    assert output == (
        f"error: hydra.launcher.backend is '{backend}', which is not installed: pip install 'depth-laboratory[{backend}]'\n"
    )


def test_nothing_of_an_engine_is_imported_before_it_is_asked_for():
    code = (
        "import sys, experiments.train; print({'ray', 'distributed', 'dask', 'mlflow', 'sklearn', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
