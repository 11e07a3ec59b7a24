"""A sweep: all jobs are checked before the first one starts, then trained as stacks, written to one record, and summarised."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from experiments.record.identity import sweep_fingerprint
from experiments.run.engines import Engine, Loky, connect
from experiments.run.folder import check_folder
from experiments.run.interrupts import defer_interrupts
from experiments.run.job import Result
from experiments.run.naming import format_value
from experiments.sweep.checks import check_launch, check_study, halving
from experiments.sweep.jobs import Jobs
from experiments.sweep.record import SweepRecord
from experiments.sweep.summary import print_halving, print_outcomes, print_record
from experiments.sweep.training import Training

if TYPE_CHECKING:
    from experiments.pictures.report import Report
    from experiments.run.stack import TrainedRun


class Sweep:
    """A context in which the jobs of a sweep are run, see the checked sweeper.

    jobs: every job's config, in the job's own context, and its folder. folder: the sweep's output folder, from Hydra.
    search: the identity of a search whose jobs are not all known yet, "" where they are.
    count: the number of jobs that a search will have.

    results: of the jobs that are finished, by job. untrained: the errors of the jobs that were not trained, by job.

    Raises UserError for the first job that cannot be run, before anything is created.
    """

    def __init__(self, jobs: Iterable[tuple[DictConfig, str]], folder: str, search: str = "", count: int = 0) -> None:
        check_folder("hydra.sweep.dir", folder)
        self.jobs = Jobs(jobs, count)
        check_study(self.jobs.configs)
        self.halving = halving(self.jobs.configs, search)
        schedule = f"halving {format_value(self.halving.factor)} by {self.jobs.measure.name}" if self.halving else ""
        fingerprint = sweep_fingerprint([*self.jobs.fingerprints, *filter(None, [schedule, search])])
        self.record = SweepRecord(self.jobs, fingerprint, Path(folder))
        self.results: list[Result | None] = [None] * len(self.jobs)
        self.untrained: dict[int, Exception] = {}
        self.training: Training | None = None
        self.cluster: tuple[str, str | None] = ("loky", None)
        self.engine: Engine = Loky()
        self.contexts = contextlib.ExitStack()

    @property
    def distinct(self) -> list[int]:
        """The numbers of the jobs that do not repeat an earlier job."""
        return self.jobs.distinct

    @property
    def direction(self) -> str:
        """Optuna's direction of the jobs' results: minimize or maximize."""
        return "minimize" if self.jobs.measure.is_loss else "maximize"

    def check_launch(self, launcher: str, batch: int | None) -> None:
        """Raise UserError where jobs that are compared at rungs would be launched one by one, or in batches."""
        check_launch(self.halving, len(self.jobs), launcher, batch)

    def train_on(self, backend: str, address: str | None) -> None:
        """Choose the engine that trains the stacks, see `run.engines.connect`. It is connected when the context is entered."""
        self.cluster = (backend, address)

    def extend(self, jobs: Iterable[tuple[DictConfig, str]]) -> None:
        """Add jobs of a search, of which those in the record are not trained again. Raises UserError where one cannot be run."""
        first = len(self.jobs)
        self.jobs.extend(jobs)
        self.results += [None] * (len(self.jobs) - first)
        self._load_results(first)
        self.record.share()

    def announce(self) -> None:
        """Open the record, unless it is open, and load the results of an earlier start. Raises as `SweepRecord.open`."""
        if self.record.store is None:
            self.record.open()
            self._load_results()
            if self.halving:
                self.record.load_tags()

    def _load_results(self, first: int = 0) -> None:
        """Load the results that the record has, from the job with the number `first` on."""
        for job in range(first, len(self.jobs)):
            if finished := self.record.finished.get((job, self.jobs.fingerprints[job])):
                self.results[job] = Result.from_value(*finished, self.jobs.measure)

    def run(self, jobs: range, n_jobs: int, stack_size: int | None) -> Iterator[tuple[int, Result | Exception]]:
        """Run jobs as stacks, and yield each one's number with its Result, or the exception that ended it, as they finish.

        Jobs that are in the record already come first. n_jobs, stack_size: see `Training`.
        """
        for job in jobs:
            if (result := self.results[job]) is not None:
                yield job, result
        untrained_jobs = [job for job in jobs if self.results[job] is None]
        self.training = Training(self.record, self.halving, self.engine, self.announce, self._progress, n_jobs, stack_size)
        with contextlib.closing(self.training.run(untrained_jobs)) as outcome_groups:
            for outcomes in outcome_groups:
                yield from [(job, self._result(job, outcome)) for job, outcome in outcomes]

    def _result(self, job: int, outcome: "TrainedRun | Exception") -> Result | Exception:
        if isinstance(outcome, Exception):
            self.untrained[job] = outcome
            return outcome
        self.results[job] = result = Result.from_trained(outcome)
        return result

    def _progress(self) -> str:
        results = [result for result in self.results if result is not None]
        diverged = sum(result.outcome == "diverged" for result in results)
        untrained = f", {len(self.untrained)} not trained" if self.untrained else ""
        return f"{len(results)}/{self.jobs.count} runs, {diverged} diverged{untrained}"

    def __enter__(self) -> "Sweep":
        with contextlib.ExitStack() as contexts:
            self.engine = contexts.enter_context(connect(*self.cluster))
            print(self.jobs.summary())
            if self.jobs.machine_reason:
                print(self.jobs.machine_reason)
            if self.record.is_resumable:
                with contextlib.ExitStack() as on_failure:
                    on_failure.push(lambda kind, error, trace: self.record.close(error))
                    self.announce()
                    on_failure.pop_all()
            self.contexts.push(contexts.pop_all())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.contexts.close()
            self._finish(error)
        except BaseException as exit_error:
            error = exit_error
            raise
        finally:
            with defer_interrupts():
                self.record.close(error)

    def _finish(self, error: BaseException | None) -> None:
        """Print the sweep's outcomes, and end its own run. Exits with status 1 where runs wait in the outbox."""
        untrained = {f"job {job} ({self.jobs.name_of(job)})": reason for job, reason in self.untrained.items()}
        report = self._report(untrained)
        print_outcomes(self.record, report, untrained, interrupted=error is not None)
        if self.training:
            print_halving(self.training)
        self.record.finish(report, error)
        print_record(self.record)
        if len(self.record.outbox) and error is None:
            raise SystemExit(1)

    def _report(self, untrained: Mapping[str, Exception]) -> "Report | None":
        from experiments.pictures.report import Report, Row

        rows = [
            Row(config, float(result), result.outcome, job)
            for job, (config, result) in enumerate(zip(self.jobs.configs, self.results, strict=True))
            if result is not None
        ]
        return Report(rows, untrained) if rows else None
