"""python -m experiments.train [-m] [KEY=VALUE ...]: train one network, or with -m a sweep, and record it in MLflow."""

import contextlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.record import AnyRun, AnyStore, Untracked, check_tracking, open_store
from experiments.record.address import Unreachable, strip_typed_passwords, with_absolute_uri
from experiments.record.identity import fingerprint
from experiments.record.outbox import Outbox
from experiments.run import config as schema
from experiments.run import grid
from experiments.run.composition import CONF, parse_config, register, with_machine
from experiments.run.config import Config, UserError
from experiments.run.folder import check_folder
from experiments.run.interrupts import defer_interrupts, end_in_order
from experiments.run.job import Parent, Result, parent_of_job, reason_of, status_of, tags_of_run
from experiments.run.loaders import targets_to_allow
from experiments.run.measure import MEASURES
from experiments.run.naming import cell_name, run_name
from experiments.run.pool import WorkerLost
from experiments.sweep.checks import check_run
from experiments.sweep.sweep import Sweep

if TYPE_CHECKING:
    from blocks.history import History
    from experiments.run.data import Task
    from experiments.run.stack import TrainedRun

# What a command ends with in one line.
EXPECTED = (UserError, WorkerLost, HydraException, OmegaConfBaseException, OSError)

register()


@dataclass(frozen=True)
class Job:
    """One run to be trained. sweep: that it is a job of, None for a run alone. number: in the sweep."""

    config: Config
    task: "Task"
    sweep: Parent | None
    number: int
    outbox: Outbox

    @property
    def parent(self) -> str:
        """The id of the sweep's own run, "" for a run alone."""
        return self.sweep.run_id if self.sweep else ""

    @property
    def name(self) -> str:
        """The name of its run."""
        return run_name(self.config, self.sweep.keys if self.sweep else ())

    @cached_property
    def tags(self) -> dict[str, str]:
        """What its run is found by."""
        cell = cell_name(self.config, self.sweep.keys) if self.sweep else ""
        return tags_of_run(fingerprint(self.config, self.task.dataset.digest), self.number, cell)


def train(cfg: DictConfig) -> Result:
    """Train one job and record it; a job that its sweep has in the record already is not trained again."""
    job = _job(cfg)
    store = _opened(job)
    if job.parent and (finished := _finished(store, job)):
        return finished
    with _recorded(store, job) as run:
        trained = _trained(job, store, run)
        with job.outbox.catching_unreachable():
            store.finish([(run, trained)])
    result = Result.from_trained(trained)
    if not job.parent:
        if not job.outbox.is_closed:
            with job.outbox.catching_unreachable():
                _show(store, run, job.config)
        print(result)
    if job.outbox.is_closed:
        job.outbox.put(job.name, job.tags, job.parent, trained)
        if not job.parent:
            sys.exit(1)
    elif not job.parent:
        for step in store.page.next_steps:
            print(step)
    return result


def _job(cfg: DictConfig) -> Job:
    """The job that Hydra runs with that config; raises UserError where it cannot be."""
    from experiments.run.data import load_task

    hydra_config = HydraConfig.get()
    # With hydra.job.chdir, this is another folder than the one that the command was typed in.
    with contextlib.chdir(hydra_config.runtime.cwd):
        config, reason = with_machine(parse_config(cfg))
        sweep = parent_of_job()
        if reason and not sweep:
            print(reason)
        config = replace(config, tracking=sweep.tracking if sweep else with_absolute_uri(config.tracking))
        data = load_task(config)
    outbox = Outbox(config.tracking, Path(hydra_config.runtime.output_dir), targets_to_allow([config.dataset.loader]))
    return Job(config, data, sweep, hydra_config.job.num if sweep else 0, outbox)


def _opened(job: Job) -> AnyStore:
    try:
        return open_store(job.config.tracking)
    except Unreachable as error:
        if not job.parent:
            raise
        job.outbox.close(error)
        return Untracked()


def _finished(store: AnyStore, job: Job) -> Result | None:
    """The result that the record has of the sweep's job."""
    measure = MEASURES[job.config.sweep.measure]
    with job.outbox.catching_unreachable():
        if finished := store.finished_job(job.parent, job.number, job.tags["fingerprint"], measure):
            return Result.from_value(*finished, measure)
    return None


def _trained(job: Job, store: AnyStore, run: Any) -> "TrainedRun":
    """The job's run, trained under a bar; its curves are recorded every few seconds."""
    from tqdm import tqdm

    from experiments.run.stack import create_watch, steps_of, train_stack

    steps = steps_of(job.config, job.task)
    report = create_watch(lambda history: store.progress([(run, history.lane(0), steps)]))
    with tqdm(total=steps, desc=job.name, unit="step", leave=False, disable=None) as bar:

        def watch(step: int, history: "Callable[[], History]") -> None:
            bar.update(step - bar.n)
            with job.outbox.catching_unreachable():
                report(step, history)

        (trained,) = train_stack([job.config], job.task, watch)
    return trained


@contextlib.contextmanager
def _recorded(store: AnyStore, job: Job) -> Iterator[Any]:
    """A RUNNING run in the store; an error on the way ends it as FAILED or KILLED."""
    run: AnyRun = Untracked()
    status, reason = "KILLED", "its process has ended"
    try:
        # Nothing comes between a run and its params.
        with job.outbox.catching_unreachable(), defer_interrupts():
            run = store.begin(job.name, job.tags, job.parent, job.config)
        with run.heartbeats():
            yield run
    except BaseException as error:
        status, reason = status_of(error), reason_of(error)
        with contextlib.suppress(UserError):
            run.fail(reason, status)
        raise
    finally:
        if not job.outbox.is_closed:
            with contextlib.suppress(UserError):
                store.close(status, reason)


def _show(store: AnyStore, run: AnyRun, config: Config) -> None:
    """Draw the run and log its model; a single run is the best of its own."""
    if isinstance(store, Untracked) or isinstance(run, Untracked):
        return
    from experiments.pictures.gallery import keep_model, keep_run
    from experiments.record.reading import Archive

    with tempfile.TemporaryDirectory() as downloads, tempfile.TemporaryDirectory() as folder:
        kept = Archive(store.uri, Path(downloads)).run(run.run_id).files()
        if config.tracking.pictures != "none":
            keep_run(run, config, kept, Path(folder))
        if config.tracking.models != "none":
            keep_model(store, run.run_id, config, kept, config.tracking.register)


class CheckRun(Callback):
    """Checks a single run before Hydra makes its folder. (A sweep's jobs are checked by the sweeper.)"""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave with one line where the run cannot be made."""
        from hydra_plugins.depth_laboratory._context import check_log_files, check_logging, job_context

        try:
            with job_context(config, "hydra.run.dir") as task:
                check_logging(config)
                check_log_files(config)
                checked, _ = with_machine(parse_config(task))
                check_run(checked)
                if checked.sweep.halving is not None:
                    raise UserError(
                        f"sweep.halving is {checked.sweep.halving:g}, but without -m there is one run: it must be null"
                    )
                check_folder("hydra.run.dir", config.hydra.runtime.output_dir)
                check_tracking(checked.tracking)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            # Any other exception of a callback Hydra turns into a warning.
            sys.exit(one_line(error))


def one_line(error: BaseException) -> str:
    """An error of ours, or one of Hydra's or OmegaConf's that name key, value and what is allowed over several lines."""
    lines: list[str] = []
    at: BaseException | None = error
    while at is not None:
        lines += [line.strip() for line in str(at).splitlines()]
        at = at.__cause__
    # Where Hydra looked for files, and its hint to add the unknown key with a +, help nobody here.
    dull = ("object_type=", "reference_type=", "Config search path", "provider=", "To append to your config", "See https")
    told = "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith(dull)))
    if isinstance(error, OverrideParseException) and error.override not in told:
        told = f"{error.override}: {told}"
    unknown = re.search(r"Key '(\w+)' not in '(\w+)'", told)
    if unknown and (known := getattr(schema, unknown[2], None) or getattr(grid, unknown[2], None)):
        told += f"; allowed: {', '.join(f.name for f in fields(known))}"
    scalar = re.search(r"override (\S+?)=.*not a subclass of (\w+)", told)
    if scalar and (group := getattr(schema, scalar[2], None)):
        keys = [f.name for f in fields(group)]
        value = told.partition("value: ")[2].partition(";")[0]
        close = f": did you mean {scalar[1]}.name={value}?" if "name" in keys else ""
        told = f"{scalar[1]}={value} sets no key{close or ';'} {scalar[1]} has the keys {', '.join(keys)}"
    if told.endswith("must be a string or a list. Got NoneType"):
        told += ": no group is null, ~GROUP leaves one out; '~experiment' has no preset"
    return f"error: {told}"


@end_in_order()
def main() -> None:
    """The command."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then hands an error on instead of printing it over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A number of more than 4,300 digits is refused by its key, and not by Python.
    sys.set_int_max_str_digits(0)
    try:
        strip_typed_passwords()
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(train)()
    except Exception as error:
        if full_error or not is_expected(error):
            raise
        sys.exit(one_line(error))


def is_expected(error: Exception) -> bool:
    """Whether a command ends with it in one line: it is ours, or Hydra's, which also complains by a plain ValueError."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, EXPECTED) or str(frame.f_globals.get("__name__")).startswith(("hydra.", "omegaconf."))


train.sweep = Sweep  # type: ignore[attr-defined]  # what the sweeper looks for

if __name__ == "__main__":
    # Under its own name, so that what a launcher pickles can be found by another process.
    from experiments.train import main as command

    command()
