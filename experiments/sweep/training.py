"""The training of a sweep's jobs as stacks, in one round, or with halving in rounds from rung to rung."""

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from experiments.run.config import Config
from experiments.run.engines import Engine, ItemPool
from experiments.run.interrupts import raise_lost_interrupt
from experiments.run.pool import WorkerLost

if TYPE_CHECKING:
    from experiments.run.halving import Halving
    from experiments.run.stack import Trained
    from experiments.sweep.record import Outcome, SweepRecord

TICK_SECONDS = 1.0
# The bar grows with the work done, so that the seconds left are right although the largest stacks come first.
BAR = "{desc} |{bar}| {remaining} left"


class Round:
    """Jobs as stacks, the one with most work first, and files for reports of their training.

    configs: job -> its config. until: job -> the epochs that it makes, None for all. size: lanes a stack, see `stack.plan`.
    """

    def __init__(self, configs: Mapping[int, Config], until: Callable[[int], int | None], size: int | None, folder: Path) -> None:
        from experiments.run.data import load_task
        from experiments.run.stack import plan, work

        self.configs, self.until = configs, until
        self.tasks = {job: load_task(config) for job, config in configs.items()}
        jobs = list(configs)
        self.stacks = [[jobs[k] for k in stack] for stack in plan(list(configs.values()), list(self.tasks.values()), size)]
        self.work = [work(configs[stack[0]], self.tasks[stack[0]]) * len(stack) for stack in self.stacks]
        self.reports = [folder / f"{number}.npz" for number in range(len(self.stacks))]

    def items(self, engine: Engine) -> "tuple[Callable[..., list[Trained]], list[tuple[Any, ...]]]":
        """The function that trains a stack, and its arguments for every stack."""
        from experiments.run.stack import train_reporting, train_stack

        shared = {task: engine.share(task) for task in dict.fromkeys(self.tasks.values())}
        items = [
            ([self.configs[job] for job in stack], shared[self.tasks[stack[0]]], report if engine.shares_files else None)
            for stack, report in zip(self.stacks, self.reports, strict=True)
        ]
        epochs = [self.until(stack[0]) for stack in self.stacks]
        # On another machine nothing is seen of a stack until it is trained.
        function = train_reporting if engine.shares_files else train_stack
        return function, [(*item, until) for item, until in zip(items, epochs, strict=True)]


class Training:
    """Trains jobs and writes what comes of them.

    record: of the sweep. open_record: opens it; MLflow is imported and a new store made while the first stacks train.
    progress: the bar's text. n_jobs: stacks side by side, -1 is one a core. stack_size: lanes a stack, None is what suits.
    updates: that have been made.
    """

    def __init__(
        self,
        record: "SweepRecord",
        halving: "Halving | None",
        engine: Engine,
        open_record: Callable[[], None],
        progress: Callable[[], str],
        n_jobs: int,
        stack_size: int | None,
    ) -> None:
        self.record, self.halving, self.engine, self.open_record, self.progress = record, halving, engine, open_record, progress
        self.n_jobs, self.stack_size = n_jobs, stack_size
        self.updates = 0

    def run(self, jobs: Sequence[int]) -> "Generator[Sequence[Outcome]]":
        """What has come of the jobs, some at once, when it is written."""
        stopped: Sequence[Outcome] = []
        rungs = self.halving.count if self.halving else 0
        for rung in range(1, rungs + 2):
            if not jobs:
                # All have diverged, or a run was lost.
                break
            trained: list[Outcome] = []
            with self._round(jobs, rung) as stacks:
                self.open_record()
                # Those that the last rung has stopped are written while this round trains.
                yield from self.record.end(stopped)
                for stack in stacks:
                    if rung > rungs:
                        yield from self.record.end(stack)
                    trained += stack
            jobs, stopped = self._judge(rung, trained) if rung <= rungs else ([], [])
        yield from self.record.end(stopped)

    @contextlib.contextmanager
    def _round(self, jobs: Sequence[int], rung: int) -> "Iterator[Iterator[list[Outcome]]]":
        """The stacks of the jobs as they end, up to that rung."""
        configs = {job: self.record.jobs.configs[job] for job in jobs}

        def until(job: int) -> int | None:
            return self.halving.until(job, rung) if self.halving else None

        with tempfile.TemporaryDirectory() as folder:
            stacks = Round(configs, until, self.stack_size, Path(folder))
            with (
                tqdm(total=sum(stacks.work), bar_format=BAR, disable=None) as bar,
                self.engine.pool(*stacks.items(self.engine), self.n_jobs) as pool,
            ):
                yield self._ended(stacks, pool, bar)

    def _ended(self, stacks: Round, pool: ItemPool, bar: Any) -> "Iterator[list[Outcome]]":
        def tick() -> None:
            raise_lost_interrupt()
            self.record.report([(stacks.stacks[number], stacks.reports[number]) for number in sorted(pool.active_items)])

        for number, trained in pool.results(tick, TICK_SECONDS):
            stack = stacks.stacks[number]
            lanes = [trained] * len(stack) if isinstance(trained, Exception) else trained
            self.updates += sum(lane.history.steps_made for lane in lanes if not isinstance(lane, Exception))
            yield list(zip(stack, lanes, strict=True))
            bar.update(stacks.work[number])
            bar.set_description_str(self.progress())

    def _judge(self, rung: int, outcomes: "Sequence[Outcome]") -> "tuple[list[int], list[Outcome]]":
        """The jobs that go on from that rung, and those that end there."""
        from experiments.run.stack import Trained

        assert self.halving is not None
        trained = {job: outcome for job, outcome in outcomes if isinstance(outcome, Trained)}
        if len(trained) < len(outcomes):
            # Without it, others would go on than with it.
            lost = WorkerLost(f"rung {rung} is not judged, since a run was lost before it: the same command does it")
            return [], [(job, lost if job in trained else outcome) for job, outcome in outcomes]
        goes_on = set(self.halving.survivors(rung, trained, self.record.tags))
        stopped: list[Outcome] = [(job, replace(run, rung=rung)) for job, run in trained.items() if job not in goes_on]
        return sorted(goes_on), stopped
