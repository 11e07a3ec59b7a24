"""The versions, the processor and the code that this process computes with. They may explain why the bits of two runs differ."""

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
    """Return the folder of the project's checkout, or the working directory where the package is installed without one."""
    return ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()


@cache
def environment() -> dict[str, str]:
    """Return versions, CPU, git commit, and the processor-specific code that BLAS and NumPy use, as texts by name."""
    machine = Machine.current()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "numpy": machine.numpy,
        "blas": machine.blas,
        "blas_kernel": machine.kernel,
        "simd": " ".join(machine.targets),
        "machine": "portable" if machine.is_portable else "native",
        "scikit-learn": package_version("scikit-learn"),
        "hydra-core": package_version("hydra-core"),
        "mlflow": package_version("mlflow"),
        "package": package_version("depth-laboratory"),
        "git.commit": _git("rev-parse", "HEAD").strip(),
        "git.branch": _git("rev-parse", "--abbrev-ref", "HEAD").strip(),
    }


@cache
def uncommitted_diff() -> str:
    """Return the output of `git diff HEAD` in the project's checkout, "" where nothing has changed or there is no checkout."""
    return _git("diff", "HEAD")


def _git(*arguments: str) -> str:
    """Return what the git command prints for the project's checkout, "" where there is no checkout or no git."""
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
def package_version(package: str) -> str:
    """Return the version of an installed package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
