"""A sweep around its jobs: all are checked before the first, trained as stacks, written in one place, shown at the end."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
from experiments.run.config import Config, UserError, cell_name, flat, run_name, settled, shown, sweep_name, typed, varied, words
from experiments.run.engines import Engine, Loky, connect
from experiments.run.folder import check_folder
from experiments.run.interrupts import defer_interrupts, raise_lost_interrupt
from experiments.run.loaders import needing_allowance
from experiments.run.measure import MEASURES, Measure
from experiments.run.pool import Lost

if TYPE_CHECKING:
    from experiments.pictures.report import Report
    from experiments.run.data import Task
    from experiments.run.halving import Halving
    from experiments.run.stack import Trained

    Ended = tuple[int, Trained | Exception]

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
    check_measure(config, of)
    if config.tracking.enabled:
        check_recordable(config, of)
    return of


def check_measure(config: Config, of: "Task") -> None:
    """Raise UserError where the runs are to be judged by what the data set has not."""
    allowed = [name for name, measure in MEASURES.items() if measure.kind in ("loss", of.score)]
    if (name := config.sweep.measure) not in allowed:
        raise UserError(f"sweep.measure is {name!r}, which {of.dataset.name} has not, allowed: {', '.join(allowed)}")


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


def _halving(configs: Sequence[Config], search: str) -> "Halving | None":
    """The rungs at which runs are stopped, None where each is trained to its end; raises UserError where there can be none, as
    in a search whose jobs are not all known.
    """
    asked = configs[0].sweep
    if asked.halving is None:
        return None
    from experiments.run.halving import Halving

    if asked.study is not None:
        raise UserError(
            f"sweep.halving is {shown(asked.halving)}, but sweep.study {asked.study} is about runs that train to their end: "
            "it must be null"
        )
    if search:
        raise UserError(
            f"sweep.halving is {shown(asked.halving)}, but this search proposes its runs batch by batch: it must be null, or "
            "hydra/sweeper=random"
        )
    return Halving(configs)


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

    def __init__(self, jobs: Iterable[tuple[DictConfig, str]], folder: str, search: str = "", count: int = 0) -> None:
        self.configs: list[Config] = []
        self.fingerprints: list[str] = []
        self.asked, self.reason = "", ""
        check_folder("hydra.sweep.dir", folder)
        self._take(jobs)
        _check_alike(self.configs)
        check_tracking(self.configs[0].tracking)
        _check_study(self.configs)
        self.halving = _halving(self.configs, search)
        # A job's own process may find what is relative, or a time of day, elsewhere.
        tracking = anchor(self.configs[0].tracking)
        self.configs = [replace(config, tracking=tracking) for config in self.configs]
        first = {mark: job for job, mark in reversed(list(enumerate(self.fingerprints)))}
        self.distinct = sorted(first.values())
        halving = f"halving {shown(self.halving.factor)} by {self.measure.name}" if self.halving else ""
        self.fingerprint = fingerprint_of_sweep([*self.fingerprints, *filter(None, [halving, search])])
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
        self.open_runs: OpenRuns | None = None
        # With halving, the tags of the jobs that are in the record already.
        self.tags: dict[int, dict[str, str]] = {}
        self.updates = 0

    @property
    def measure(self) -> Measure:
        """What its runs are judged by."""
        return MEASURES[self.configs[0].sweep.measure]

    @property
    def direction(self) -> str:
        """Optuna's word for what is best of the results that its jobs return."""
        return "minimize" if self.measure.is_loss else "maximize"

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
                self.results[job] = Result.made(*found, self.measure)

    def _tell_jobs(self) -> None:
        """What jobs in other processes know of their sweep, see `job.parent_of_job`."""
        if self.store:
            parent = asdict(Parent(self.parent.run_id, self.configs[0].tracking, self.keys))
            os.environ.update({PARENT: json.dumps(parent), VARIABLE: self.store.token})

    def train_on(self, backend: str, address: str | None) -> None:
        """The engine that `run` hands stacks to, see `run.engines.connect`: it is connected to as the context is entered."""
        self.cluster = (backend, address)

    def check_launch(self, launcher: str, batch: int | None) -> None:
        """Raise UserError where jobs that are to be judged together are not trained together: by a launcher that runs one after
        another, which is named, or in batches of so many.
        """
        if self.halving and launcher:
            raise UserError(
                f"sweep.halving is {shown(self.halving.factor)}, but {launcher} trains jobs one by one: it must be null, or "
                "hydra/launcher=stacked"
            )
        if self.halving and batch is not None and batch < len(self.configs):
            raise UserError(
                f"hydra.sweeper.max_batch_size is {batch}, but sweep.halving judges all {len(self.configs)} runs together: "
                "it must be null"
            )

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
            if self.halving:
                self.tags = self.store.tags_of(self.parent.run_id, [job for job, _ in self.recorded])
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

        assert self.store is not None
        self.store.save_view(self.parent.run_id, self.title, self.configs, task(self.configs[0]).score, pictures)

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
        return tags_of_run(self.fingerprints[job], job, cell_name(self.configs[job], self.keys))

    def run(self, jobs: range, n_jobs: int, stack_size: int | None) -> Iterator[tuple[int, Result | Exception]]:
        """(job, its Result, or the exception that ended it) as they finish.

        They are trained as stacks, `n_jobs` at once, -1 is one a core; with `sweep.halving`, in rounds from rung to rung.
        """
        for job in jobs:
            if (result := self.results[job]) is not None:
                yield job, result
        left = [job for job in jobs if self.results[job] is None]
        stopped: list[Ended] = []
        for rung in range(1, (self.halving.count if self.halving else 0) + 2):
            is_last = not self.halving or rung > self.halving.count
            ended: list[Ended] = []
            with contextlib.closing(self._train(left, rung, n_jobs, stack_size)) as stacks:
                for stack in stacks:
                    # Those that the last rung has stopped are written while the next round trains.
                    yield from self._end(stopped)
                    stopped = []
                    if is_last:
                        yield from self._end(stack)
                    else:
                        ended += stack
            if not is_last:
                left, stopped = self._judge(rung, ended)
            if not left:
                # All have diverged, or a lost run has ended all: no later round is there to write them.
                break
        yield from self._end(stopped)

    def _judge(self, rung: int, ended: "list[Ended]") -> "tuple[list[int], list[Ended]]":
        """The jobs that go on from that rung, and those that end there."""
        from experiments.run.stack import Trained

        assert self.halving is not None
        trained = {job: outcome for job, outcome in ended if isinstance(outcome, Trained)}
        if len(trained) < len(ended):
            # Without it, others would go on than with it.
            lost = Lost(f"rung {rung} is not judged, since a run was lost before it: the same command does it")
            return [], [(job, lost if job in trained else outcome) for job, outcome in ended]
        goes_on = set(self.halving.survivors(rung, trained, self.tags))
        stopped: list[Ended] = [(job, replace(run, rung=rung)) for job, run in trained.items() if job not in goes_on]
        return sorted(goes_on), stopped

    def _train(self, jobs: Sequence[int], rung: int, n_jobs: int, stack_size: int | None) -> "Generator[list[Ended]]":
        """What has come of the jobs of each stack as it ends; nothing of none, once, as soon as the first ones train."""
        from experiments.run.data import task
        from experiments.run.stack import plan, train_reporting, train_stack, work

        if not jobs:
            return
        tasks = {job: task(self.configs[job]) for job in jobs}
        stacks = [
            [jobs[k] for k in stack] for stack in plan([self.configs[job] for job in jobs], list(tasks.values()), stack_size)
        ]
        until = [self.halving.until(stack[0], rung) if self.halving else None for stack in stacks]
        weights = [work(self.configs[stack[0]], tasks[stack[0]]) * len(stack) for stack in stacks]
        with tempfile.TemporaryDirectory() as folder, tqdm(total=sum(weights), bar_format=BAR, disable=None) as bar:
            reports = [Path(folder) / f"{number}.npz" for number in range(len(stacks))]
            shared = {of: self.engine.share(of) for of in dict.fromkeys(tasks.values())}
            # Elsewhere, nothing is seen of a stack until it is trained.
            function: Callable[..., list[Trained]] = train_reporting if self.engine.here else train_stack
            items: list[tuple[Any, ...]] = [
                ([self.configs[job] for job in stack], shared[tasks[stack[0]]], report if self.engine.here else None, epochs)
                for stack, report, epochs in zip(stacks, reports, until, strict=True)
            ]
            with self.engine.pool(function, items, n_jobs) as pool:
                # MLflow is imported and a new store made while the first stacks train.
                self.announce()
                assert self.store is not None
                if self.open_runs is None:
                    self.open_runs = OpenRuns(self.store, self.parent, self.outbox, self.configs, self.name_of, self.tags_of)
                open_runs = self.open_runs
                yield []

                def tick() -> None:
                    raise_lost_interrupt()
                    open_runs.report(sorted(pool.under_way), stacks, reports)

                for number, trained in pool.results(tick, TICK_SECONDS):
                    lanes = [trained] * len(stacks[number]) if isinstance(trained, Exception) else trained
                    self.updates += sum(lane.history.steps_made for lane in lanes if not isinstance(lane, Exception))
                    yield list(zip(stacks[number], lanes, strict=True))
                    bar.update(weights[number])
                    bar.set_description_str(self._progress())

    def _end(self, ended: "Sequence[Ended]") -> Iterator[tuple[int, Result | Exception]]:
        """Write what has come of jobs, as many at once as the store takes."""
        for first in range(0, len(ended), self.store.runs_at_once if self.store else 1):
            assert self.store is not None
            assert self.open_runs is not None
            outcomes = ended[first : first + self.store.runs_at_once]
            self.open_runs.end(outcomes)
            yield from [(job, self._result(job, outcome)) for job, outcome in outcomes]

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
        if self.halving and self.updates:
            print(f"halving by {shown(self.halving.factor)}: {self._share_of_updates():.1%} of the updates of whole trainings")
        # Of a search that came to its end, what was proposed twice is one run.
        if len(ended) < (self.count if error else len(self.configs)) and self.parent.run_id:
            print(f"{len(ended)} of {self.count} runs finished")
        for name, reason in untrained.items():
            print(f"{fate(reason)}: {name}: {reason}")
        if not isinstance(error, TakenOver):
            with tempfile.TemporaryDirectory() as folder:
                self._close_record(report, Path(folder), error)
        if self.verdict:
            print(f"{self.configs[0].sweep.study}: {self.verdict}")
        if self.store and self.store.command and self.parent.run_id:
            print(f"dashboard: {self.store.command}")
        if len(self.outbox):
            print(f"{len(self.outbox)} {self.outbox.instructions}")
            if error is None:
                raise SystemExit(1)

    def _share_of_updates(self) -> float:
        """Of all that were to be made of runs that are not in the record already, those that were."""
        from experiments.run.data import task
        from experiments.run.stack import steps_of

        jobs = [config for job, config in enumerate(self.configs) if job not in self.tags]
        return self.updates / sum(steps_of(config, task(config)) for config in jobs)

    def _close_record(self, report: "Report | None", folder: Path, error: BaseException | None) -> None:
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
