"""The record of a sweep: its own run, its jobs' runs, and the outbox with what the store did not accept."""

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
    from experiments.run.stack import TrainedRun

    Outcome = tuple[int, TrainedRun | Exception]


class SweepRecord:
    """The record of a sweep.

    fingerprint: the sweep's. folder: the sweep's output folder, from Hydra.

    store: None until it is opened. parent: the sweep's own run.
    finished: the results of the jobs that an earlier start of the same sweep has finished.
    tags: the tags of those jobs' runs, by job, after `load_tags`. verdict: the verdict of the sweep's study, "" without one.
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
        self._heartbeats = contextlib.ExitStack()

    @property
    def is_resumable(self) -> bool:
        """Whether the store may contain this sweep already. False is certain, True is not. MLflow is not imported for it."""
        tracking = self.jobs.configs[0].tracking
        return tracking.enabled and may_contain_sweep(absolute_uri(tracking.uri), self.fingerprint)

    def open(self) -> None:
        """Open the store and begin the sweep's own run. Find the jobs that an earlier start has finished.

        Raises UserError where another process is training the same sweep.
        """
        config = self.jobs.configs[0]
        self.store = open_store(config.tracking)
        self.parent, self.finished = self.store.begin_sweep(self.jobs.name, {"kind": "sweep"}, self.fingerprint, config.sweep)
        if count := len(self.finished):
            print(f"{count} of {self.jobs.count} runs are in the record already (sweep.resume=false trains them anew)")
        self._heartbeats.enter_context(self.parent.heartbeats())
        self.outbox.owner = self.store.token
        with self.outbox.catching_unreachable():
            self.parent.log_summary(self.jobs.values())
            self._save_view(self.store)
        self.share()

    def share(self) -> None:
        """Write the environment variables by which jobs in other processes know their sweep, see `job.parent_of_job`."""
        if self.store:
            parent = asdict(Parent(self.parent.run_id, self.jobs.configs[0].tracking, self.jobs.keys))
            os.environ.update({PARENT: json.dumps(parent), VARIABLE: self.store.token})

    def load_tags(self) -> None:
        """Load the tags of the finished jobs."""
        if self.store:
            self.tags = self.store.tags_of(self.parent.run_id, [job for job, _ in self.finished])

    def _save_view(self, store: AnyStore, pictures: Sequence[str] = ()) -> None:
        from experiments.run.data import load_task

        configs = self.jobs.configs
        store.page.save_view(self.parent.run_id, self.jobs.title(), configs, load_task(configs[0]).score, pictures)

    @cached_property
    def _runs(self) -> OpenRuns:
        assert self.store is not None
        return OpenRuns(self.store, self.parent, self.outbox, self.jobs)

    def report(self, stacks: Iterable[tuple[Sequence[int], Path]]) -> None:
        """Write the progress of stacks in training. stacks: of each the numbers of its jobs, and the file of its report."""
        self._runs.report(stacks)

    def end(self, outcomes: "Sequence[Outcome]") -> "Iterator[Sequence[Outcome]]":
        """Write the outcomes of jobs, as many at once as the store accepts, and yield each group after it is written."""
        group_size = self.store.runs_at_once if self.store else 1
        for first in range(0, len(outcomes), group_size):
            group = outcomes[first : first + group_size]
            self._runs.end(group)
            yield group

    def finish(self, report: "Report | None", error: BaseException | None) -> None:
        """Write the waiting runs, then table and pictures of the sweep, and end its own run.

        Nothing is written where another process has taken the sweep over.

        error: the exception that has ended the sweep, None where it came to its end.
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
        status, store_error = status_of(error), None
        self.parent.check_owner()
        try:
            self._save(store, report, folder, interrupted=status == "KILLED")
        except StoreError as raised:
            store_error = raised
        if final_error := error or store_error:
            self.parent.fail(reason_of(final_error), "FAILED" if store_error else status)
        else:
            self.parent.end()
        if store_error and not error:
            raise store_error

    def _save(self, store: AnyStore, report: "Report | None", folder: Path, interrupted: bool) -> None:
        """Log the files of `folder`, pictures and models, or why there are none. An interrupted sweep ends without pictures."""
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
        """End every run of the sweep that is RUNNING, and stop the heartbeats. error: the exception that has ended the sweep."""
        for variable in (PARENT, VARIABLE):
            os.environ.pop(variable, None)
        self._heartbeats.close()
        # Runs on a server that does not answer stay RUNNING. The next start of the sweep finds that their owner is dead.
        if self.store and not self.outbox.is_closed:
            with contextlib.suppress(UserError):
                if error:
                    self.store.close(status_of(error), reason_of(error))
                else:
                    self.store.close()
