"""What is checked of a run, and of the runs of a sweep together, before the first network is trained."""

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
    """The run's task; raises UserError unless data, loss and batch size fit."""
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
    """Raise UserError where the data set does not have the measure that the runs are judged by."""
    allowed = [name for name, measure in MEASURES.items() if measure.kind in ("loss", task.score)]
    if (name := config.sweep.measure) not in allowed:
        raise UserError(f"sweep.measure is {name!r}, which {task.dataset.name} has not, allowed: {', '.join(allowed)}")


def check_alike(configs: Sequence[Config]) -> None:
    """Raise UserError where jobs differ in what a sweep has once: its record, and what is made of it."""
    runs = [flatten(config) for config in configs]
    for key in [key for key in runs[0] if key.partition(".")[0] in RECORD_GROUPS]:
        for job, run in enumerate(runs):
            if run[key] != runs[0][key]:
                # A URI may have a password in it.
                values = "" if key == "tracking.uri" else f": {runs[0][key]!r} and {run[key]!r}"
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
        study.needs(config)


def halving(configs: Sequence[Config], search: str) -> "Halving | None":
    """The rungs at which the worst runs are stopped; None where every run is trained to its end.

    search: what identifies a search whose jobs are not all known yet, "" where they are.
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
    """Raise UserError where runs that are judged together would not be trained together.

    launcher: the name of one that trains jobs one after another, "" where stacks are trained.
    batch: how many jobs are launched at once, None for all.
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
