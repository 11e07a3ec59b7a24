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
from tests.benchmarks.step import BATCHES, SHAPES, by_numpy_alone, problem, steps_alone
from tests.benchmarks.tables import alternate

ROUNDS = 15


def profile() -> None:
    """Where the time of a step goes: the calls of each function for each shape of its result, the batch, and what is left for
    the Python between them; with NumPy alone, and what the extra `compiled` makes of it.
    """
    for depth, width, batch, epochs in SHAPES:
        sizes, x, y = problem(depth, width, batch)
        own, clock = steps_alone(sizes, x, y, batch, epochs, clock=time.thread_time), Clock()

        def timed(own: Callable[[], float] = own, clock: Clock = clock) -> None:
            with clock.running():
                own()

        turns = {"whole": by_numpy_alone(own), "compiled": own, "timed": by_numpy_alone(timed)}
        # Processor time of the whole: what other processes take from it would all seem to lie between the calls.
        times = alternate(turns, epochs * BATCHES, ROUNDS)
        whole, compiled = (float(np.median(times[name])) * 1e6 for name in ("whole", "compiled"))
        _page(f"{depth} blocks x {width}, batch {batch}, float32, relu: us of a step", clock.parts(), whole, compiled)


class Clock:
    """How long each call takes.

    seconds: name -> the durations of its calls. trainings: how many were timed. made: name -> its calls in their steps.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.trainings, self.made = 0, Counter[str]()
        self.own = 0.0
        nothing = self.timed("nothing", lambda: None)
        for _ in range(1000):
            nothing()
        self.own = float(np.median(self.seconds.pop("nothing")))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls timed."""
        add, now, own = self.seconds[name].append, time.perf_counter, self.own

        def call(*arguments: Any) -> Any:
            start = now()
            result = function(*arguments)
            add(now() - start - own)
            return result

        return call

    @contextmanager
    def running(self) -> Iterator[None]:
        """The engine with every call of a training's replays timed, from outside."""
        calls_of = replay._calls
        self.trainings += 1
        self.made["batch"] += 1

        def calls(operation: Operation, operands: Sequence[Any], out: Array) -> list[Call]:
            name = f"{operation.function.__name__} {out.shape}"
            made = calls_of(operation, operands, out)
            self.made[name] += len(made)
            return [self.timed(name, call) for call in made]

        gather = self.timed("batch", Workspace.gather)
        with patch.object(replay, "_calls", calls), patch.object(Workspace, "gather", lambda *arguments: gather(*arguments)):
            yield

    def parts(self) -> dict[str, tuple[float, float]]:
        """name -> calls a step, and their microseconds a step; what takes most first."""
        calls = {name: made / self.trainings for name, made in self.made.items()}
        parts = {name: (calls[name], calls[name] * float(np.median(self.seconds[name])) * 1e6) for name in calls}
        return dict(sorted(parts.items(), key=lambda part: -part[1][1]))


def _page(title: str, parts: dict[str, tuple[float, float]], whole: float, compiled: float) -> None:
    print(f"\n{title}")
    rest = whole - sum(microseconds for _, microseconds in parts.values())
    once = {"Python": (1.0, rest), "the step": (1.0, whole), "the step, compiled": (1.0, compiled)}
    for name, (calls, microseconds) in {**parts, **once}.items():
        print(f"  {name:<32}{calls:5.0f} x{microseconds:10.2f}   {100 * microseconds / whole:5.1f} %")
