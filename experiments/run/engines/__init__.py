"""Engines: where items of work are worked on, in processes of this machine or by the workers of a cluster.

joblib's own backends for Ray and Dask do not serve: Ray's has no generators (no result before all are there) and gives a
dead worker's items up, and Dask's waits for ever for a result whose worker is lost for good.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

from experiments.run.config import UserError
from experiments.run.pool import Pool, cores

BACKENDS = ("loky", "ray", "dask")
# A cluster that has not answered by then does not.
ANSWER_SECONDS = 20.0


class Working(Protocol):
    """Items that are worked on, see `run.pool.Pool`."""

    @property
    def under_way(self) -> set[int]:
        """Indices of the items that a worker has."""

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """(index of the item, what came of it) as they finish."""


class Engine(Protocol):
    """here: its workers share this machine's files."""

    here: bool

    def share(self, value: Any) -> Any:
        """What stands for the value in items: it is sent to a worker once, not with every item."""

    def pool(
        self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int
    ) -> contextlib.AbstractContextManager[Working]:
        """function(*item) for every item, `n_jobs` at a time, -1 is as many as there are cores."""


class Loky:
    """Processes of this machine."""

    here = True

    @staticmethod
    def share(value: Any) -> Any:
        """Itself."""
        return value

    @staticmethod
    def pool(function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> Pool:
        """One process a core, or as many as asked for."""
        return Pool(function, items, cores() if n_jobs == -1 else n_jobs)


@contextlib.contextmanager
def connect(backend: str, address: str | None = None, keys: str = "hydra.launcher") -> Iterator[Engine]:
    """The engine of that name, until the context is left.

    address: of a cluster; None starts one on this machine, unless the engine's own variable names one
    (RAY_ADDRESS, DASK_SCHEDULER_ADDRESS). keys: where a user has set both, for errors.

    Raises UserError where there is no such engine, it is not installed, or nothing answers at the address.
    """
    if backend not in BACKENDS:
        raise UserError(f"{keys}.backend {backend!r} is unknown, allowed: {', '.join(BACKENDS)}")
    if backend == "loky":
        if address is not None:
            raise UserError(f"{keys}.address is {address!r}, which is for ray and dask: with loky it must be null")
        yield Loky()
        return
    try:
        engine = import_module(f"{__name__}.{backend}")
    except ImportError:
        raise UserError(
            f"{keys}.backend is {backend!r}, which is not installed: pip install 'depth-laboratory[{backend}]'"
        ) from None
    with engine.connect(address, keys) as connected:
        yield connected


def check_answers(key: str, address: str, cluster: str, command: list[str]) -> None:
    """Raise UserError unless the command, which asks the cluster, ends well in a bounded time.

    Asked by another process: towards something else than a scheduler Ray waits for minutes and then ends its own process,
    Dask waits for ever.
    """
    try:
        asked = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
        reason = asked.stderr.strip().splitlines()[-1] if asked.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"waited {ANSWER_SECONDS:g} s"
    if reason:
        raise UserError(f"{key} is {address!r}, where no {cluster} answers: {reason}")
