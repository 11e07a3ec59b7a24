"""What tells runs apart: the experiment they are, the bits they came to, the machine that may explain why bits differ."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from blocks.arrays import Array
from blocks.history import History
from experiments.run.config import Config, InstrumentsConfig

# Where the record goes, and what becomes of an earlier one: not what is trained.
SURROUNDINGS = ("tracking", "sweep")
# Keys that came later, with what every run had before: left out there, so that an older run keeps its fingerprint.
LATER: dict[str, Any] = {
    "network.kind": "plain",
    "instruments": asdict(InstrumentsConfig()),
    "optimizer.block_rates": None,
}
ROOT = Path(__file__).resolve().parents[2]


def project_folder() -> Path:
    """Where the project is checked out; for an installed package, the folder the command was typed in."""
    return ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()


def fingerprint(config: Config, digest: str, package: str | None = None) -> str:
    """Equal for two runs that are the same experiment: sha256 over what is trained, on which data, by which version.

    digest: of the data set. package: the version, None is this one.
    """
    trained = {key: value for key, value in asdict(config).items() if key not in SURROUNDINGS}
    for key, before in LATER.items():
        *groups, last = key.split(".")
        within = trained[groups[0]] if groups else trained
        if within[last] == before:
            del within[last]
    return _sha256(json.dumps([trained, digest, package or _version("depth-laboratory")], sort_keys=True).encode())


def fingerprint_of_sweep(runs: Iterable[str]) -> str:
    """Equal for two sweeps of the same runs in the same order: sha256 over their fingerprints."""
    return _sha256("\n".join(runs).encode())


def trajectory_hash(history: History, parameters: Array) -> str:
    """Equal for two trainings with the same bits: sha256 over every step's loss and norms, and the final parameters.

    The bytes are those of loss (T,), grad_norm (T, L), grad_norm_b (T, L), parameters (P,), one after the other: before
    each its shape as ASCII, `(T, L)`, then its values in C order, little-endian, every nan the quiet one.
    """
    digest = hashlib.sha256()
    for values in (history.loss, history.grad_norm, history.grad_norm_b, parameters):
        digest.update(str(values.shape).encode())
        ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        digest.update(np.where(np.isnan(ordered), ordered.dtype.type(np.nan), ordered).tobytes())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def environment() -> dict[str, str]:
    """Versions, BLAS and its kernel, CPU and git commit, as text."""
    blas: dict[str, Any] = next((pool for pool in threadpool_info() if pool["user_api"] == "blas"), {})
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "numpy": np.__version__,
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}".strip(),
        "blas_kernel": str(blas.get("architecture", "unknown")),
        "scikit-learn": _version("scikit-learn"),
        "hydra-core": _version("hydra-core"),
        "mlflow": _version("mlflow"),
        "package": _version("depth-laboratory"),
        "git.commit": _git("rev-parse", "HEAD").strip(),
        "git.branch": _git("rev-parse", "--abbrev-ref", "HEAD").strip(),
    }


@cache
def uncommitted() -> str:
    """The working tree's difference to its commit, "" where there is none."""
    return _git("diff", "HEAD")


def _git(*arguments: str) -> str:
    """What git says of the project's own checkout, "" where it is none."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
