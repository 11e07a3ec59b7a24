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

# A command ends with one line, and not with a traceback, for these errors.
ONE_LINE_ERRORS = (UserError, WorkerLost, HydraException, OmegaConfBaseException, OSError)

register()


@dataclass(frozen=True)
class Job:
    """One run to be trained. sweep: the sweep that has this job, None for a run alone. number: the job's number in the sweep."""

    config: Config
    task: "Task"
    sweep: Parent | None
    number: int
    outbox: Outbox

    @property
    def parent(self) -> str:
        """The id of the sweep's parent run, "" for a run alone."""
        return self.sweep.run_id if self.sweep else ""

    @property
    def name(self) -> str:
        """The name of the job's run."""
        return run_name(self.config, self.sweep.keys if self.sweep else ())

    @cached_property
    def tags(self) -> dict[str, str]:
        """The tags by which the run is found in the record."""
        cell = cell_name(self.config, self.sweep.keys) if self.sweep else ""
        return tags_of_run(fingerprint(self.config, self.task.dataset.digest), self.number, cell)


def train(cfg: DictConfig) -> Result:
    """Train one job and record it. A job that its sweep has already recorded is not trained again."""
    job = _create_job(cfg)
    store = _open_store(job)
    if job.parent and (finished_result := _find_finished_result(store, job)):
        return finished_result
    with _recording(store, job) as run:
        trained_run = _train_job(job, store, run)
        # A run whose creation the server has not answered is not recorded here, but waits in the outbox.
        if not isinstance(run, Untracked):
            with job.outbox.catching_unreachable():
                store.finish([(run, trained_run)])
    result = Result.from_trained(trained_run)
    if not job.parent:
        if not job.outbox.is_closed:
            with job.outbox.catching_unreachable():
                _log_pictures_and_model(store, run, job.config)
        print(result)
    if job.outbox.is_closed:
        job.outbox.put(job.name, job.tags, job.parent, trained_run)
        if not job.parent:
            sys.exit(1)
    elif not job.parent:
        for line in store.page.next_steps:
            print(line)
    return result


def _create_job(cfg: DictConfig) -> Job:
    """Return the job that Hydra runs with that config. Raises UserError for a config that cannot be trained."""
    from experiments.run.data import load_task

    hydra_config = HydraConfig.get()
    # With hydra.job.chdir, the working directory is not the one in which the command was typed.
    with contextlib.chdir(hydra_config.runtime.cwd):
        config, reason = with_machine(parse_config(cfg))
        sweep = parent_of_job()
        if reason and not sweep:
            print(reason)
        config = replace(config, tracking=sweep.tracking if sweep else with_absolute_uri(config.tracking))
        data = load_task(config)
    outbox = Outbox(config.tracking, Path(hydra_config.runtime.output_dir), targets_to_allow([config.dataset.loader]))
    return Job(config, data, sweep, hydra_config.job.num if sweep else 0, outbox)


def _open_store(job: Job) -> AnyStore:
    """Open the store of the record. Where it is unreachable, a sweep's job goes on with the outbox alone."""
    try:
        return open_store(job.config.tracking)
    except Unreachable as error:
        if not job.parent:
            raise
        job.outbox.close(error)
        return Untracked()


def _find_finished_result(store: AnyStore, job: Job) -> Result | None:
    """Return the result of the sweep's job from the record; None where the record has no finished run of it."""
    measure = MEASURES[job.config.sweep.measure]
    with job.outbox.catching_unreachable():
        if finished_job := store.finished_job(job.parent, job.number, job.tags["fingerprint"], measure):
            return Result.from_value(*finished_job, measure)
    return None


def _train_job(job: Job, store: AnyStore, run: Any) -> "TrainedRun":
    """Train the job's run with a progress bar, and record its curves every few seconds."""
    from tqdm import tqdm

    from experiments.run.stack import create_watch, steps_of, train_stack

    steps = steps_of(job.config, job.task)
    report = create_watch(lambda history: store.progress([(run, history.lane(0), steps)]))
    with tqdm(total=steps, desc=job.name, unit="step", leave=False, disable=None) as bar:

        def watch(step: int, history: "Callable[[], History]") -> None:
            bar.update(step - bar.n)
            if not isinstance(run, Untracked):
                with job.outbox.catching_unreachable():
                    report(step, history)

        (trained_run,) = train_stack([job.config], job.task, watch)
    return trained_run


@contextlib.contextmanager
def _recording(store: AnyStore, job: Job) -> Iterator[Any]:
    """Begin a run with status RUNNING in the store. An error in the context ends it as FAILED or KILLED."""
    run: AnyRun = Untracked()
    status, reason = "KILLED", "its process has ended"
    try:
        # No interrupt may leave a run without its params.
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


def _log_pictures_and_model(store: AnyStore, run: AnyRun, config: Config) -> None:
    """Draw a run that belongs to no sweep and log its model, as is done for the best run of a sweep."""
    if isinstance(store, Untracked) or isinstance(run, Untracked):
        return
    from experiments.pictures.gallery import log_network, log_run
    from experiments.record.reading import Archive

    with tempfile.TemporaryDirectory() as downloads, tempfile.TemporaryDirectory() as folder:
        files = Archive(store.uri, Path(downloads)).run(run.run_id).files()
        if config.tracking.pictures != "none":
            log_run(run, config, files, Path(folder))
        if config.tracking.models != "none":
            log_network(store, run.run_id, config, files, config.tracking.register)


class CheckRun(Callback):
    """Checks a single run before Hydra creates its folder. The sweeper checks the jobs of a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with one line where the run cannot be trained."""
        from hydra_plugins.depth_laboratory._context import check_log_files, check_logging, job_context

        try:
            with job_context(config, "hydra.run.dir") as task:
                check_logging(config)
                check_log_files(config)
                run_config, _ = with_machine(parse_config(task))
                check_run(run_config)
                if run_config.sweep.halving is not None:
                    raise UserError(
                        f"sweep.halving is {run_config.sweep.halving:g}, but without -m there is one run: it must be null"
                    )
                check_folder("hydra.run.dir", config.hydra.runtime.output_dir)
                check_tracking(run_config.tracking)
                typed = [str(override) for override in config.hydra.overrides.task]
                if config.hydra.sweeper.params and (presets := [text for text in typed if text.startswith("experiment=")]):
                    print(f"one run: -m sweeps the axes of {presets[0]}, {', '.join(config.hydra.sweeper.params)}")
        except (UserError, HydraException, OmegaConfBaseException) as error:
            # Hydra turns an exception in a callback into a warning, but not SystemExit.
            sys.exit(one_line(error))


def one_line(error: BaseException) -> str:
    """Return an error in one line that names the key, the value and what is allowed.

    error: a UserError, or an error of Hydra or OmegaConf, whose messages have several lines.
    """
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [line.strip() for line in str(cause).splitlines()]
        cause = cause.__cause__
    # These lines do not help: where Hydra looked for files, and its hint to add an unknown key with a +.
    unhelpful_prefixes = (
        "object_type=",
        "reference_type=",
        "Config search path",
        "provider=",
        "To append to your config",
        "See https",
    )
    text = "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith(unhelpful_prefixes)))
    if isinstance(error, OverrideParseException) and error.override not in text:
        text = f"{error.override}: {text}"
    unknown_key = re.search(r"Key '(\w+)' not in '(\w+)'", text)
    if unknown_key and (schema_class := getattr(schema, unknown_key[2], None) or getattr(grid, unknown_key[2], None)):
        text += f"; allowed: {', '.join(f.name for f in fields(schema_class))}"
    scalar_override = re.search(r"override (\S+?)=.*not a subclass of (\w+)", text)
    if scalar_override and (group := getattr(schema, scalar_override[2], None)):
        keys = [f.name for f in fields(group)]
        value = text.partition("value: ")[2].partition(";")[0]
        hint = f": did you mean {scalar_override[1]}.name={value}?" if "name" in keys else ""
        text = f"{scalar_override[1]}={value} sets no key{hint or ';'} {scalar_override[1]} has the keys {', '.join(keys)}"
    if text.endswith("must be a string or a list. Got NoneType"):
        text += ": no group is null, ~GROUP leaves one out; '~experiment' has no preset"
    return f"error: {text}"


@end_in_order()
def main() -> None:
    """Run the command."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # With this setting Hydra raises an error instead of printing several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Without Python's limit of 4,300 digits, the check of its key refuses such a number.
    sys.set_int_max_str_digits(0)
    try:
        strip_typed_passwords()
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(train)()
    except Exception as error:
        if full_error or not is_expected(error):
            raise
        sys.exit(one_line(error))


def is_expected(error: Exception) -> bool:
    """Return whether a command ends with this error in one line.

    These are the errors in ONE_LINE_ERRORS, and every other error that Hydra or OmegaConf raises, such as a plain ValueError.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ONE_LINE_ERRORS) or str(frame.f_globals.get("__name__")).startswith(("hydra.", "omegaconf."))


train.sweep = Sweep  # type: ignore[attr-defined]  # the sweeper reads this attribute

if __name__ == "__main__":
    # The module is imported by its name, so that another process finds the functions that a launcher has pickled.
    from experiments.train import main as command

    command()
