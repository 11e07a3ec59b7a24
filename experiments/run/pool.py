"""Processes side by side, each with a queue of its own, so that one that is killed costs its own work and no other's."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

# One item in work and one waiting: a process need not stand still until its result is fetched.
QUEUED = 2


class Lost(Exception):
    """The process that worked on an item was killed."""


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """`n_jobs` processes that work through items in order.

    Every process has an executor of its own: in a shared one, a process that dies takes all others' work with it.

    function: what is called for every item; it and what it returns must be picklable.
    """

    def __init__(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> None:
        self.function, self.items = function, items
        self.waiting = deque(range(len(items)))
        self.executors = [self._executor() for _ in range(min(n_jobs, len(items)))]
        self.queues: list[deque[tuple[int, Future[Any]]]] = [deque() for _ in self.executors]
        for _ in range(QUEUED):
            for slot in range(len(self.executors)):
                self._fill(slot)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for executor in self.executors:
            executor.shutdown(wait=False, kill_workers=True)

    @staticmethod
    def _executor() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(max_workers=1, initializer=_begin)

    def _fill(self, slot: int) -> None:
        if self.waiting and len(self.queues[slot]) < QUEUED:
            index = self.waiting.popleft()
            self.queues[slot].append((index, self.executors[slot].submit(self.function, *self.items[index])))

    @property
    def under_way(self) -> list[int]:
        """The items handed to a process whose results are not fetched yet."""
        return [index for queue in self.queues for index, _ in queue]

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """(index of the item, what the function returned, or raised, or Lost) as they finish.

        tick: called about every so many `seconds` while nothing finishes, and after every result.
        """
        while any(self.queues):
            wait([queue[0][1] for queue in self.queues if queue], timeout=seconds, return_when=FIRST_COMPLETED)
            for slot, queue in enumerate(self.queues):
                if queue and queue[0][1].done():
                    index, future = queue.popleft()
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        self._replace(slot)
                        error = Lost("its process was killed")
                    self._fill(slot)
                    yield index, future.result() if error is None else error
            tick()

    def _replace(self, slot: int) -> None:
        """A new process; what waited behind the item that was lost is handed to it again."""
        self.executors[slot].shutdown(wait=False, kill_workers=True)
        self.executors[slot] = self._executor()
        again = [index for index, _ in self.queues[slot]]
        self.queues[slot].clear()
        self.waiting.extendleft(reversed(again))


def _begin() -> None:
    # Ctrl-C reaches every process of the terminal; the main one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # A main process that is killed cannot end the others: nobody would fetch what they train on.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
