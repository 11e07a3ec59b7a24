"""A sweep around its jobs: all are checked before the first, trained as stacks, written in one place, shown at the end."""

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
    from experiments.run.stack import Trained


class Sweep:
    """A context around a sweep's jobs, see the checked sweeper.

    jobs: every job's config, in the job's own context, and its folder. folder: Hydra's for this sweep.
    search: what identifies a search, whose jobs are not all known yet; count: of those that it will have.
    Raises UserError, before anything is made, for the first job that cannot be run.
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
        self.around = contextlib.ExitStack()

    @property
    def distinct(self) -> list[int]:
        """The numbers of the jobs that are not an earlier one again."""
        return self.jobs.distinct

    @property
    def direction(self) -> str:
        """Optuna's word for what is best of the results that its jobs return."""
        return "minimize" if self.jobs.measure.is_loss else "maximize"

    def check_launch(self, launcher: str, batch: int | None) -> None:
        """Raise UserError where jobs that are judged together would be launched one by one, or in such batches."""
        check_launch(self.halving, len(self.jobs), launcher, batch)

    def train_on(self, backend: str, address: str | None) -> None:
        """The engine that `run` hands stacks to, see `run.engines.connect`: it is connected to as the context is entered."""
        self.cluster = (backend, address)

    def extend(self, jobs: Iterable[tuple[DictConfig, str]]) -> None:
        """More jobs of a search; raises UserError as the start does. What the record has of them is not trained again."""
        first = len(self.jobs)
        self.jobs.extend(jobs)
        self.results += [None] * (len(self.jobs) - first)
        self._recall(first)
        self.record.share()

    def announce(self) -> None:
        """Open the record, once, and take over what an earlier start has finished; raises as `SweepRecord.open` does."""
        if self.record.store is None:
            self.record.open()
            self._recall()
            if self.halving:
                self.record.load_tags()

    def _recall(self, first: int = 0) -> None:
        """The results that the record has, from that job on."""
        for job in range(first, len(self.jobs)):
            if found := self.record.finished.get((job, self.jobs.fingerprints[job])):
                self.results[job] = Result.made(*found, self.jobs.measure)

    def run(self, jobs: range, n_jobs: int, stack_size: int | None) -> Iterator[tuple[int, Result | Exception]]:
        """(job, its Result, or the exception that ended it) as they finish, first those that the record has already.

        They are trained as stacks, `n_jobs` at once, -1 is one a core; see `Training`.
        """
        for job in jobs:
            if (result := self.results[job]) is not None:
                yield job, result
        left = [job for job in jobs if self.results[job] is None]
        self.training = Training(self.record, self.halving, self.engine, self.announce, self._progress, n_jobs, stack_size)
        with contextlib.closing(self.training.run(left)) as written:
            for outcomes in written:
                yield from [(job, self._result(job, outcome)) for job, outcome in outcomes]

    def _result(self, job: int, outcome: "Trained | Exception") -> Result | Exception:
        if isinstance(outcome, Exception):
            self.untrained[job] = outcome
            return outcome
        self.results[job] = result = Result.of(outcome)
        return result

    def _progress(self) -> str:
        ended = [result for result in self.results if result is not None]
        diverged = sum(result.outcome == "diverged" for result in ended)
        untrained = f", {len(self.untrained)} not trained" if self.untrained else ""
        return f"{len(ended)}/{self.jobs.count} runs, {diverged} diverged{untrained}"

    def __enter__(self) -> "Sweep":
        with contextlib.ExitStack() as entered:
            self.engine = entered.enter_context(connect(*self.cluster))
            print(self.jobs.summary())
            if self.jobs.machine_reason:
                print(self.jobs.machine_reason)
            if self.record.is_resumable:
                with contextlib.ExitStack() as failed:
                    failed.push(lambda kind, error, trace: self.record.close(error))
                    self.announce()
                    failed.pop_all()
            self.around.push(entered.pop_all())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.around.close()
            self._finish(error)
        except BaseException as own:
            error = own
            raise
        finally:
            with defer_interrupts():
                self.record.close(error)

    def _finish(self, error: BaseException | None) -> None:
        """Show what has come of the sweep, and end its own run."""
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

        ended = [
            Row(config, float(result), result.outcome, job)
            for job, (config, result) in enumerate(zip(self.jobs.configs, self.results, strict=True))
            if result is not None
        ]
        return Report(ended, untrained) if ended else None
