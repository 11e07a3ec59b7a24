"""What the experiments' tests share: the command in a folder of its own, and the store it wrote."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.run.config import register
from experiments.train import CONF


class Lab:
    """A folder with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'runs.db'}"

    def start(self, *arguments: str, module: str = "experiments.train") -> subprocess.Popen[str]:
        """Start the command as a user types it, recording into this folder's store; output goes to one pipe."""
        environ = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "DO_NOT_TRACK": "true"}
        command = [sys.executable, "-m", module, *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=self.folder, env=environ, text=True, **streams)

    def run(self, *arguments: str, module: str = "experiments.train", status: int = 0) -> str:
        """Its output, once it has left with that status."""
        process = self.start(*arguments, module=module)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == status, output
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
        return Path(run.info.artifact_uri.removeprefix("file://")) / name


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def composed():
    """composed(*overrides) -> the config Hydra makes of them, without Hydra's own part."""
    register()

    def compose_one(*overrides: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", list(overrides))

    return compose_one
