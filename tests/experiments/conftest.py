"""What the experiments' tests share: the command in a folder of its own, and the store it wrote."""

import atexit
import contextlib
import copy
import multiprocessing
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from experiments.run.composition import register
from experiments.train import CONF

# A command is forked from a process that has imported this: nine tenths of a small run's time are imports.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        *("experiments.train", "experiments.sweep.sweep", "experiments.reproduce", "experiments.trainability"),
        *("experiments.record.tracking", "experiments.record.model", "experiments.pictures.gallery"),
        *("mlflow.pyfunc", "sklearn.datasets", "matplotlib.pyplot", "llvmlite.binding"),
    ]
)

# For sweeps of a few small runs: a second process takes longer to start than it saves.
ALONE = "hydra.launcher.n_jobs=1"

# The commands of the test that runs.
STARTED: "list[Command | subprocess.Popen[str]]" = []


def _main(module: str, arguments: tuple[str, ...], folder: Path, environ: dict[str, str], output: Path) -> None:
    """`python -m module arguments` in a forked process."""
    os.chdir(folder)
    os.environ.update(environ)
    sys.path.insert(0, str(folder))
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        # As an interpreter ends: threads first, joblib's processes with them, which multiprocessing would wait for.
        threading._shutdown()
        atexit._run_exitfuncs()


def _session(*command) -> None:
    """The command in this forked process, in a session of its own."""
    os.setsid()
    _main(*command)


@cache
def empty_store() -> sqlite3.Connection:
    """MLflow's tables with nothing in them: it takes seconds to make a store."""
    from mlflow import MlflowClient

    kept = sqlite3.connect(":memory:")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "runs.db")
        MlflowClient(f"sqlite:///{file}").search_experiments()
        with contextlib.closing(sqlite3.connect(file)) as made:
            made.backup(kept)
    return kept


class Command(contextlib.AbstractContextManager):
    """A forked command, by the names of `subprocess.Popen`."""

    def __init__(self, lab: "Lab", module: str, arguments: tuple[str, ...]) -> None:
        lab.started += 1
        self.file = lab.folder.with_name(f"{lab.folder.name}.output{lab.started}")
        self.file.touch()
        self.process = FORKED.Process(target=_session, args=(module, arguments, lab.folder, lab.environ, self.file))
        self.process.start()
        self.pid = self.process.pid

    def __exit__(self, *raised) -> None:
        self.process.join()

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def line(self, word: str, seconds: float = 60) -> str:
        """The line with that word, once it is printed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.poll() is None:
            *lines, _ = self.file.read_text().split("\n")
            for line in lines:
                if word in line:
                    return line
            time.sleep(0.1)
        raise TimeoutError(self.file.read_text())

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.process.join(timeout)
        output = self.file.read_text()
        assert not self.process.is_alive(), output
        return output, None


class Lab:
    """A folder with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'runs.db'}"
        self.started = 0

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "DO_NOT_TRACK": "true"}

    def make_store(self) -> None:
        """An empty one, if it is a file of this folder that is not there."""
        store = Path(self.uri.removeprefix("sqlite:///"))
        if store.parent == self.folder and not store.exists():
            with contextlib.closing(sqlite3.connect(store)) as empty:
                empty_store().backup(empty)

    def start(self, *arguments: str, module: str = "experiments.train", new_store: bool = False) -> Command:
        """Start the command, recording into this folder's store, which it makes itself if that is new."""
        if not new_store:
            self.make_store()
        STARTED.append(Command(self, module, arguments))
        return STARTED[-1]

    def run(self, *arguments: str, module: str = "experiments.train", status: int = 0) -> str:
        """Its output, once it has left with that status."""
        # What fails, or is not tracked, is to make nothing.
        if status == 0 and "tracking.enabled=false" not in arguments:
            self.make_store()
        command = Command(self, module, arguments)
        output, _ = command.communicate(240)
        assert command.returncode == status, output
        return output

    def runs(self, kind: str = "run") -> list:
        """The store's runs of that kind, oldest first."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return client.search_runs(experiments, f"tags.kind = '{kind}'", order_by=["attributes.start_time ASC"], max_results=1000)

    def wait_for(self, status: str, seconds: float = 90, count: int = 1) -> None:
        """Wait until the store has so many runs of that status. Past MLflow, which must not open a store another is making."""
        deadline = time.monotonic() + seconds
        file = f"file:{self.folder / 'runs.db'}?mode=ro"
        while time.monotonic() < deadline:
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, uri=True)) as store:
                if store.execute("select count(*) from runs where status = ?", (status,)).fetchone()[0] >= count:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"no run is {status} after {seconds} s")

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def artifact(self, run, name: str) -> Path:
        """The local file of a run's artifact."""
        return Path(unquote(run.info.artifact_uri.removeprefix("file://"))) / name


@pytest.fixture(autouse=True)
def end_commands():
    """Whatever a test's commands have left running ends with the test, failed or not."""
    yield
    sessions = {process.pid for process in STARTED}
    for process in psutil.process_iter() if sessions else ():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions:
                process.kill()
    while STARTED:
        with STARTED.pop():
            pass


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def composed():
    """composed(*overrides) -> the config Hydra makes of them, without Hydra's own part.

    What is chosen of every group is composed once: on copies of it Hydra sets values, which takes a tenth of the time.
    """
    register()
    parser = OverridesParser.create()

    @cache
    def chosen(*overrides: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", list(overrides))

    @cache
    def compose_one(*overrides: str) -> DictConfig:
        parsed = parser.parse_overrides(list(overrides))
        values = [one for one in parsed if "." in one.key_or_group or one.key_or_group in ("seed", "dtype")]
        config = copy.deepcopy(chosen(*(one.input_line for one in parsed if one not in values)))
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    return compose_one
