"""What a sweep prints at its end."""

from typing import TYPE_CHECKING

from experiments.run.config import shown

if TYPE_CHECKING:
    from experiments.pictures.report import Report
    from experiments.sweep.record import SweepRecord
    from experiments.sweep.sweep import Sweep


def print_outcomes(sweep: "Sweep", report: "Report | None", interrupted: bool) -> None:
    """The table, what halving has saved, and which jobs have not finished."""
    from experiments.pictures.report import fate

    if report:
        print(f"\n{report.text()}")
    if sweep.halving and sweep.training and sweep.training.updates:
        print(f"halving by {shown(sweep.halving.factor)}: {_share_of_updates(sweep):.1%} of the updates of whole trainings")
    ended = len(report.rows) if report else 0
    # Of a search that came to its end, what was proposed twice is one run.
    if ended < (sweep.jobs.count if interrupted else len(sweep.jobs)) and sweep.record.parent.run_id:
        print(f"{ended} of {sweep.jobs.count} runs finished")
    for name, reason in sweep.named_errors().items():
        print(f"{fate(reason)}: {name}: {reason}")


def _share_of_updates(sweep: "Sweep") -> float:
    """The updates that were made, of all that whole trainings of the runs would have made that were not recorded before."""
    from experiments.run.data import task
    from experiments.run.stack import steps_of

    assert sweep.training is not None
    configs = [config for job, config in enumerate(sweep.jobs.configs) if job not in sweep.record.tags]
    return sweep.training.updates / sum(steps_of(config, task(config)) for config in configs)


def print_record(record: "SweepRecord") -> None:
    """The study's verdict, and what is done next with the record."""
    if record.verdict:
        print(f"{record.jobs.configs[0].sweep.study}: {record.verdict}")
    if record.store and record.parent.run_id:
        for step in record.store.page.next_steps:
            print(step)
    if len(record.outbox):
        print(f"{len(record.outbox)} {record.outbox.instructions}")
