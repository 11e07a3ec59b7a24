"""A sweep around its jobs: all are checked before the first, trained as stacks, written in one place, shown at the end."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from tqdm import tqdm

from blocks.arrays import choice
from experiments.job import PARENT, Parent, Result, reason_of, status_of, tags_of_run
from experiments.open_runs import OpenRuns
from experiments.record import AnyRun, AnyStore, Untracked, check_tracking, open_store
from experiments.record.address import StoreError, absolute, anchor, may_know
from experiments.record.identity import SURROUNDINGS, Finished, fingerprint, fingerprint_of_sweep
from experiments.record.outbox import Outbox
from experiments.record.ownership import VARIABLE, TakenOver
from experiments.run.config import Config, UserError, flat, run_name, settled, shown, sweep_name, typed, varied, words
from experiments.run.engines import Engine, Loky, connect
from experiments.run.folder import check_folder
from experiments.run.interrupts import defer_interrupts, raise_lost_interrupt
from experiments.run.loaders import needing_allowance

if TYPE_CHECKING:
    from experiments.pictures.report import Report
    from experiments.run.data import Task
    from experiments.run.stack import Trained

TICK_SECONDS = 1.0
# The bar grows with the work done, so that the seconds left are right although the largest stacks come first.
BAR = "{desc} |{bar}| {remaining} left"
MOST_TITLE = 120


def check_run(config: Config) -> "Task":
    """The run's task; raises UserError unless data, loss and batch size fit."""
    from experiments.record.files import check_recordable
    from experiments.run.data import task
    from experiments.run.stack import check_size

    of = task(config)
    check_size(config, of)
    if config.tracking.enabled:
        check_recordable(config, of)
    return of


def _check_alike(configs: Sequence[Config]) -> None:
    """Raise UserError where jobs differ in what a sweep has once: its record, and what is made of it."""
    runs = [flat(config) for config in configs]
    for key in [key for key in runs[0] if key.partition(".")[0] in SURROUNDINGS]:
        for job, run in enumerate(runs):
            if run[key] != runs[0][key]:
                # A URI may have a password in it.
                shown = "" if key == "tracking.uri" else f": {runs[0][key]!r} and {run[key]!r}"
                raise UserError(
                    f"{key} differs between job 0 and job {job}{shown}; a sweep is recorded as one, it must be the same"
                )


def _check_study(configs: Sequence[Config]) -> None:
    """Raise UserError where the sweep's study needs what a run has not."""
    name = configs[0].sweep.study
    if name is not None:
        from experiments.pictures.studies import STUDIES

        try:
            study = choice("sweep.study", name, STUDIES)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not configs[0].tracking.enabled:
            raise UserError(f"tracking.enabled is false, but sweep.study {name} reads what is recorded: it must be true")
        for config in configs:
            study.needs(config)


def _span(values: Sequence[Any]) -> str:
    """`0.003 to 1` of numbers, where they are more than three; of other values each one."""
    distinct = list(dict.fromkeys(str(value) if isinstance(value, list) else value for value in values))
    if len(distinct) > 3 and all(isinstance(value, int | float) for value in distinct):
        distinct = [min(distinct), max(distinct)]
        return " to ".join(map(shown, distinct))
    return ", ".join(map(shown, distinct))


class Sweep:
    """A context around a sweep's jobs, see the checked sweeper.

    jobs: every job's config, in the job's own context, and its folder. folder: Hydra's for this sweep.
    search: what identifies a search, whose jobs are not all known yet; count: of those that it will have.
    Raises UserError, before anything is made, for the first job that cannot be run.
    """

    # Of the results that its jobs return, for whoever optimises.
    direction = "minimize"

    def __init__(self, jobs: Iterable[tuple[DictConfig, str]], folder: str, search: str = "", count: int = 0) -> None:
        self.configs: list[Config] = []
        self.fingerprints: list[str] = []
        self.asked, self.reason = "", ""
        check_folder("hydra.sweep.dir", folder)
        self._take(jobs)
        _check_alike(self.configs)
        check_tracking(self.configs[0].tracking)
        _check_study(self.configs)
        # A job's own process may find what is relative, or a time of day, elsewhere.
        tracking = anchor(self.configs[0].tracking)
        self.configs = [replace(config, tracking=tracking) for config in self.configs]
        first = {mark: job for job, mark in reversed(list(enumerate(self.fingerprints)))}
        self.distinct = sorted(first.values())
        self.fingerprint = fingerprint_of_sweep([*self.fingerprints, *filter(None, [search])])
        self.count = count or len(self.configs)
        self.results: list[Result | None] = [None] * len(self.configs)
        self.untrained: dict[int, Exception] = {}
        self.store: AnyStore | None = None
        self.parent: AnyRun = Untracked()
        self.recorded: Finished = {}
        self.verdict = ""
        own = needing_allowance(config.dataset.loader for config in self.configs)
        self.outbox = Outbox(self.configs[0].tracking, Path(folder).absolute(), own)
        self.around, self.beating = contextlib.ExitStack(), contextlib.ExitStack()
        self.engine: Engine = Loky()
        self.cluster: tuple[str, str | None] = ("loky", None)

    def _take(self, jobs: Iterable[tuple[DictConfig, str]]) -> None:
        """Check those jobs, and have them from now on."""
        for cfg, job_folder in jobs:
            config = typed(cfg)
            if self.asked not in ("", config.machine):
                raise UserError(
                    f"machine differs between job 0 and job {len(self.configs)}: {self.asked!r} and {config.machine!r}; "
                    "the processes of a sweep have one, it must be the same"
                )
            self.asked = config.machine
            config, self.reason = settled(config)
            self.fingerprints.append(fingerprint(config, check_run(config).dataset.digest))
            check_folder("hydra.sweep.subdir", job_folder)
            self.configs.append(config)

    def extend(self, jobs: Iterable[tuple[DictConfig, str]]) -> None:
        """More jobs of a search; raises UserError as the start does. What the record has of them is not trained again."""
        known = len(self.configs)
        self._take(jobs)
        new = [replace(config, tracking=anchor(config.tracking)) for config in self.configs[known:]]
        _check_alike([self.configs[0], *new])
        self.configs[known:] = new
        self.results += [None] * len(new)
        for name in ("keys", "title", "values"):
            # They are of all configs.
            self.__dict__.pop(name, None)
        self._recall(range(known, len(self.configs)))
        self._tell_jobs()

    def _recall(self, jobs: range) -> None:
        """The results that the record has of those jobs."""
        for job in jobs:
            if found := self.recorded.get((job, self.fingerprints[job])):
                self.results[job] = Result.made(*found)

    def _tell_jobs(self) -> None:
        """What jobs in other processes know of their sweep, see `job.parent_of_job`."""
        if self.store:
            parent = asdict(Parent(self.parent.run_id, self.configs[0].tracking, self.keys))
            os.environ.update({PARENT: json.dumps(parent), VARIABLE: self.store.token})

    def train_on(self, backend: str, address: str | None) -> None:
        """The engine that `run` hands stacks to, see `run.engines.connect`: it is connected to as the context is entered."""
        self.cluster = (backend, address)

    def announce(self) -> None:
        """Open the store and the sweep's parent run, once; take over what an earlier start has finished.

        Raises UserError where another process is training the same sweep.
        """
        if self.store is None:
            first = self.configs[0]
            self.store = open_store(first.tracking)
            name = sweep_name(self.keys, self.count)
            self.parent, self.recorded = self.store.begin_sweep(name, {"kind": "sweep"}, self.fingerprint, first.sweep)
            self._recall(range(len(self.configs)))
            if done := len(self.recorded):
                print(f"{done} of {self.count} runs are in the record already (sweep.resume=false trains them anew)")
            self.beating.enter_context(self.parent.beating())
            self.outbox.owner = self.store.token
            with self.outbox.instead():
                self.parent.describe(self.values)
                self._save_view()
            self._tell_jobs()

    def _save_view(self, pictures: Sequence[str] = ()) -> None:
        from experiments.run.data import task

        score = "r2" if task(self.configs[0]).loss.decides is None else "accuracy"
        assert self.store is not None
        self.store.save_view(self.parent.run_id, self.title, self.configs, score, pictures)

    @cached_property
    def keys(self) -> list[str]:
        """Those that differ between the runs."""
        return varied([flat(config) for config in self.configs])

    @cached_property
    def title(self) -> str:
        """The sweep in words: `depth 2 to 33 x rate 0.003 to 1, 48 runs on digits`."""
        runs = [flat(config) for config in self.configs]
        axes = [f"{word} {_span([run[key] for run in runs if key in run])}" for word, key in words(self.keys).items()]
        data = [] if "dataset.name" in self.keys else [f"on {self.configs[0].dataset.name}"]
        title = " ".join([sweep_name([], len(runs)), *data])
        return f"{' x '.join(axes)[:MOST_TITLE]}, {title}" if axes else title

    def name_of(self, job: int) -> str:
        """The name of its run."""
        return run_name(self.configs[job], self.keys)

    @cached_property
    def values(self) -> dict[str, str]:
        """Every key of what is trained -> its values in the sweep, each once, in the order of the jobs."""
        runs = [flat(config) for config in self.configs]
        keys = dict.fromkeys(key for run in runs for key in run if key.partition(".")[0] not in SURROUNDINGS)
        return {key: ",".join(dict.fromkeys(str(run[key]) for run in runs if key in run)) for key in keys}

    def tags_of(self, job: int) -> dict[str, str]:
        """What its run is found by."""
        return tags_of_run(self.fingerprints[job], job)

    def run(self, jobs: range, n_jobs: int, stack_size: int | None) -> Iterator[tuple[int, Result | Exception]]:
        """(job, its Result, or the exception that ended it) as they finish.

        They are trained as stacks, `n_jobs` at once, -1 is one a core.
        """
        from experiments.run.data import task
        from experiments.run.stack import Trained, plan, train_reporting, train_stack, work

        for job in jobs:
            if (result := self.results[job]) is not None:
                yield job, result
        jobs_left = [job for job in jobs if self.results[job] is None]
        if not jobs_left:
            return
        tasks = {job: task(self.configs[job]) for job in jobs_left}
        stacks = [
            [jobs_left[k] for k in stack]
            for stack in plan([self.configs[job] for job in jobs_left], list(tasks.values()), stack_size)
        ]
        weights = [work(self.configs[stack[0]], tasks[stack[0]]) * len(stack) for stack in stacks]
        with tempfile.TemporaryDirectory() as folder, tqdm(total=sum(weights), bar_format=BAR, disable=None) as bar:
            reports = [Path(folder) / f"{number}.npz" for number in range(len(stacks))]
            shared = {of: self.engine.share(of) for of in dict.fromkeys(tasks.values())}
            items: list[tuple[Any, ...]] = [([self.configs[job] for job in stack], shared[tasks[stack[0]]]) for stack in stacks]
            function: Callable[..., list[Trained]] = train_stack
            # Elsewhere, nothing is seen of a stack until it is trained.
            if self.engine.here:
                function, items = train_reporting, [(*item, report) for item, report in zip(items, reports, strict=True)]
            with self.engine.pool(function, items, n_jobs) as pool:
                # MLflow is imported and a new store made while the first stacks train.
                self.announce()
                assert self.store is not None
                open_runs = OpenRuns(self.store, self.parent, self.outbox, self.configs, self.name_of, self.tags_of)

                def tick() -> None:
                    raise_lost_interrupt()
                    open_runs.report(sorted(pool.under_way), stacks, reports)

                for number, trained in pool.results(tick, TICK_SECONDS):
                    lanes = [trained] * len(stacks[number]) if isinstance(trained, Exception) else trained
                    ended = list(zip(stacks[number], lanes, strict=True))
                    for first in range(0, len(ended), self.store.runs_at_once):
                        outcomes = ended[first : first + self.store.runs_at_once]
                        open_runs.end(outcomes)
                        yield from [(job, self._result(job, outcome)) for job, outcome in outcomes]
                    bar.update(weights[number])
                    bar.set_description_str(self._progress())

    def _result(self, job: int, outcome: "Trained | Exception") -> Result | Exception:
        if isinstance(outcome, Exception):
            self.untrained[job] = outcome
            return outcome
        self.results[job] = result = Result.of(outcome)
        return result

    def _keep(self, report: "Report | None", folder: Path, interrupted: bool) -> None:
        """The files of `folder`, and pictures and models, or why there are none. One that is interrupted should end at once."""
        from experiments.pictures.gallery import describe_failure, keep_sweep, pictures_of

        self.parent.describe(self.values)
        if not interrupted and not isinstance(self.store, Untracked | None) and not isinstance(self.parent, Untracked):
            if report:
                self.verdict = keep_sweep(self.store, self.parent, report, folder)
                if report.best:
                    self._save_view([picture.stem for picture in pictures_of(folder)])
            else:
                describe_failure(self.store, self.parent, len(self.configs))
        self.parent.keep(folder)

    def _task(self) -> str:
        """`48 runs over network.depth (6 values), optimizer.learning_rate (8 values)`"""
        runs = [flat(config) for config in self.configs]
        counts = {key: len({str(run.get(key)) for run in runs}) for key in self.keys}
        over = ", ".join(f"{key} ({count} values)" for key, count in counts.items())
        if self.count > len(runs):
            return f"{self.count} runs over {', '.join(self.keys)}, {len(runs)} at a time"
        return f"{len(runs)} runs over {over}" if over else "1 run"

    def _progress(self) -> str:
        ended = [result for result in self.results if result is not None]
        diverged = sum(result.outcome == "diverged" for result in ended)
        untrained = f", {len(self.untrained)} not trained" if self.untrained else ""
        return f"{len(ended)}/{self.count} runs, {diverged} diverged{untrained}"

    def __enter__(self) -> "Sweep":
        tracking = self.configs[0].tracking
        with contextlib.ExitStack() as entered:
            self.engine = entered.enter_context(connect(*self.cluster))
            print(self._task())
            if self.reason:
                print(self.reason)
            if tracking.enabled and may_know(absolute(tracking.uri), self.fingerprint):
                with contextlib.ExitStack() as failed:
                    failed.push(lambda kind, error, trace: self._close(error))
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
                self._close(error)

    def _close(self, error: BaseException | None) -> None:
        """Nothing of the sweep is RUNNING any more, whatever has ended it."""
        for variable in (PARENT, VARIABLE):
            os.environ.pop(variable, None)
        self.beating.close()
        # A server that does not answer has runs left that are RUNNING: the next start finds that their owner is dead.
        if self.store and not self.outbox.closed:
            with contextlib.suppress(UserError):
                if error:
                    self.store.close(status_of(error), reason_of(error))
                else:
                    self.store.close()

    def _finish(self, error: BaseException | None) -> None:
        """Show what has come of the sweep, and end its own run."""
        from experiments.pictures.report import Report, Row, fate

        ended = [
            Row(config, float(result), result.outcome, job)
            for job, (config, result) in enumerate(zip(self.configs, self.results, strict=True))
            if result is not None
        ]
        untrained = {f"job {job} ({self.name_of(job)})": error for job, error in self.untrained.items()}
        report = Report(ended, untrained) if ended else None
        if report:
            print(f"\n{report.text()}")
        # Of a search that came to its end, what was proposed twice is one run.
        if len(ended) < (self.count if error else len(self.configs)) and self.parent.run_id:
            print(f"{len(ended)} of {self.count} runs finished")
        for name, reason in untrained.items():
            print(f"{fate(reason)}: {name}: {reason}")
        if not isinstance(error, TakenOver):
            with tempfile.TemporaryDirectory() as folder:
                self._end(report, Path(folder), error)
        if self.verdict:
            print(f"{self.configs[0].sweep.study}: {self.verdict}")
        if self.store and self.store.command and self.parent.run_id:
            print(f"dashboard: {self.store.command}")
        if len(self.outbox):
            print(f"{len(self.outbox)} {self.outbox.instructions}")
            if error is None:
                raise SystemExit(1)

    def _end(self, report: "Report | None", folder: Path, error: BaseException | None) -> None:
        """Write table, pictures and the end of the sweep, after all that still waits. error: what has ended it."""
        status = status_of(error)
        if self.store and self.parent.run_id:
            if report:
                report.save(folder / "table.csv")
            self.outbox.closed = self.outbox.closed or len(self.outbox) > 0
            self.outbox.try_again(self.store, now=True)
            with self.outbox.instead():
                if not self.outbox.closed:
                    self.parent.check_owner()
                    full = None
                    try:
                        self._keep(report, folder, interrupted=status == "KILLED")
                    except StoreError as refused:
                        full = refused
                    if ended_by := error or full:
                        self.parent.fail(reason_of(ended_by), "FAILED" if full else status)
                    else:
                        self.parent.end()
                    if full and not error:
                        raise full
            if self.outbox.closed:
                self.outbox.put_sweep(self.parent.run_id, status, reason_of(error) if error else "", self.values, folder)
