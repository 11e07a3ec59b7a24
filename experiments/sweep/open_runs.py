"""The runs of a sweep that are RUNNING. They begin while they train, and are written as they end, or put into the outbox."""

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.record import AnyRun, AnyStore
from experiments.record.outbox import Outbox
from experiments.run.interrupts import defer_interrupts
from experiments.run.job import reason_of
from experiments.run.pool import WorkerLost
from experiments.sweep.jobs import Jobs

if TYPE_CHECKING:
    from experiments.run.stack import TrainedRun


class OpenRuns:
    """The runs of a sweep's jobs in its store, from the start of their training to its end.

    parent: the sweep's own run. outbox: where runs wait that the store did not accept.
    """

    def __init__(self, store: AnyStore, parent: AnyRun, outbox: Outbox, jobs: Jobs) -> None:
        self.store, self.parent, self.outbox, self.jobs = store, parent, outbox, jobs
        self.runs: dict[int, AnyRun] = {}
        # A report's file -> the time when it was written, for the last version that was read.
        self.written_at: dict[Path, float] = {}

    @defer_interrupts()
    def begin(self, jobs: Iterable[int]) -> None:
        """Create the runs of those jobs that have none yet."""

        def begin(new: Sequence[int]) -> None:
            runs = [(self.jobs.name_of(job), self.jobs.tags_of(job), self.jobs.configs[job]) for job in new]
            self.runs.update(zip(new, self.store.begin_runs(runs, self.parent.run_id), strict=True))

        new = [job for job in jobs if job not in self.runs]
        self.store.call_concurrently(*(partial(begin, group) for group in self.store.transactions(new)))

    def report(self, stacks: Iterable[tuple[Sequence[int], Path]]) -> None:
        """Begin the runs of stacks in training, and write their progress.

        stacks: of each the numbers of its jobs, and the file of its report.
        """
        self.outbox.try_again(self.store)
        if not self.outbox.is_closed:
            with self.outbox.catching_unreachable():
                self.parent.check_owner()
                for jobs, report in stacks:
                    self.begin(jobs)
                    self._progress(jobs, report)

    def _progress(self, stack: Sequence[int], report: Path) -> None:
        from blocks.history import History
        from experiments.run.data import load_task
        from experiments.run.stack import steps_of

        with contextlib.suppress(FileNotFoundError):
            changed = report.stat().st_mtime
            if changed != self.written_at.get(report):
                self.written_at[report] = changed
                history = History.load(report)
                runs: list[tuple[Any, History, int]] = []
                for lane, job in enumerate(stack):
                    config = self.jobs.configs[job]
                    runs.append((self.runs[job], history.lane(lane), steps_of(config, load_task(config))))
                for group in self.store.transactions(runs):
                    self.store.progress(group)

    @defer_interrupts()
    def end(self, outcomes: "Sequence[tuple[int, TrainedRun | Exception]]") -> None:
        """Write the outcomes of jobs, concurrently where the store can. A run that it does not accept waits in the outbox."""
        with self.outbox.catching_unreachable():
            if not self.outbox.is_closed:
                self.begin(job for job, _ in outcomes)
                trained = [(job, outcome) for job, outcome in outcomes if not isinstance(outcome, Exception)]
                self.store.call_concurrently(
                    *(partial(self._fail, job, outcome) for job, outcome in outcomes if isinstance(outcome, Exception)),
                    *(partial(self._finish, group) for group in self.store.transactions(trained)),
                )
        for job, outcome in outcomes:
            run = self.runs.pop(job, None)
            if not (run and run.has_ended) and not isinstance(outcome, Exception):
                self.outbox.put(self.jobs.name_of(job), self.jobs.tags_of(job), self.parent.run_id, outcome)

    def _fail(self, job: int, error: Exception) -> None:
        self.runs[job].fail(reason_of(error), "KILLED" if isinstance(error, WorkerLost) else "FAILED")

    def _finish(self, trained: "Sequence[tuple[int, TrainedRun]]") -> None:
        runs: list[tuple[Any, TrainedRun]] = [(self.runs[job], run) for job, run in trained]
        self.store.finish(runs)
