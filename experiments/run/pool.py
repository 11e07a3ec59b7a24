"""Processes side by side, each with a queue of its own, so that one that is killed costs its own work and no other's."""

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

# So many results a process may wait to be fetched: then it stands still, or the results would pile up.
BACKLOG = 2
# Steps of the scheduler's priority by which the processes stand behind the main one.
BEHIND = 10


class Lost(Exception):
    """The process that worked on an item was killed."""


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """`n_jobs` processes that work through items in order.

    Every process has an executor of its own: in a shared one, a process that dies takes all others' work with it.

    function: what is called for every item; it and what it returns must be picklable.
    environ: variables that the processes have besides this one's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        n_jobs: int,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.function, self.items, self.environ = function, items, environ
        self.waiting = deque(range(len(items)))
        self.ended: queue.Queue[tuple[int, int, Future[Any]]] = queue.Queue()
        self.idle: deque[int] = deque()
        self.executors = [self._executor() for _ in range(min(n_jobs, len(items)))]
        # Items handed to a process whose results are not fetched yet.
        self.under_way: set[int] = set()
        for slot in range(len(self.executors)):
            self._start(slot)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.waiting.clear()
        for executor in self.executors:
            executor.shutdown(wait=False, kill_workers=True)

    def _executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(max_workers=1, initializer=begin, env=self.environ)

    def _start(self, slot: int) -> None:
        """Hand the next item to that process."""
        with contextlib.suppress(IndexError):
            index = self.waiting.popleft()
            self.under_way.add(index)
            future = self.executors[slot].submit(self.function, *self.items[index])
            future.add_done_callback(partial(self._end, slot, index))

    def _end(self, slot: int, index: int, future: "Future[Any]") -> None:
        # Called in a thread of the executor: the process need not wait until the result is fetched.
        if not isinstance(future.exception(), BrokenProcessPool):
            if self.ended.qsize() < BACKLOG * len(self.executors):
                self._start(slot)
            else:
                self.idle.append(slot)
        self.ended.put((slot, index, future))

    def results(self, tick: Callable[[], None], seconds: float) -> Iterator[tuple[int, Any]]:
        """(index of the item, what the function returned, or raised, or Lost) as they finish.

        tick: called after so many `seconds` in which nothing finished, and before every result.
        """
        fetched = 0
        while fetched < len(self.items):
            try:
                slot, index, future = self.ended.get(timeout=seconds)
            except queue.Empty:
                tick()
                continue
            fetched += 1
            self.under_way.discard(index)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self.executors[slot] = self._executor()
                self.idle.append(slot)
                error = Lost("its process was killed")
            while self.idle:
                self._start(self.idle.popleft())
            tick()
            yield index, future.result() if error is None else error


def begin() -> None:
    """At the start of a process that works for this one: it leaves signals to it, and ends with it."""
    # Ctrl-C and the end of a terminal reach every process of it; the main one ends the others in order.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The main process writes what these have trained: it must not wait for them, or at the end they would for it.
    if hasattr(os, "nice"):
        os.nice(BEHIND)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # A main process that is killed cannot end the others: nobody would fetch what they train on.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
