"""A pool whose items are tasks of a cluster: a few are submitted at a time, and results are fetched as they finish."""

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
from experiments.run.machine import PORTABLE_VARIABLES, has_avx2, portable_variables
from experiments.run.pool import WorkerLost, initialize_worker

# So many tasks are submitted for each core: one that is worked on and one that waits, so that no worker waits for this process.
TASKS_PER_CORE = 2
# What must be equal in all workers: otherwise a run's bits and its record would depend on the worker that trained it.
CODE_KEYS = ("package", "numpy", "git.commit")
# What must also be equal in a sweep that is portable.
MACHINE_KEYS = ("machine", "blas_kernel", "simd")
# A worker with several threads works on one item at a time, since all threads of a process share BLAS's number of threads.
WORK_LOCK = threading.Lock()


class Cluster(Protocol):
    """A connection to an engine's workers. A task is the engine's reference to the result of a call."""

    def cores(self) -> int:
        """Return how many items the workers that are there now can work on at once."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the task of a call in a worker. Where the worker is lost, another one repeats the call."""

    def wait_for_any(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Wait until one of the tasks has finished, `seconds` at most; return those that have finished, which may be none."""

    def result(self, task: Any) -> Any:
        """Return what a finished task returned, or raise its error; WorkerLost where its workers were killed repeatedly."""

    def cancel(self, tasks: Sequence[Any]) -> None:
        """Give up tasks whose results are not needed any more."""


class Tasks:
    """A pool like `run.pool.Pool` with the workers of a cluster. n_jobs: items at once, -1 is one for each of its cores."""

    def __init__(self, cluster: Cluster, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> None:
        self.cluster, self.function, self.items, self.n_jobs = cluster, function, items, n_jobs
        self.expected_environment = _environment_values((*CODE_KEYS, *MACHINE_KEYS) if portable_variables() else CODE_KEYS)
        self.waiting_items = deque(range(len(items)))
        # The tasks that are submitted, the oldest first -> the index of the item.
        self.tasks: dict[Any, int] = {}
        self._submit_waiting()

    def __enter__(self) -> "Tasks":
        return self

    def __exit__(self, *error: object) -> None:
        self.waiting_items.clear()
        self.cluster.cancel(list(self.tasks))

    @property
    def active_items(self) -> set[int]:
        """The indices of the items that workers have now: the cluster takes the oldest tasks first."""
        return set(islice(self.tasks.values(), self.max_active))

    def _submit_waiting(self) -> None:
        """Submit waiting items for the workers that are there now: some may have joined or left."""
        self.max_active = self.n_jobs if self.n_jobs != -1 else max(1, self.cluster.cores())
        # With a given number of jobs no further task waits in the cluster.
        max_tasks = self.max_active if self.n_jobs != -1 else TASKS_PER_CORE * self.max_active
        while self.waiting_items and len(self.tasks) < max_tasks:
            index = self.waiting_items.popleft()
            self.tasks[self.cluster.submit(work, self.expected_environment, self.function, *self.items[index])] = index

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """See `run.pool.Pool.results`."""
        while self.tasks:
            done_tasks = self.cluster.wait_for_any(list(self.tasks), seconds)
            results = [(self.tasks.pop(task), self._result(task)) for task in done_tasks]
            self._submit_waiting()
            tick()
            yield from results

    def _result(self, task: Any) -> Any:
        try:
            return self.cluster.result(task)
        except Exception as error:
            return error


def _environment_values(keys: Iterable[str]) -> dict[str, str]:
    return {key: environment()[key] for key in keys}


def work(expected: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in a worker.

    expected: the main process's environment, by name. Raises UserError where the worker's is another one.
    """
    actual = _environment_values(expected)
    differing_keys = [key for key in expected if actual[key] != expected[key]]
    with WORK_LOCK:
        if differing_keys and set(differing_keys) <= set(MACHINE_KEYS) and not portable_variables() and has_avx2():
            return _in_process(expected, function, *arguments)
        if differing_keys:
            differences = ", ".join(f"{key} {actual[key]!r} instead of {expected[key]!r}" for key in differing_keys)
            raise UserError(f"its worker on {socket.gethostname()} has {differences}")
        return function(*arguments)


def _in_process(*task: Any) -> Any:
    """Call `work(*task)` in a new process that is portable, for a worker that was started without the variables."""
    command = [sys.executable, "-c", f"from {__name__} import answer_task; answer_task()"]
    # No process of joblib's, since Dask's workers are daemons and may not have such children.
    process = subprocess.run(
        command, input=dumps(task), stdout=subprocess.PIPE, env={**os.environ, **PORTABLE_VARIABLES}, check=False
    )
    if process.returncode:
        raise WorkerLost(f"its process left with {process.returncode}")
    result, error = loads(process.stdout)
    if error is not None:
        raise error
    return result


def answer_task() -> None:
    """Run a task in the process of `_in_process`: read it from standard input, write its result or error to standard output."""
    initialize_worker()
    stdout, sys.stdout = sys.stdout, sys.stderr
    outcome: tuple[Any, Exception | None]
    try:
        outcome = work(*loads(sys.stdin.buffer.read())), None
    except Exception as error:
        outcome = None, error
    stdout.buffer.write(dumps(outcome))
    stdout.flush()
