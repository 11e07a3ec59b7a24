"""Items as tasks of a cluster: handed to its workers a few at a time, fetched as they finish."""

import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pickle import dumps, loads
from typing import Any, Protocol

from experiments.run.config import UserError
from experiments.run.environment import environment
from experiments.run.machine import HELD as VARIABLES
from experiments.run.machine import has_avx2, held
from experiments.run.pool import Lost, begin

# Tasks a core that the cluster holds: one that is worked on and one that waits, so that no worker waits for this process.
HELD = 2
# What must be the same everywhere, or a run's bits and its record would depend on which worker trained it.
ALIKE = ("package", "numpy", "git.commit")
# In a sweep that is portable.
MACHINE = ("machine", "blas_kernel", "simd")
# A worker with several threads works on one item at a time: BLAS's number of threads is one for the whole process.
ALONE = threading.Lock()


class Cluster(Protocol):
    """What an engine's workers are asked through. A task is what stands for an item's result."""

    def cores(self) -> int:
        """Items that its workers can work on at once, as of now."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The task of calling it in a worker, again in another one where that is lost."""

    def finished(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those that have finished, as soon as there is one; none after so many seconds."""

    def result(self, task: Any) -> Any:
        """What a finished task returned; raises what it raised, Lost where its workers were killed time and again."""

    def cancel(self, tasks: Sequence[Any]) -> None:
        """Nobody waits for them any more."""


class Tasks:
    """Like `run.pool.Pool`, with the workers of a cluster. n_jobs: items at once, -1 is one a core of the cluster."""

    def __init__(self, cluster: Cluster, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> None:
        self.cluster, self.function, self.items, self.n_jobs = cluster, function, items, n_jobs
        self.alike = _alike((*ALIKE, *MACHINE) if held() else ALIKE)
        self.waiting = deque(range(len(items)))
        # Task -> index of its item, the oldest first.
        self.held: dict[Any, int] = {}
        self._hand_over()

    def __enter__(self) -> "Tasks":
        return self

    def __exit__(self, *error: object) -> None:
        self.waiting.clear()
        self.cluster.cancel(list(self.held))

    @property
    def under_way(self) -> set[int]:
        """Items that are worked on: the cluster takes the oldest first."""
        return set(islice(self.held.values(), self.at_once))

    def _hand_over(self) -> None:
        """Workers may have joined or left."""
        self.at_once = self.n_jobs if self.n_jobs != -1 else max(1, self.cluster.cores())
        # As many as asked for and no more, or one that waits behind each.
        most = self.at_once if self.n_jobs != -1 else HELD * self.at_once
        while self.waiting and len(self.held) < most:
            index = self.waiting.popleft()
            self.held[self.cluster.submit(work, self.alike, self.function, *self.items[index])] = index

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """(index of the item, what the function returned, or raised, or Lost) as they finish.

        tick: called after so many `seconds` in which nothing finished, and before every result.
        """
        while self.held:
            done = self.cluster.finished(list(self.held), seconds)
            results = [(self.held.pop(task), self._result(task)) for task in done]
            self._hand_over()
            tick()
            yield from results

    def _result(self, task: Any) -> Any:
        try:
            return self.cluster.result(task)
        except Exception as error:
            return error


def _alike(keys: Iterable[str]) -> dict[str, str]:
    return {key: environment()[key] for key in keys}


def work(expected: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function, in a worker; raises UserError where that has another code or NumPy than the main process."""
    own = _alike(expected)
    differing = [key for key in expected if own[key] != expected[key]]
    with ALONE:
        if differing and set(differing) <= set(MACHINE) and not held() and has_avx2():
            return _in_process(expected, function, *arguments)
        if differing:
            told = ", ".join(f"{key} {own[key]!r} instead of {expected[key]!r}" for key in differing)
            raise UserError(f"its worker on {socket.gethostname()} has {told}")
        return function(*arguments)


def _in_process(*task: Any) -> Any:
    """`work(*task)` in a process of the worker's own that is portable; the worker was started otherwise."""
    command = [sys.executable, "-c", f"from {__name__} import answer; answer()"]
    # Not one of joblib's: Dask's workers may not have children of that kind.
    done = subprocess.run(command, input=dumps(task), stdout=subprocess.PIPE, env={**os.environ, **VARIABLES}, check=False)
    if done.returncode:
        raise Lost(f"its process left with {done.returncode}")
    result, error = loads(done.stdout)
    if error is not None:
        raise error
    return result


def answer() -> None:
    """In that process: its standard input is a task, its standard output what came of it."""
    begin()
    output, sys.stdout = sys.stdout, sys.stderr
    came: tuple[Any, Exception | None]
    try:
        came = work(*loads(sys.stdin.buffer.read())), None
    except Exception as error:
        came = None, error
    output.buffer.write(dumps(came))
    output.flush()
