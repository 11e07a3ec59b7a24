"""Engines: pools of workers, which are processes of this machine or workers of a Ray or Dask cluster.

Nothing here may import record, pictures or the commands. joblib's backends for Ray and Dask are not used: Ray's returns no result
before all are complete and gives up the items of a dead worker, Dask's waits for ever for a result of a lost worker.
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
# A cluster that has not answered after so many seconds counts as unreachable.
ANSWER_SECONDS = 20.0


class ItemPool(Protocol):
    """Items that workers work on, see `run.pool.Pool`."""

    @property
    def active_items(self) -> set[int]:
        """Return the indices of the items that workers have now."""

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """Yield for each item, as it finishes, its index and its result or error, see `run.pool.Pool.results`."""


class Engine(Protocol):
    """A kind of workers. shares_files: whether they read and write this machine's files."""

    shares_files: bool

    def share(self, value: Any) -> Any:
        """Return a reference to the value for use in items, so that a worker gets the value once and not with every item."""

    def pool(
        self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int
    ) -> contextlib.AbstractContextManager[ItemPool]:
        """Open a pool that calls function(*item) for every item, `n_jobs` at a time; -1 is one for each core."""


class Loky:
    """Worker processes of this machine."""

    shares_files = True

    @staticmethod
    def share(value: Any) -> Any:
        """Return the value itself."""
        return value

    @staticmethod
    def pool(function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> Pool:
        """See `Engine`."""
        return Pool(function, items, cores() if n_jobs == -1 else n_jobs)


@contextlib.contextmanager
def connect(backend: str, address: str | None = None, keys: str = "hydra.launcher") -> Iterator[Engine]:
    """Connect to the engine of that name, until the context ends.

    backend: one of BACKENDS.
    address: of a cluster. None starts one on this machine, unless RAY_ADDRESS or DASK_SCHEDULER_ADDRESS names one.
    keys: the config group that has the keys `backend` and `address`, for errors.

    Raises UserError where there is no such engine, where it is not installed, or where nothing answers at the address.
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
    """Raise UserError unless the Python command, which asks the cluster for its state, succeeds within ANSWER_SECONDS.

    It runs in a process of its own: where the address is no scheduler's, Ray ends its process after minutes, and Dask waits
    for ever.

    key, address, cluster: the config key, its value, and what should answer there, for the error.
    """
    try:
        process = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
        reason = process.stderr.strip().splitlines()[-1] if process.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"waited {ANSWER_SECONDS:g} s"
    if reason:
        raise UserError(f"{key} is {address!r}, where no {cluster} answers: {reason}")
