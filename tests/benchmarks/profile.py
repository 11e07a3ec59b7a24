"""Where the time of a step goes, call by call, with NumPy alone."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from blocks.arrays import Array, Call
from blocks.tape import replay
from blocks.tape.recorder import Operation
from blocks.workspace import Workspace
from tests.benchmarks.step import BATCHES, SHAPES, problem, time_steps, without_compiled
from tests.benchmarks.tables import alternate

ROUNDS = 15


def profile() -> None:
    """Where the time of a step goes: the calls of each function for each shape of its result, the batch, and what is left for
    the Python between them; with NumPy alone, and what the extra `compiled` makes of it.
    """
    for depth, width, batch, epochs in SHAPES:
        sizes, x, y = problem(depth, width, batch)
        run, clock = time_steps(sizes, x, y, batch, epochs, clock=time.thread_time), Clock()

        def timed(run: Callable[[], float] = run, clock: Clock = clock) -> None:
            with clock.running():
                run()

        turns = {"whole": without_compiled(run), "compiled": run, "timed": without_compiled(timed)}
        # Processor time of the whole: what other processes take from it would all seem to lie between the calls.
        times = alternate(turns, epochs * BATCHES, ROUNDS)
        total, compiled = (float(np.median(times[name])) * 1e6 for name in ("whole", "compiled"))
        _page(f"{depth} blocks x {width}, batch {batch}, float32, relu: us of a step", clock.parts(), total, compiled)


class Clock:
    """How long each call takes.

    seconds: name -> the durations of its calls. trainings: how many were timed. made: name -> its calls in their steps.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.trainings, self.calls_made = 0, Counter[str]()
        self.overhead = 0.0
        empty_call = self.timed("nothing", lambda: None)
        for _ in range(1000):
            empty_call()
        self.overhead = float(np.median(self.seconds.pop("nothing")))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls timed."""
        add, now, overhead = self.seconds[name].append, time.perf_counter, self.overhead

        def call(*arguments: Any) -> Any:
            start = now()
            result = function(*arguments)
            add(now() - start - overhead)
            return result

        return call

    @contextmanager
    def running(self) -> Iterator[None]:
        """The engine with every call of a training's replays timed, from outside."""
        calls_of = replay._calls
        self.trainings += 1
        self.calls_made["batch"] += 1

        def calls(operation: Operation, operands: Sequence[Any], out: Array) -> list[Call]:
            name = f"{operation.function.__name__} {out.shape}"
            new_calls = calls_of(operation, operands, out)
            self.calls_made[name] += len(new_calls)
            return [self.timed(name, call) for call in new_calls]

        gather = self.timed("batch", Workspace.gather)
        with patch.object(replay, "_calls", calls), patch.object(Workspace, "gather", lambda *arguments: gather(*arguments)):
            yield

    def parts(self) -> dict[str, tuple[float, float]]:
        """name -> calls a step, and their microseconds a step; what takes most first."""
        calls = {name: new_calls / self.trainings for name, new_calls in self.calls_made.items()}
        parts = {name: (calls[name], calls[name] * float(np.median(self.seconds[name])) * 1e6) for name in calls}
        return dict(sorted(parts.items(), key=lambda part: -part[1][1]))


def _page(title: str, parts: dict[str, tuple[float, float]], total: float, compiled: float) -> None:
    print(f"\n{title}")
    remainder = total - sum(microseconds for _, microseconds in parts.values())
    once = {"Python": (1.0, remainder), "the step": (1.0, total), "the step, compiled": (1.0, compiled)}
    for name, (calls, microseconds) in {**parts, **once}.items():
        print(f"  {name:<32}{calls:5.0f} x{microseconds:10.2f}   {100 * microseconds / total:5.1f} %")
