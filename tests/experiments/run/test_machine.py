"""A command that computes as its config says, whatever its caller's environment says, and says where it cannot."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from blocks.machine import Machine
from experiments.run import machine
from experiments.run.composition import CONF, parse_config
from experiments.run.machine import PORTABLE_VARIABLES, TARGETS, recorded_variables, set_machine, variables
from experiments.run.stack import train_stack
from tests.experiments.conftest import FORKED, STARTED, _main

FEW = ["training.epochs=2", "network.width=8", "tracking.pictures=none", "tracking.models=none"]
OFF = "X86_V4 AVX512_ICL AVX512_SPR"
AXES = ["network.depth=2,3", "optimizer.learning_rate=0.1", "dataset=iris"]
# The machine of a process that nobody tells anything.
NATIVE = subprocess.run(
    [sys.executable, "-c", "from blocks import Machine as M; print(M.current().kernel); print(*M.current().targets)"],
    env={key: value for key, value in os.environ.items() if key not in PORTABLE_VARIABLES},
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()

pytestmark = pytest.mark.skipif(not machine.has_avx2(), reason="no process is portable here")


def start(lab, *arguments, module="experiments.train", **environ):
    """The command in a process with these variables and no others of the two, as a user starts it."""
    own = {name: value for name, value in lab.environ.items() if name not in PORTABLE_VARIABLES}
    own |= {name: value for name, value in environ.items() if value is not None}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-m", module, *arguments]
    STARTED.append(subprocess.Popen(command, cwd=lab.folder, env=own, text=True, start_new_session=True, **streams))
    return STARTED[-1]


def run(lab, *arguments, status=0, **environ):
    """Its output."""
    if status == 0:
        lab.make_store()
    process = start(lab, *arguments, **environ)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == status, output
    return output


def surroundings(lab, run):
    """The kernel and the targets of the process that trained it."""
    recorded = json.loads(lab.artifact(run, "environment.json").read_text())
    return recorded["blas_kernel"], recorded["simd"]


@pytest.mark.parametrize(
    ("kernel", "off"),
    [
        ("SandyBridge", None),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in [("Zen", OFF), ("Haswell", None), (None, OFF)]),
    ],
)
def test_portable_has_the_published_bits_and_native_what_its_caller_says(kernel, off, lab):
    """In float32, relu has no function that NumPy's targets round otherwise: the kernel alone tells. In loky's processes."""
    command = ["-m", "network.depth=33", "optimizer.learning_rate=0.036", *FEW[2:], "hydra.launcher.n_jobs=1"]
    environ = {"OPENBLAS_CORETYPE": kernel, "NPY_DISABLE_CPU_FEATURES": off}
    run(lab, *command, **environ)
    run(lab, *command, "machine=native", **environ)
    portable, native = lab.runs()
    published = json.loads(Path("tests/published/bits.json").read_text())["default sweep"]
    assert [portable.data.tags["trajectory"]] == published["network.depth=33 optimizer.learning_rate=0.036"]
    assert surroundings(lab, portable) == ("Haswell", "X86_V3")
    # OpenBLAS's wheels have no kernel for Zen but Haswell's.
    expected = {"Zen": "Haswell", "SandyBridge": "Sandybridge", None: NATIVE[0]}.get(kernel, kernel)
    assert surroundings(lab, native) == (expected, "X86_V3" if off else NATIVE[1])
    assert (native.data.tags["trajectory"] == portable.data.tags["trajectory"]) == (expected == "Haswell")
    assert native.data.tags["fingerprint"] != portable.data.tags["fingerprint"]
    assert [each.data.params["machine"] for each in (portable, native)] == ["portable", "native"]


@pytest.mark.slow
@pytest.mark.skipif(NATIVE[1] == "X86_V3", reason="NumPy has no newer target here")
def test_numpy_s_targets_alone_give_other_bits(lab):
    command = [*FEW, "network.activation=tanh", "dtype=float64", "machine=native"]
    run(lab, *command, OPENBLAS_CORETYPE="Haswell")
    run(lab, *command, OPENBLAS_CORETYPE="Haswell", NPY_DISABLE_CPU_FEATURES=OFF)
    on, off = lab.runs()
    assert [surroundings(lab, each) for each in (on, off)] == [("Haswell", NATIVE[1]), ("Haswell", "X86_V3")]
    assert on.data.tags["trajectory"] != off.data.tags["trajectory"]


ENGINES = {
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra.launcher.backend=ray"],
    "dask": ["hydra.launcher.backend=dask"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "engine"), [*(("portable", engine) for engine in ENGINES), ("native", "joblib"), ("native", "ray")]
)
def test_the_workers_of_every_engine_compute_as_their_sweep(engine, asked, lab, composed):
    run(lab, "-m", *FEW, *AXES, *ENGINES[engine], f"machine={asked}")
    expected = {"portable": ("Haswell", "X86_V3"), "native": tuple(NATIVE)}[asked]
    assert [surroundings(lab, each) for each in lab.runs()] == [expected] * 2
    assert [each.data.params["machine"] for each in [*lab.runs(), *lab.runs("sweep")]] == [asked] * 3
    if asked == "portable":
        # As this process is.
        for each in lab.runs():
            (alone,) = train_stack(
                [parse_config(composed(*FEW, *AXES[1:], f"network.depth={each.data.params['network.depth']}"))]
            )
            alone.history.save(lab.folder / "alone.npz")
            assert lab.artifact(each, "history.npz").read_bytes() == (lab.folder / "alone.npz").read_bytes()


@pytest.mark.slow
def test_a_config_of_the_user_s_own_may_say_native(lab):
    """Which is known when it is composed: the command has started itself again by then, and gives back what it was given."""
    folder = lab.folder / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("# @package _global_\nmachine: native\n")
    own = ["--config-dir", str(lab.folder / "conf"), "experiment=own"]
    run(lab, *own, *FEW, OPENBLAS_CORETYPE="SandyBridge")
    run(lab, "-m", *own, *FEW, *AXES)
    assert [surroundings(lab, each) for each in lab.runs()] == [("Sandybridge", NATIVE[1])] + [tuple(NATIVE)] * 2
    assert {each.data.params["machine"] for each in lab.runs()} == {"native"}


@pytest.mark.slow
def test_a_map_s_tiles_and_what_verify_trains_are_portable(lab):
    small = ["map.resolution=8", "map.floor=false", "trainability=linear"]
    process = start(lab, *small, module="experiments.trainability")
    assert process.communicate(timeout=100)[0]
    (run,) = lab.runs("map")
    assert run.data.params["machine"] == "portable"
    output = start(lab, "--only", "bits", "--no-record", module="experiments.verify").communicate(timeout=100)[0]
    assert "2 of 2 results reproduced\nportable: NumPy" in output


def test_a_command_that_started_itself_again_is_the_same_process_to_whoever_waits_for_it(lab):
    lab.make_store()
    process = start(lab, "network.depth=9", "training.epochs=1000", *FEW[1:])
    lab.wait_for("RUNNING")
    assert {key: value for key, value in _environ(process.pid).items() if key in PORTABLE_VARIABLES} == PORTABLE_VARIABLES
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert [run.info.status for run in lab.runs()] == ["KILLED"]


def _environ(pid):
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["machine=fast"], "error: machine 'fast' is unknown, allowed: portable, native\n"),
        (
            ["-m", "machine=portable,native", *AXES],
            "error: machine differs between job 0 and job 2: 'portable' and 'native'; the processes of a sweep have one, "
            "it must be the same\n",
        ),
    ],
)
def test_what_no_run_can_have_is_one_line_before_anything_is_made(arguments, line, lab):
    assert run(lab, *arguments, status=1) == line
    assert list(lab.folder.iterdir()) == []


def _elsewhere(what, folder, environ, output, arguments):
    """The command in this forked process, on another machine."""
    machine.processor_flags = lambda: frozenset()
    here = {
        "no AVX2": Machine("2.4.6", "openblas 0.3.31", "Nehalem", ()),
        "Accelerate": Machine("2.4.6", "accelerate", "unknown", ("ASIMD",)),
        "MKL": Machine("2.4.6", "mkl 2026", "unknown", ("X86_V3",)),
    }[what]
    Machine.current = staticmethod(lambda: here)
    if what == "Accelerate":
        machine.platform.machine = lambda: "arm64"
    _main("experiments.train", arguments, folder, environ, output)


@pytest.mark.parametrize(
    ("what", "line", "sweep"),
    [
        ("no AVX2", "it needs an x86-64 processor with AVX2, which this one is not known to have", []),
        ("Accelerate", "it needs an x86-64 processor with AVX2, this one is arm64", []),
        ("MKL", "it needs a NumPy with OpenBLAS, this one has mkl 2026", ["-m", *AXES]),
    ],
)
def test_where_portable_cannot_be_had_the_run_and_its_record_are_native(what, line, sweep, lab):
    output = lab.folder.with_name(f"{lab.folder.name}.output")
    process = FORKED.Process(target=_elsewhere, args=(what, lab.folder, lab.environ, output, (*sweep, *FEW)))
    process.start()
    process.join(100)
    assert process.exitcode == 0, output.read_text()
    assert output.read_text().count(f"machine=portable cannot be had here, it is trained native: {line}\n") == 1
    assert {each.data.params["machine"] for each in lab.runs()} == {"native"}


def test_a_process_that_is_no_command_never_starts_again(monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("started again"))
    other = Machine("2.4.6", "openblas 0.3.31", "SkylakeX", ("X86_V3", "X86_V4"))
    monkeypatch.setattr(Machine, "current", lambda: other)
    assert "NumPy is native: NumPy 2.4.6 with the targets X86_V3 X86_V4" in set_machine("portable")
    assert set_machine("native") == ""


class StartedAgain(Exception):
    """With this environment."""


@pytest.fixture
def command(monkeypatch):
    """This process as a command that a user with an OPENBLAS_CORETYPE of his own has typed; it raises where it starts again."""

    def execve(file, arguments, environ):
        assert [file, *sys.orig_argv[1:]] == [sys.executable, *arguments[1:]]
        raise StartedAgain(environ)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.train"))
    monkeypatch.setattr(machine, "_start_environ", {"OPENBLAS_CORETYPE": "Zen", "HOME": "/"})
    monkeypatch.setattr(machine, "processor_flags", lambda: frozenset(["avx2"]))
    for name in PORTABLE_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def started(environ):
        """The next process."""
        for name in PORTABLE_VARIABLES:
            if name in environ:
                monkeypatch.setenv(name, environ[name])
            else:
                monkeypatch.delenv(name, raising=False)
        caller, reason = json.loads(environ[machine.ORIGINAL_VARIABLES])
        monkeypatch.setattr(machine, "_original_variables", caller)
        monkeypatch.setattr(machine, "_fallback_reason", reason)

    return started


def test_a_command_that_holding_does_not_make_portable_gives_back_what_it_was_given(command, monkeypatch):
    """As OpenBLAS 0.3.34 on a Zen 4: Haswell's kernels, and another order of addition."""
    monkeypatch.setattr("blocks.machine._product", lambda: "another")
    monkeypatch.setattr(Machine, "current", lambda: Machine("2.5.5", "openblas 0.3.34", "SkylakeX", ("X86_V3", "X86_V4")))
    with pytest.raises(StartedAgain) as held:
        set_machine("portable")
    assert {**PORTABLE_VARIABLES, "HOME": "/"}.items() <= held.value.args[0].items()
    command(held.value.args[0])
    monkeypatch.setattr(Machine, "current", lambda: Machine("2.5.5", "openblas 0.3.34", "Haswell", ("X86_V3",)))
    with pytest.raises(StartedAgain) as given_back:
        set_machine("portable")
    assert {name: given_back.value.args[0].get(name) for name in PORTABLE_VARIABLES} == {
        "OPENBLAS_CORETYPE": "Zen",
        "NPY_DISABLE_CPU_FEATURES": None,
    }
    command(given_back.value.args[0])
    monkeypatch.setattr(Machine, "current", lambda: Machine("2.5.5", "openblas 0.3.34", "SkylakeX", ("X86_V3", "X86_V4")))
    line = "on this processor openblas 0.3.34 adds up in an order of its own, as 0.3.34 does with AMD's AVX-512"
    assert set_machine("portable") == f"machine=portable cannot be had here, it is trained native: {line}"
    assert set_machine("native") == ""
    with pytest.raises(ValueError, match="it was trained portable, and on this processor openblas 0"):
        recorded_variables({"blas_kernel": "Haswell", "simd": "X86_V3"})


def test_native_is_what_the_caller_s_environment_says(command, monkeypatch):
    assert set_machine("native") == ""
    command(
        {
            **PORTABLE_VARIABLES,
            machine.ORIGINAL_VARIABLES: json.dumps([{"OPENBLAS_CORETYPE": "Zen", "NPY_DISABLE_CPU_FEATURES": ""}, ""]),
        }
    )
    with pytest.raises(StartedAgain) as given_back:
        set_machine("native")
    assert {name: given_back.value.args[0][name] for name in PORTABLE_VARIABLES} == {
        "OPENBLAS_CORETYPE": "Zen",
        "NPY_DISABLE_CPU_FEATURES": "",
    }
    command(given_back.value.args[0])
    assert set_machine("native") == ""


def test_a_numpy_that_cannot_be_without_avx_512_is_left_native(lab):
    """NumPy refuses to be imported without a target that it was built for; this one was built for X86_V2."""
    code = (
        "import sys, experiments.run.machine as m;"
        "m.PORTABLE_VARIABLES = m.PORTABLE_VARIABLES | {'NPY_DISABLE_CPU_FEATURES': 'X86_V2'};"
        "sys.argv = ['-m', 'x']; m.start_portable();"
        "import numpy, os;"
        "print(sorted(m.PORTABLE_VARIABLES.items() & os.environ.items()), m._original_variables, m._fallback_reason)"
    )
    command = [sys.executable, "-c", code, "experiments.train", "x"]
    own = {key: value for key, value in os.environ.items() if key not in PORTABLE_VARIABLES}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert (
        done.stdout
        == "[] {'OPENBLAS_CORETYPE': None, 'NPY_DISABLE_CPU_FEATURES': None} this NumPy was built for newer processors alone\n"
    ), done.stderr


def test_numpy_is_not_imported_by_what_holds_the_variables():
    code = "import sys, experiments.run.machine; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# What processors say, of those that differ in what NumPy and OpenBLAS ask for.
LAPTOP = {"avx", "avx2", "sse4_2"}
SKYLAKE = LAPTOP | {"avx512vl"}
ZEN_4 = SKYLAKE | {"avx512_vbmi2", "avx512_bf16"}
OF_LAPTOP, OF_SKYLAKE, OF_ZEN_4 = (
    {"blas_kernel": kernel, "simd": simd}
    for kernel, simd in (("Haswell", "X86_V3"), ("SkylakeX", "X86_V3 X86_V4"), ("Cooperlake", "X86_V3 X86_V4 AVX512_ICL"))
)


@pytest.mark.parametrize(
    ("record", "processor", "expected"),
    [
        (OF_LAPTOP, ZEN_4, {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}),
        (OF_SKYLAKE, ZEN_4, {"OPENBLAS_CORETYPE": "SkylakeX", "NPY_DISABLE_CPU_FEATURES": "AVX512_ICL AVX512_SPR"}),
        (OF_ZEN_4, ZEN_4, {"OPENBLAS_CORETYPE": "Cooperlake", "NPY_DISABLE_CPU_FEATURES": "AVX512_SPR"}),
        (OF_SKYLAKE, LAPTOP, "which need a processor with avx512vl; --tolerance compares"),
        (OF_ZEN_4, SKYLAKE, "which need a processor with avx512_bf16, avx512_vbmi2; --tolerance compares"),
        (OF_LAPTOP, set(), "which need a processor with avx2; --tolerance compares"),
        # Of version 0.5.0, which recorded no targets.
        (
            {"blas_kernel": "Haswell"},
            ZEN_4,
            {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
        ),
        ({"blas_kernel": "SkylakeX"}, ZEN_4, {"OPENBLAS_CORETYPE": "SkylakeX", "NPY_DISABLE_CPU_FEATURES": ""}),
        ({"blas_kernel": "SkylakeX"}, LAPTOP, "which need a processor with avx512vl; --tolerance compares"),
        # Nothing that the variables could hold.
        ({"blas_kernel": "armv8", "simd": "ASIMDHP"}, ZEN_4, {}),
        ({"blas_kernel": "unknown", "simd": "X86_V3"}, LAPTOP, {}),
        ({}, LAPTOP, {}),
    ],
)
def test_a_record_s_machine_is_held_where_the_processor_has_it(record, processor, expected, monkeypatch):
    monkeypatch.setattr(machine, "processor_flags", lambda: frozenset(processor))
    monkeypatch.setattr(Machine, "current", lambda: Machine("2.4.6", "openblas 0.3.31", "Sandybridge", ()))
    if isinstance(expected, dict):
        assert recorded_variables(record) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            recorded_variables(record)
    monkeypatch.setattr(Machine, "current", lambda: Machine("2.4.6", "accelerate", **_named(record)))
    assert recorded_variables(record) == {}


def _named(record):
    return {"kernel": record.get("blas_kernel", "unknown"), "targets": tuple(record.get("simd", "").split())}


def test_no_target_of_this_numpy_is_forgotten():
    """A newer NumPy may have more of them; portable then needs its names."""
    import numpy as np

    assert set(np._core._multiarray_umath.__cpu_dispatch__) == set(TARGETS)
    assert (
        variables("Haswell", ["X86_V3"])
        == PORTABLE_VARIABLES
        == {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": OFF}
    )


@pytest.mark.slow
def test_the_data_sets_have_the_same_digests_on_every_machine(composed):
    names = sorted(file.stem for file in Path(CONF, "dataset").glob("*.yaml"))
    offline = [name for name in names if not parse_config(composed(f"dataset={name}")).dataset.loader["_target_"].count("fetch_")]
    assert len(offline) == 9
    code = (
        "import sys; from experiments.run.composition import compose_config, parse_config, register;"
        "from experiments.run.data import load_dataset; register();"
        "configs = [parse_config(compose_config('config', [f'dataset={name}'])) for name in sys.argv[1:]];"
        "[print(load_dataset(config.dataset).digest) for config in configs]"
    )
    own = {key: value for key, value in os.environ.items() if key not in PORTABLE_VARIABLES}
    digests = {
        subprocess.run([sys.executable, "-c", code, *offline], env=own | held, capture_output=True, text=True, check=True).stdout
        for held in ({}, PORTABLE_VARIABLES, {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": " ".join(TARGETS)})
    }
    assert len(digests) == 1
    assert len(set(digests.pop().split())) == 9
