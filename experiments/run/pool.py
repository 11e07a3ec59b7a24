"""A pool of worker processes. A worker that is killed costs the item that it worked on, and nothing of the other workers."""

import contextlib
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

from experiments.run.interrupts import SIGNALS

# So many results a worker may wait to be fetched. Beyond that no item is submitted, since the results would fill the memory.
BACKLOG = 2
# The workers' niceness: by so many steps their priority is lower than the main process's.
NICE_STEPS = 10


class WorkerLost(Exception):
    """The worker that had an item was killed."""


def cores() -> int:
    """Return how many of the processor's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """`n_jobs` worker processes that take the items in order.

    Every worker has an executor of its own: in a shared one, a process that dies ends the work of all other processes.

    function: is called with every item. The function and what it returns must be picklable.
    items: the arguments of each call.
    environ: variables that the workers' environment has in addition to this process's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        n_jobs: int,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.function, self.items, self.environ = function, items, environ
        self.waiting_items = deque(range(len(items)))
        self.ended_futures: queue.Queue[tuple[int, int, Future[Any]]] = queue.Queue()
        self.idle_slots: deque[int] = deque()
        self.executors = [self._create_executor() for _ in range(min(n_jobs, len(items)))]
        # Indices of the items that were submitted and whose results are not fetched yet.
        self.active_items: set[int] = set()
        for slot in range(len(self.executors)):
            self._submit_next(slot)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.waiting_items.clear()
        for executor in self.executors:
            executor.shutdown(wait=False, kill_workers=True)

    def _create_executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(max_workers=1, initializer=initialize_worker, env=self.environ)

    def _submit_next(self, slot: int) -> None:
        """Submit the next item, if there is one, to the worker of that slot."""
        with contextlib.suppress(IndexError):
            index = self.waiting_items.popleft()
            self.active_items.add(index)
            future = self.executors[slot].submit(self.function, *self.items[index])
            future.add_done_callback(partial(self._on_done, slot, index))

    def _on_done(self, slot: int, index: int, future: "Future[Any]") -> None:
        # The executor calls this in a thread of its own: the worker need not wait until the result is fetched.
        if not isinstance(future.exception(), BrokenProcessPool):
            if self.ended_futures.qsize() < BACKLOG * len(self.executors):
                self._submit_next(slot)
            else:
                self.idle_slots.append(slot)
        self.ended_futures.put((slot, index, future))

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """Yield for each item, as it finishes, its index and what the function returned, or the error that it raised.

        The error is a WorkerLost where the item's worker was killed.

        tick: is called before every result, and whenever nothing has finished for `seconds`.
        """
        n_fetched = 0
        while n_fetched < len(self.items):
            try:
                slot, index, future = self.ended_futures.get(timeout=seconds)
            except queue.Empty:
                tick()
                continue
            n_fetched += 1
            self.active_items.discard(index)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self.executors[slot] = self._create_executor()
                self.idle_slots.append(slot)
                error = WorkerLost("its process was killed")
            while self.idle_slots:
                self._submit_next(self.idle_slots.popleft())
            tick()
            yield index, future.result() if error is None else error


def initialize_worker() -> None:
    """Prepare a worker process: it ignores signals, has a lower priority, and ends when its main process ends."""
    # Ctrl-C and the end of a terminal reach all processes: the main process ends its workers in order.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    # The main process writes the results. If it had to wait for a core, the workers would have to wait for it in the end.
    if hasattr(os, "nice"):
        os.nice(NICE_STEPS)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    # A main process that is killed cannot end its workers, and nobody would fetch their results.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
