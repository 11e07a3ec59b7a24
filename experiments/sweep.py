"""A sweep around its jobs: all are checked before the first, trained as stacks, written in one place, shown at the end."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from tqdm import tqdm

from blocks.arrays import choice
from experiments.record import AnyRun, AnyStore, Untracked, open_store
from experiments.record.address import StoreError, absolute, check_reachable, may_know
from experiments.record.identity import fingerprint, fingerprint_of_sweep
from experiments.record.outbox import Outbox
from experiments.run.config import Config, UserError, run_name, typed
from experiments.run.engines import Engine, Loky, connect
from experiments.run.interrupts import heard, whole
from experiments.run.pool import Lost

if TYPE_CHECKING:
    from experiments.pictures.report import Report
    from experiments.run.stack import Trained

# The parent run's id, for jobs that a launcher runs in whatever process.
PARENT = "DEPTH_LABORATORY_PARENT"
TICK_SECONDS = 1.0
# The bar grows with the work done, so that the seconds left are right although the largest stacks come first.
BAR = "{desc} |{bar}| {remaining} left"


class Result(float):
    """What a job returns: its final training loss (inf where it diverged), for whoever optimises, with its outcome."""

    outcome: str

    @classmethod
    def of(cls, trained: "Trained") -> "Result":
        """inf stands for a loss that is not finite."""
        return cls.made(trained.final("loss/train"), trained.outcome)

    @classmethod
    def made(cls, loss: float, outcome: str) -> "Result":
        """The result with that final training loss."""
        result = cls(loss if math.isfinite(loss) else math.inf)
        result.outcome = outcome
        return result

    def __str__(self) -> str:
        return f"{self.outcome}: final training loss {float(self):.4g}"


def check_all(configs: Sequence[Config], folder_key: str, folder: str) -> None:
    """Raise UserError unless every run can be made: data, loss and batch size fit, folder and store can be written to."""
    from experiments.run.data import task
    from experiments.run.stack import check_size

    for config in configs:
        check_size(config, task(config))
    check_folder(folder_key, folder)
    for uri in {config.tracking.uri for config in configs if config.tracking.enabled}:
        check_reachable(absolute(uri))


def check_folder(key: str, folder: str) -> None:
    """Raise UserError unless the folder can be written to, or made."""
    path = Path(folder).absolute()
    there = next(above for above in (path, *path.parents) if above.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"{key} is {folder!r}, but {there} is not a folder that can be written to")


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


def tags_of_run(fingerprint: str, job: int) -> dict[str, str]:
    """What a run is found by: the experiment that it is, and its number in its sweep."""
    return {"kind": "run", "fingerprint": fingerprint, "job": str(job)}


def status_of(error: BaseException | None) -> str:
    """MLflow's word for a run that ends with that error."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


class Sweep:
    """A context around a sweep's jobs, see the checked sweeper.

    configs: one a job. axes: the swept keys and their values, as typed. folder: Hydra's for this sweep.
    Raises UserError, before anything is made, for the first job that cannot be run.
    """

    def __init__(self, configs: Iterable[DictConfig], axes: dict[str, str], folder: str) -> None:
        self.configs = [typed(cfg) for cfg in configs]
        self.axes = axes
        check_all(self.configs, "hydra.sweep.dir", folder)
        _check_study(self.configs)
        self.results: list[Result | None] = [None] * len(self.configs)
        self.lost: dict[int, Exception] = {}
        self.store: AnyStore | None = None
        self.parent: AnyRun = Untracked()
        self.verdict = ""
        self.outbox = Outbox(self.configs[0].tracking, Path(folder).absolute())
        self.around = contextlib.ExitStack()
        self.engine: Engine = Loky()
        self.cluster: tuple[str, str | None] = ("loky", None)

    def train_on(self, backend: str, address: str | None) -> None:
        """The engine that `run` hands stacks to, see `run.engines.connect`: it is connected to as the context is entered."""
        self.cluster = (backend, address)

    @cached_property
    def fingerprints(self) -> list[str]:
        """Of every run."""
        from experiments.run.data import load

        return [fingerprint(config, load(config.dataset).digest) for config in self.configs]

    def announce(self) -> None:
        """Open the store and the sweep's parent run, once; take over what an earlier start has finished.

        Raises UserError where another process is training the same sweep.
        """
        if self.store is None:
            first = self.configs[0]
            store = open_store(first.tracking)
            self.parent, done = store.begin_sweep(
                f"sweep of {len(self.configs)} runs", {"kind": "sweep"}, fingerprint_of_sweep(self.fingerprints), first.sweep
            )
            self.store = store
            for job, (loss, outcome) in done.items():
                self.results[job] = Result.made(loss, outcome)
            if done:
                print(f"{len(done)} of {len(self.configs)} runs are in the record already (sweep.resume=false trains them anew)")
            with self.outbox.instead():
                self.parent.describe(self.axes)
                self._save_view()
            self.around.enter_context(self.parent.beating())
            os.environ[PARENT] = self.parent.run_id

    def _save_view(self) -> None:
        from experiments.run.data import task

        name = ", ".join(f"{key}={values}" for key, values in self.axes.items())[:80]
        score = "r2" if task(self.configs[0]).loss.decides is None else "accuracy"
        assert self.store is not None
        self.store.save_view(self.parent.run_id, name, self.configs, score)

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
                with _UnderWay(self) as under_way, heard() as interrupted:

                    def tick() -> None:
                        interrupted()
                        under_way.report(sorted(pool.under_way), stacks, reports)

                    for number, trained in pool.results(tick, TICK_SECONDS):
                        for lane, job in enumerate(stacks[number]):
                            yield job, under_way.ended(job, trained if isinstance(trained, Exception) else trained[lane])
                        bar.update(weights[number])
                        bar.set_description_str(self._progress())

    def _keep(self, report: "Report | None", folder: Path) -> None:
        """The files of `folder`, and of a sweep that was not interrupted, which should end at once, pictures and models."""
        from experiments.pictures.gallery import keep_sweep

        self.parent.describe(self.axes)
        if report and not isinstance(self.store, Untracked | None) and not isinstance(self.parent, Untracked):
            self.verdict = keep_sweep(self.store, self.parent, report, folder)
        self.parent.keep(folder)

    def _progress(self) -> str:
        ended = [result for result in self.results if result is not None]
        diverged = sum(result.outcome == "diverged" for result in ended)
        lost = f", {len(self.lost)} lost" if self.lost else ""
        return f"{len(ended)}/{len(self.results)} runs, {diverged} diverged{lost}"

    def __enter__(self) -> "Sweep":
        tracking = self.configs[0].tracking
        with contextlib.ExitStack() as entered:
            self.engine = entered.enter_context(connect(*self.cluster))
            if tracking.enabled and may_know(absolute(tracking.uri), fingerprint_of_sweep(self.fingerprints)):
                self.announce()
            self.around.push(entered.pop_all())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.environ.pop(PARENT, None)
        self.around.close()
        from experiments.pictures.report import Report, Row

        ended = [
            Row(config, float(result), result.outcome, job)
            for job, (config, result) in enumerate(zip(self.configs, self.results, strict=True))
            if result is not None
        ]
        report = Report(ended) if ended else None
        if report:
            print(f"\n{report.text()}")
        if len(ended) < len(self.configs) and self.store:
            print(f"{len(ended)} of {len(self.configs)} runs finished")
        for job, reason in self.lost.items():
            print(f"lost: job {job} ({run_name(self.configs[job])}): {reason}")
        with tempfile.TemporaryDirectory() as folder:
            self._end(report, Path(folder), status_of(error))
        if self.verdict:
            print(f"{self.configs[0].sweep.study}: {self.verdict}")
        if self.store and self.store.command:
            print(f"dashboard: {self.store.command}")
        if len(self.outbox):
            print(f"{len(self.outbox)} {self.outbox.told}")
            if error is None:
                raise SystemExit(1)

    def _end(self, report: "Report | None", folder: Path, status: str) -> None:
        """Write table, pictures and the end of the sweep, after all that still waits."""
        if self.store and not isinstance(self.store, Untracked):
            if report:
                report.save(folder / "table.csv")
            self.outbox.closed = len(self.outbox) > 0
            self.outbox.try_again(self.store, now=True)
            with self.outbox.instead():
                if not self.outbox.closed:
                    full = None
                    try:
                        self._keep(None if status == "KILLED" else report, folder)
                    except StoreError as error:
                        full = error
                    self.parent.end("FAILED" if full else status)
                    if full and status == "FINISHED":
                        raise full
            if self.outbox.closed:
                self.outbox.put_sweep(self.parent.run_id, status, self.axes, folder)


class _UnderWay:
    """The runs in the store whose training has begun and not ended; what interrupts the sweep ends them too."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.runs: dict[int, AnyRun] = {}
        self.read: dict[Path, float] = {}

    def __enter__(self) -> "_UnderWay":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for run in self.runs.values():
            # A generator that is no longer asked is closed: the sweep was interrupted. A store that cannot take this
            # either has a run left that is RUNNING: the next start finds its process gone.
            with contextlib.suppress(UserError):
                run.end("KILLED" if kind is GeneratorExit else status_of(error))

    @whole()
    def begin(self, job: int) -> None:
        """Its run is RUNNING."""
        if job not in self.runs:
            assert self.sweep.store is not None
            name = run_name(self.sweep.configs[job])
            self.runs[job] = self.sweep.store.begin(name, self.sweep.tags_of(job), self.sweep.parent.run_id)

    def report(self, numbers: Sequence[int], stacks: Sequence[Sequence[int]], reports: Sequence[Path]) -> None:
        """Open the runs of those stacks, and show what has come of them."""
        self.sweep.outbox.try_again(self.sweep.store)
        if not self.sweep.outbox.closed:
            with self.sweep.outbox.instead():
                self._report(numbers, stacks, reports)

    def _report(self, numbers: Sequence[int], stacks: Sequence[Sequence[int]], reports: Sequence[Path]) -> None:
        from blocks.history import History
        from experiments.run.data import task
        from experiments.run.stack import steps_of

        for number in numbers:
            for job in stacks[number]:
                self.begin(job)
            with contextlib.suppress(FileNotFoundError):
                changed = reports[number].stat().st_mtime
                if changed != self.read.get(reports[number]):
                    self.read[reports[number]] = changed
                    history = History.load(reports[number])
                    for lane, job in enumerate(stacks[number]):
                        config = self.sweep.configs[job]
                        self.runs[job].progress(history.lane(lane), steps_of(config, task(config)))

    @whole()
    def ended(self, job: int, outcome: "Trained | Exception") -> Result | Exception:
        """Write what has come of the job."""
        outbox = self.sweep.outbox
        with outbox.instead():
            if not outbox.closed:
                self.begin(job)
                run = self.runs[job]
                if isinstance(outcome, Exception):
                    run.end("KILLED" if isinstance(outcome, Lost) else "FAILED")
                else:
                    run.finish(outcome)
        self.runs.pop(job, None)
        if isinstance(outcome, Exception):
            self.sweep.lost[job] = outcome
            return outcome
        if outbox.closed:
            config = self.sweep.configs[job]
            outbox.put(run_name(config), self.sweep.tags_of(job), self.sweep.parent.run_id, outcome)
        self.sweep.results[job] = result = Result.of(outcome)
        return result
