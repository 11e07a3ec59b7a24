"""Checks of a run, and of the runs of a sweep together, before the first network is trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blocks.arrays import choice
from experiments.record.identity import RECORD_GROUPS
from experiments.run.config import Config, UserError
from experiments.run.measure import MEASURES
from experiments.run.naming import flatten, format_value

if TYPE_CHECKING:
    from experiments.run.data import Task
    from experiments.run.halving import Halving


def check_run(config: Config) -> "Task":
    """Return a run's task. Raises UserError unless its data, loss, sizes, measure and record fit."""
    from experiments.record.files import check_recordable
    from experiments.run.data import load_task
    from experiments.run.stack import check_size

    task = load_task(config)
    check_size(config, task)
    check_measure(config, task)
    if config.tracking.enabled:
        check_recordable(config, task)
    return task


def check_measure(config: Config, task: "Task") -> None:
    """Raise UserError where the data set does not have the measure by which the runs are compared."""
    allowed = [name for name, measure in MEASURES.items() if measure.kind in ("loss", task.score)]
    if (name := config.sweep.measure) not in allowed:
        raise UserError(f"sweep.measure is {name!r}, which {task.dataset.name} has not, allowed: {', '.join(allowed)}")


def check_equal_settings(configs: Sequence[Config]) -> None:
    """Raise UserError where jobs differ in a key that must be the same for the whole sweep, such as those of its record."""
    values_by_job = [flatten(config) for config in configs]
    for key in [key for key in values_by_job[0] if key.partition(".")[0] in RECORD_GROUPS]:
        for job, job_values in enumerate(values_by_job):
            if job_values[key] != values_by_job[0][key]:
                # A URI may contain a password.
                values = "" if key == "tracking.uri" else f": {values_by_job[0][key]!r} and {job_values[key]!r}"
                raise UserError(
                    f"{key} differs between job 0 and job {job}{values}; a sweep is recorded as one, it must be the same"
                )


def check_study(configs: Sequence[Config]) -> None:
    """Raise UserError where the sweep's study is unknown, or needs what a run does not have."""
    name = configs[0].sweep.study
    if name is None:
        return
    from experiments.pictures.studies import STUDIES

    try:
        study = choice("sweep.study", name, STUDIES)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not configs[0].tracking.enabled:
        raise UserError(f"tracking.enabled is false, but sweep.study {name} reads what is recorded: it must be true")
    for config in configs:
        study.check(config)


def halving(configs: Sequence[Config], search: str) -> "Halving | None":
    """Return the rungs at which the worst runs are stopped; None where every run is trained to its end.

    search: the identity of a search whose jobs are not all known yet, "" where they are.
    Raises UserError where the sweep can have no rungs.
    """
    factor, study = configs[0].sweep.halving, configs[0].sweep.study
    if factor is None:
        return None
    from experiments.run.halving import Halving

    if study is not None:
        raise UserError(
            f"sweep.halving is {format_value(factor)}, but sweep.study {study} is about runs that train to their end: "
            "it must be null"
        )
    if search:
        raise UserError(
            f"sweep.halving is {format_value(factor)}, but this search proposes its runs batch by batch: it must be null, or "
            "hydra/sweeper=random"
        )
    return Halving(configs)


def check_launch(halving: "Halving | None", jobs: int, launcher: str, batch: int | None) -> None:
    """Raise UserError where runs that are compared at rungs would not be trained together.

    jobs: their number. launcher: the name of a launcher that trains jobs one after another, "" where it trains stacks.
    batch: the number of jobs that are launched together, None for all.
    """
    if halving and launcher:
        raise UserError(
            f"sweep.halving is {format_value(halving.factor)}, but {launcher} trains jobs one by one: it must be null, or "
            "hydra/launcher=stacked"
        )
    if halving and batch is not None and batch < jobs:
        raise UserError(
            f"hydra.sweeper.max_batch_size is {batch}, but sweep.halving judges all {jobs} runs together: it must be null"
        )
