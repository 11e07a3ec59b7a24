"""What this process computes with: versions, processor and code, which may explain why bits differ."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from blocks.machine import Machine

ROOT = Path(__file__).resolve().parents[2]


def project_folder() -> Path:
    """Where the project is checked out; for an installed package, the folder the command was typed in."""
    return ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()


@cache
def environment() -> dict[str, str]:
    """Versions, the code that BLAS and NumPy have chosen, CPU and git commit, as text."""
    machine = Machine.here()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "numpy": machine.numpy,
        "blas": machine.blas,
        "blas_kernel": machine.kernel,
        "simd": " ".join(machine.targets),
        "machine": "portable" if machine.is_portable else "native",
        "scikit-learn": version_of("scikit-learn"),
        "hydra-core": version_of("hydra-core"),
        "mlflow": version_of("mlflow"),
        "package": version_of("depth-laboratory"),
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
        command = ["git", "-C", str(ROOT), *arguments]
        # A changed file may be in any encoding.
        streams: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
        return subprocess.run(command, timeout=10, check=True, **streams).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def version_of(package: str) -> str:
    """Of an installed package, in words where it is not."""
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
