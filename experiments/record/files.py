"""A trained run as files: what MLflow keeps as its artifacts, and what waits on disk where MLflow does not answer."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from blocks.arrays import Array
from blocks.history import History
from experiments.run.config import UserError
from experiments.run.data import load
from experiments.run.environment import uncommitted
from experiments.run.stack import Trained

HISTORY, PARAMETERS, CONFIG, ENVIRONMENT, DIFF = "history.npz", "parameters.npy", "config.yaml", "environment.json", "git.diff"
# libyaml's are ten times faster.
DUMPER, LOADER = getattr(yaml, "CSafeDumper", yaml.SafeDumper), getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write(trained: Trained, folder: Path) -> None:
    """history.npz and parameters.npy (P,), without pickle; config.yaml, environment.json and, where there is one, git.diff."""
    trained.history.save(folder / HISTORY)
    np.save(folder / PARAMETERS, trained.parameters, allow_pickle=False)
    (folder / CONFIG).write_text(yaml.dump(asdict(trained.config), Dumper=DUMPER, sort_keys=False))
    own = {"threads": str(trained.config.training.threads), "data": load(trained.config.dataset).digest}
    (folder / ENVIRONMENT).write_text(json.dumps({**trained.environment, **own}, indent=2))
    if uncommitted():
        (folder / DIFF).write_text(uncommitted())


@dataclass(frozen=True, eq=False)
class Files:
    """What `write` wrote. config: as plain values, not to be trusted: see `run.config.from_record`."""

    config: dict[str, Any]
    history: History
    parameters: Array
    environment: dict[str, str]
    diff: str


def read(folder: Path) -> Files:
    """What `write` wrote; raises UserError where a file is missing, cut off or not what it should be."""
    at = folder
    try:
        at = folder / HISTORY
        history = History.load(at)
        at = folder / PARAMETERS
        parameters = np.load(at, allow_pickle=False)
        at = folder / CONFIG
        config = dict(yaml.load(at.read_text(), LOADER))
        at = folder / ENVIRONMENT
        environment = dict(json.loads(at.read_text()))
    except FileNotFoundError:
        raise UserError(f"{at} is not there") from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise UserError(f"{at} is damaged: {' '.join(str(error).split())}") from None
    diff = folder / DIFF
    return Files(config, history, parameters, environment, diff.read_text() if diff.exists() else "")
