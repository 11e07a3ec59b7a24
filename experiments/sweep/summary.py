"""What a sweep prints at its end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.run.naming import format_value
from experiments.sweep.record import SweepRecord
from experiments.sweep.training import Training

if TYPE_CHECKING:
    from experiments.pictures.report import Report


def print_outcomes(record: SweepRecord, report: "Report | None", untrained: Mapping[str, Exception], interrupted: bool) -> None:
    """Print the table of the runs, and the jobs that were not trained. untrained: the name of such a job -> its error."""
    from experiments.pictures.report import outcome_of_error
    from experiments.pictures.table import report_text

    if report:
        print(f"\n{report_text(report)}")
    n_finished, jobs = len(report.rows) if report else 0, record.jobs
    # A search that came to its end may have fewer runs than proposals: a repeated proposal is one run.
    if n_finished < (jobs.count if interrupted else len(jobs)) and record.parent.run_id:
        print(f"{n_finished} of {jobs.count} runs finished")
    for name, reason in untrained.items():
        print(f"{outcome_of_error(reason)}: {name}: {reason}")


def print_halving(training: Training) -> None:
    """Print the share of updates that halving made. All runs of this start, trained to their end, would have made 100 %."""
    from experiments.run.data import load_task
    from experiments.run.stack import steps_of

    if not (training.halving and training.updates):
        return
    record = training.record
    configs = [config for job, config in enumerate(record.jobs.configs) if job not in record.tags]
    share = training.updates / sum(steps_of(config, load_task(config)) for config in configs)
    print(f"halving by {format_value(training.halving.factor)}: {share:.1%} of the updates of whole trainings")


def print_record(record: SweepRecord) -> None:
    """Print the study's verdict, and the commands that show the record."""
    if record.verdict:
        print(f"{record.jobs.configs[0].sweep.study}: {record.verdict}")
    if record.store and record.parent.run_id:
        for step in record.store.page.next_steps:
            print(step)
    if len(record.outbox):
        print(f"{len(record.outbox)} {record.outbox.instructions}")
