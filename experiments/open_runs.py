"""The runs of a sweep that are RUNNING: begun while they train, written as they end, or left in the outbox."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.job import reason_of
from experiments.record import AnyRun, AnyStore
from experiments.record.outbox import Outbox
from experiments.run.config import Config
from experiments.run.interrupts import defer_interrupts
from experiments.run.pool import Lost

if TYPE_CHECKING:
    from experiments.run.stack import Trained


class OpenRuns:
    """The runs of a sweep's jobs in its store, from the moment their training begins.

    parent: the sweep's own run. outbox: takes what the store does not. configs: one a job. name, tags: job -> what its run is
    called, and what it is found by.
    """

    def __init__(
        self,
        store: AnyStore,
        parent: AnyRun,
        outbox: Outbox,
        configs: Sequence[Config],
        name: Callable[[int], str],
        tags: Callable[[int], dict[str, str]],
    ) -> None:
        self.store, self.parent, self.outbox, self.configs, self.name, self.tags = store, parent, outbox, configs, name, tags
        self.runs: dict[int, AnyRun] = {}
        self.read: dict[Path, float] = {}
        self.written: set[int] = set()

    @defer_interrupts()
    def begin(self, jobs: Iterable[int]) -> None:
        """Make the runs of those jobs that have none yet."""

        def begin(job: int) -> None:
            self.runs[job] = self.store.begin(self.name(job), self.tags(job), self.parent.run_id, self.configs[job])

        self.store.at_once(*(partial(begin, job) for job in jobs if job not in self.runs))

    def report(self, numbers: Sequence[int], stacks: Sequence[Sequence[int]], reports: Sequence[Path]) -> None:
        """Begin the runs of the stacks of those numbers, and write what their reports say of their training so far."""
        self.outbox.try_again(self.store)
        if not self.outbox.closed:
            with self.outbox.instead():
                self.parent.check_owner()
                for number in numbers:
                    self.begin(stacks[number])
                    self._progress(stacks[number], reports[number])

    def _progress(self, stack: Sequence[int], report: Path) -> None:
        from blocks.history import History
        from experiments.run.data import task
        from experiments.run.stack import steps_of

        with contextlib.suppress(FileNotFoundError):
            changed = report.stat().st_mtime
            if changed != self.read.get(report):
                self.read[report] = changed
                history = History.load(report)
                for lane, job in enumerate(stack):
                    config = self.configs[job]
                    self.runs[job].progress(history.lane(lane), steps_of(config, task(config)))

    @defer_interrupts()
    def end(self, outcomes: "Sequence[tuple[int, Trained | Exception]]") -> None:
        """Write what has come of those jobs, side by side where the store can; what it does not take waits in the outbox."""
        with self.outbox.instead():
            if not self.outbox.closed:
                self.begin(job for job, _ in outcomes)
                self.store.at_once(*(partial(self._write, job, outcome) for job, outcome in outcomes))
        for job, outcome in outcomes:
            self.runs.pop(job, None)
            if job not in self.written and not isinstance(outcome, Exception):
                self.outbox.put(self.name(job), self.tags(job), self.parent.run_id, outcome)

    def _write(self, job: int, outcome: "Trained | Exception") -> None:
        run = self.runs[job]
        if isinstance(outcome, Exception):
            run.fail(reason_of(outcome), "KILLED" if isinstance(outcome, Lost) else "FAILED")
        else:
            run.finish(outcome)
        # Whatever becomes of those that are written at the same time.
        self.written.add(job)
