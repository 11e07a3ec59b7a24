"""The record of a sweep: its own run, its jobs' runs, and the outbox with what the store did not take."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.record import AnyRun, AnyStore, Untracked, open_store
from experiments.record.address import StoreError, absolute_uri, may_contain_sweep
from experiments.record.identity import FinishedJobs
from experiments.record.outbox import Outbox
from experiments.record.ownership import VARIABLE, TakenOver
from experiments.run.config import UserError
from experiments.run.job import PARENT, Parent, reason_of, status_of
from experiments.run.loaders import targets_to_allow
from experiments.sweep.jobs import Jobs
from experiments.sweep.open_runs import OpenRuns

if TYPE_CHECKING:
    from experiments.pictures.report import Report
    from experiments.run.stack import Trained

    Outcome = tuple[int, Trained | Exception]


class SweepRecord:
    """What is recorded of a sweep.

    fingerprint: of the sweep. folder: Hydra's for it.
    finished: what an earlier start of the same sweep has finished; tags: of those jobs, once they are loaded.
    verdict: of the sweep's study.
    """

    def __init__(self, jobs: Jobs, fingerprint: str, folder: Path) -> None:
        self.jobs, self.fingerprint = jobs, fingerprint
        loaders = targets_to_allow(config.dataset.loader for config in jobs.configs)
        self.outbox = Outbox(jobs.configs[0].tracking, folder.absolute(), loaders)
        self.store: AnyStore | None = None
        self.parent: AnyRun = Untracked()
        self.finished: FinishedJobs = {}
        self.tags: dict[int, dict[str, str]] = {}
        self.verdict = ""
        self._beating = contextlib.ExitStack()

    @property
    def is_resumable(self) -> bool:
        """Whether the store may have this sweep already; False is certain, and costs no import of MLflow."""
        tracking = self.jobs.configs[0].tracking
        return tracking.enabled and may_contain_sweep(absolute_uri(tracking.uri), self.fingerprint)

    def open(self) -> None:
        """Open the store and the sweep's own run; find what an earlier start has finished.

        Raises UserError where another process is training the same sweep.
        """
        first = self.jobs.configs[0]
        self.store = open_store(first.tracking)
        self.parent, self.finished = self.store.begin_sweep(self.jobs.name, {"kind": "sweep"}, self.fingerprint, first.sweep)
        if count := len(self.finished):
            print(f"{count} of {self.jobs.count} runs are in the record already (sweep.resume=false trains them anew)")
        self._beating.enter_context(self.parent.heartbeats())
        self.outbox.owner = self.store.token
        with self.outbox.catching_unreachable():
            self.parent.log_summary(self.jobs.values())
            self._save_view(self.store)
        self.share()

    def share(self) -> None:
        """Let jobs in other processes know of their sweep, see `job.parent_of_job`."""
        if self.store:
            parent = asdict(Parent(self.parent.run_id, self.jobs.configs[0].tracking, self.jobs.keys))
            os.environ.update({PARENT: json.dumps(parent), VARIABLE: self.store.token})

    def load_tags(self) -> None:
        """Have the tags of the jobs that are finished."""
        if self.store:
            self.tags = self.store.tags_of(self.parent.run_id, [job for job, _ in self.finished])

    def _save_view(self, store: AnyStore, pictures: Sequence[str] = ()) -> None:
        from experiments.run.data import task

        configs = self.jobs.configs
        store.page.save_view(self.parent.run_id, self.jobs.title(), configs, task(configs[0]).score, pictures)

    @cached_property
    def _runs(self) -> OpenRuns:
        assert self.store is not None
        return OpenRuns(self.store, self.parent, self.outbox, self.jobs)

    def report(self, stacks: Iterable[tuple[Sequence[int], Path]]) -> None:
        """Write what those stacks, each the numbers of its jobs and a file, report of their training so far."""
        self._runs.report(stacks)

    def end(self, outcomes: "Sequence[Outcome]") -> "Iterator[Sequence[Outcome]]":
        """Write what has come of jobs, as many at once as the store takes; yields those that are written."""
        at_once = self.store.runs_at_once if self.store else 1
        for first in range(0, len(outcomes), at_once):
            written = outcomes[first : first + at_once]
            self._runs.end(written)
            yield written

    def finish(self, report: "Report | None", error: BaseException | None) -> None:
        """Write table, pictures and the end of the sweep, after all that still waits; nothing where another process has it.

        error: what has ended the sweep.
        """
        if isinstance(error, TakenOver) or not (self.store and self.parent.run_id):
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if report:
                report.save(folder / "table.csv")
            self.outbox.is_closed = self.outbox.is_closed or len(self.outbox) > 0
            self.outbox.try_again(self.store, now=True)
            with self.outbox.catching_unreachable():
                if not self.outbox.is_closed:
                    self._finish(self.store, report, folder, error)
            if self.outbox.is_closed:
                reason = reason_of(error) if error else ""
                self.outbox.put_sweep(self.parent.run_id, status_of(error), reason, self.jobs.values(), folder)

    def _finish(self, store: AnyStore, report: "Report | None", folder: Path, error: BaseException | None) -> None:
        status, full = status_of(error), None
        self.parent.check_owner()
        try:
            self._save(store, report, folder, interrupted=status == "KILLED")
        except StoreError as refused:
            full = refused
        if ended_by := error or full:
            self.parent.fail(reason_of(ended_by), "FAILED" if full else status)
        else:
            self.parent.end()
        if full and not error:
            raise full

    def _save(self, store: AnyStore, report: "Report | None", folder: Path, interrupted: bool) -> None:
        """The files of `folder`, and pictures and models, or why there are none. One that is interrupted should end at once."""
        from experiments.pictures.gallery import describe_failure, list_pictures, log_sweep

        self.parent.log_summary(self.jobs.values())
        if not (interrupted or isinstance(store, Untracked) or isinstance(self.parent, Untracked)):
            if report:
                self.verdict = log_sweep(store, self.parent, report, folder)
                if report.best_run:
                    self._save_view(store, [picture.stem for picture in list_pictures(folder)])
            else:
                describe_failure(store, self.parent, len(self.jobs))
        self.parent.log_artifacts(folder)

    def close(self, error: BaseException | None) -> None:
        """Nothing of the sweep is RUNNING any more, whatever has ended it."""
        for variable in (PARENT, VARIABLE):
            os.environ.pop(variable, None)
        self._beating.close()
        # A server that does not answer has runs left that are RUNNING: the next start finds that their owner is dead.
        if self.store and not self.outbox.is_closed:
            with contextlib.suppress(UserError):
                if error:
                    self.store.close(status_of(error), reason_of(error))
                else:
                    self.store.close()
