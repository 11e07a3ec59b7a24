"""python -m tests.benchmarks.stages FILE [KEY=VALUE ...]: `experiments.train`, and where its time goes as JSON.

Stage -> [seconds, processor seconds] of the main thread. Everything is imported before the command begins, which imports much
of it while the first stacks train.
"""

import builtins
import functools
import importlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED = time.perf_counter(), time.thread_time()
IMPORTS, NEW_STORE = "imports", "record: a new store's tables"
# A stage -> the functions that it is made of, as MODULE:NAME.
STAGES = {
    "composing and checking": ["experiments.sweep.sweep:Sweep.__init__", "hydra_plugins.depth_laboratory._axes:span"],
    "workers, until they are begun": ["experiments.run.engines:Loky.pool"],
    "waiting for training": ["queue:Queue.get"],
    "record: opening": ["experiments.record.tracking:Store.__init__"],
    NEW_STORE: ["experiments.record.experiment:_create_sqlite_store"],
    "record: runs": ["experiments.sweep.open_runs:OpenRuns.report", "experiments.sweep.open_runs:OpenRuns.end"],
    "record: the sweep": ["experiments.sweep.record:SweepRecord._save"],
    "jobs' folders, as Hydra's": ["hydra_plugins.depth_laboratory._jobs:_run_callbacks"],
    "pictures": ["experiments.pictures.figures:save", "experiments.pictures.gallery:draw_run"],
    "model": ["experiments.pictures.gallery:log_network"],
}


class Clock:
    """Seconds and processor seconds of every stage; of stages within each other the innermost has them."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.open, self.since = ["rest"], STARTED

    def _turn(self) -> None:
        now = time.perf_counter(), time.thread_time()
        for clock, (end, start) in enumerate(zip(now, self.since, strict=True)):
            self.seconds[self.open[-1]][clock] += end - start
        self.since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done in the context belongs to that stage."""
        self._turn()
        self.open.append(name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a part of that stage, in the main thread alone."""
        main = threading.main_thread().ident

        @functools.wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            if threading.get_ident() != main:
                return function(*arguments, **more)
            with self.stage(name):
                return function(*arguments, **more)

        return call

    def watch_imports(self) -> None:
        """From now on, whatever imports."""
        builtins.__import__ = self.timed(IMPORTS, builtins.__import__)
        importlib.import_module = self.timed(IMPORTS, importlib.import_module)

    def watch(self, name: str, place: str) -> None:
        """The function MODULE:NAME as a part of that stage, wherever it is called from."""
        module, _, path = place.partition(":")
        *owners, last = path.split(".")
        owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
        static = isinstance(vars(owner)[last], staticmethod)
        timed_function = self.timed(name, getattr(owner, last))
        setattr(owner, last, staticmethod(timed_function) if static else timed_function)


def main() -> None:
    """The command."""
    file, *sys.argv[1:] = sys.argv[1:]
    clock = Clock()
    clock.watch_imports()
    try:
        from hydra.core.plugins import Plugins

        from experiments import train

        Plugins.instance()
        with clock.stage(IMPORTS):
            for name, places in STAGES.items():
                for place in places:
                    clock.watch(name, place)
        train.main()
    finally:
        clock._turn()
        Path(file).write_text(json.dumps(clock.seconds))


if __name__ == "__main__":
    main()
