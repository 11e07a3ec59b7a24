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
    from experiments.run.stack import TrainedRun
    from experiments.sweep.record import Outcome, SweepRecord

TICK_SECONDS = 1.0
# The bar grows with the work done, so that the seconds left are right although the largest stacks come first.
BAR = "{desc} |{bar}| {remaining} left"


class Round:
    """Jobs that are trained at the same time, as stacks, the one with most work first.

    configs: job -> its config. end_epoch: job -> the epoch at which it stops, None for the last.
    size: lanes per stack, see `stack.plan`. folder: for the reports, one file a stack, of which `reports` are the paths.
    """

    def __init__(
        self, configs: Mapping[int, Config], end_epoch: Callable[[int], int | None], size: int | None, folder: Path
    ) -> None:
        from experiments.run.data import load_task
        from experiments.run.stack import plan, work

        self.configs, self.end_epoch = configs, end_epoch
        self.tasks = {job: load_task(config) for job, config in configs.items()}
        jobs = list(configs)
        self.stacks = [[jobs[k] for k in stack] for stack in plan(list(configs.values()), list(self.tasks.values()), size)]
        self.work = [work(configs[stack[0]], self.tasks[stack[0]]) * len(stack) for stack in self.stacks]
        self.reports = [folder / f"{number}.npz" for number in range(len(self.stacks))]

    def items(self, engine: Engine) -> "tuple[Callable[..., list[TrainedRun]], list[tuple[Any, ...]]]":
        """Return the function that trains a stack, and its arguments for every stack."""
        from experiments.run.stack import train_reporting, train_stack

        shared = {task: engine.share(task) for task in dict.fromkeys(self.tasks.values())}
        items = [
            ([self.configs[job] for job in stack], shared[self.tasks[stack[0]]], report if engine.shares_files else None)
            for stack, report in zip(self.stacks, self.reports, strict=True)
        ]
        epochs = [self.end_epoch(stack[0]) for stack in self.stacks]
        # A worker on another machine cannot write reports that this one could read.
        function = train_reporting if engine.shares_files else train_stack
        return function, [(*item, end_epoch) for item, end_epoch in zip(items, epochs, strict=True)]


class Training:
    """The training of a sweep's jobs, whose outcomes it writes to the record.

    record: the sweep's. halving: its rungs, None without. engine: where stacks are trained.
    open_record: opens the record. It is called while the first stacks train, since it imports MLflow and may create a store.
    progress: returns the text of the progress bar.
    n_jobs: stacks that are trained at the same time, -1 is one for each core. stack_size: lanes per stack, see `stack.plan`.

    updates: the number of updates of all runs so far.
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
        """Train the jobs, and yield their outcomes in groups, each after it is written."""
        stopped: Sequence[Outcome] = []
        rungs = self.halving.count if self.halving else 0
        for rung in range(1, rungs + 2):
            if not jobs:
                # All jobs have diverged, or a run was lost.
                break
            trained: list[Outcome] = []
            with self._round(jobs, rung) as stacks:
                self.open_record()
                # The jobs that the last rung has stopped are written while this round trains.
                yield from self.record.end(stopped)
                for stack in stacks:
                    if rung > rungs:
                        yield from self.record.end(stack)
                    else:
                        trained += stack
            jobs, stopped = self._judge(rung, trained) if rung <= rungs else ([], [])
        yield from self.record.end(stopped)

    @contextlib.contextmanager
    def _round(self, jobs: Sequence[int], rung: int) -> "Iterator[Iterator[list[Outcome]]]":
        """Train the jobs up to that rung. Yields an iterator over the outcomes of each stack, as they end."""
        configs = {job: self.record.jobs.configs[job] for job in jobs}

        def end_epoch(job: int) -> int | None:
            return self.halving.end_epoch(job, rung) if self.halving else None

        with tempfile.TemporaryDirectory() as folder:
            stacks = Round(configs, end_epoch, self.stack_size, Path(folder))
            with (
                tqdm(total=sum(stacks.work), bar_format=BAR, disable=None) as bar,
                self.engine.pool(*stacks.items(self.engine), self.n_jobs) as pool,
            ):
                yield self._outcomes(stacks, pool, bar)

    def _outcomes(self, stacks: Round, pool: ItemPool, bar: Any) -> "Iterator[list[Outcome]]":
        """Yield the outcomes of each stack as it ends, and report the progress of the others meanwhile."""

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
        """Return the jobs that go on from that rung, and the outcomes of those that end there."""
        from experiments.run.stack import TrainedRun

        assert self.halving is not None
        trained = {job: outcome for job, outcome in outcomes if isinstance(outcome, TrainedRun)}
        if len(trained) < len(outcomes):
            # Without the lost run, other jobs would go on than with it.
            error = WorkerLost(f"rung {rung} is not judged, since a run was lost before it: the same command does it")
            return [], [(job, error if job in trained else outcome) for job, outcome in outcomes]
        survivors = set(self.halving.survivors(rung, trained, self.record.tags))
        stopped: list[Outcome] = [(job, replace(run, rung=rung)) for job, run in trained.items() if job not in survivors]
        return sorted(survivors), stopped
