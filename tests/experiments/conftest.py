"""What the experiments' tests share: the command in a folder of its own, and the store it wrote."""

import atexit
import contextlib
import multiprocessing
import os
import runpy
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
from omegaconf import DictConfig

from experiments.run.config import register
from experiments.train import CONF

# A command that is only waited for is forked from a process that has imported this: half of a small sweep's time is imports.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        *("experiments.train", "experiments.sweep.sweep", "experiments.reproduce", "experiments.trainability"),
        *("experiments.record.tracking", "experiments.record.model", "experiments.pictures.gallery"),
        *("mlflow.pyfunc", "sklearn.datasets", "matplotlib.pyplot", "llvmlite.binding"),
    ]
)

# The commands of the test that runs.
STARTED: list[subprocess.Popen[str]] = []


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


class Lab:
    """A folder with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'runs.db'}"

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "DO_NOT_TRACK": "true"}

    def start(self, *arguments: str, module: str = "experiments.train") -> subprocess.Popen[str]:
        """Start the command as a user types it, recording into this folder's store; output goes to one pipe."""
        command = [sys.executable, "-m", module, *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=self.folder, env=self.environ, text=True, start_new_session=True, **streams)
        STARTED.append(process)
        return process

    def run(self, *arguments: str, module: str = "experiments.train", status: int = 0) -> str:
        """Its output, once it has left with that status. Variables that are read in an import are better patched for `start`."""
        store = Path(self.uri.removeprefix("sqlite:///"))
        # What fails, or is not tracked, is to make nothing.
        if status == 0 and "tracking.enabled=false" not in arguments and store.parent == self.folder and not store.exists():
            with contextlib.closing(sqlite3.connect(store)) as empty:
                empty_store().backup(empty)
        file = self.folder.with_name(f"{self.folder.name}.output")
        process = FORKED.Process(target=_main, args=(module, arguments, self.folder, self.environ, file))
        process.start()
        process.join(240)
        assert not process.is_alive(), file.read_text()
        output = file.read_text()
        assert process.exitcode == status, output
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
    for process in psutil.process_iter():
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
    """composed(*overrides) -> the config Hydra makes of them, without Hydra's own part."""
    register()

    @cache
    def compose_one(*overrides: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", list(overrides))

    return compose_one
