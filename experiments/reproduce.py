"""python -m experiments.reproduce RUN_ID ...: train recorded runs again, from their record alone, and prove them identical.

Exit status 0 only where every run is identical, or within --tolerance where that is given.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from experiments.record.comparison import environment_differences, first_training_difference, largest_difference
from experiments.record.files import Files
from experiments.record.identity import fingerprint, trajectory_hash
from experiments.run.config import Config, UserError, printable
from experiments.run.data import Task, load_task
from experiments.run.environment import uncommitted_diff
from experiments.run.interrupts import end_in_order, raise_lost_interrupt
from experiments.run.machine import recorded_variables, set_machine
from experiments.run.pool import Pool, cores
from experiments.run.stack import STOPPED, TrainedRun, check_size, plan, train_stack, work
from experiments.run.trust import ALLOW_HELP, from_record
from experiments.sweep.training import BAR

if TYPE_CHECKING:
    from experiments.record.reading import RecordedRun


@dataclass(frozen=True)
class Verdict:
    """The result of training a recorded run again.

    holds: whether it is identical, or within the tolerance. line: the result, for the user.
    explanations: differences that may explain why it is not identical.
    """

    run: "RecordedRun"
    holds: bool
    line: str
    explanations: tuple[str, ...] = ()


def judge(run: "RecordedRun", files: Files, trained: TrainedRun, training_task: Task, tolerance: float | None) -> Verdict:
    """Compare a record with its new training.

    files: those of the record. training_task: the data and the loss of the new training.
    tolerance: the relative difference at which a run still holds, None where it must be identical.
    """
    environment = {**trained.environment, "threads": str(trained.config.training.threads), "data": training_task.dataset.digest}
    explanations = environment_differences(files.environment, environment)
    if files.diff != uncommitted_diff():
        explanations.append("uncommitted changes of the code differ")
    new_fingerprint = fingerprint(trained.config, training_task.dataset.digest, files.environment.get("package"))
    if new_fingerprint != run.tags.get("fingerprint"):
        explanations.append("config or data are not those that were recorded: the fingerprint differs")
    same_bits = trajectory_hash(trained.history, trained.parameters) == run.tags["trajectory"]
    if same_bits and new_fingerprint == run.tags.get("fingerprint"):
        return Verdict(run, True, "identical")
    if same_bits:
        return Verdict(run, False, "the bits are identical, the record is not", tuple(explanations))
    try:
        difference = first_training_difference(files, trained)
        distance = largest_difference(files.history, trained.history)
    except ValueError as error:
        return Verdict(run, False, str(error), tuple(explanations))
    if tolerance is not None and distance <= tolerance:
        return Verdict(run, True, f"within {tolerance:g}: losses and norms are at most {distance:.2g} apart", tuple(explanations))
    return Verdict(run, False, f"differs from {difference}; at most {distance:.2g} apart", tuple(explanations))


def reproduce(runs: Sequence["RecordedRun"], allow: Sequence[str], tolerance: float | None) -> list[Verdict]:
    """Train the runs again, in stacks where they share shapes, data and order, and return a verdict for each.

    allow: loaders that a record may name, see `run.trust.from_record`. tolerance: see `judge`.
    """
    verdicts: dict[str, Verdict] = {}
    prepared: list[tuple[RecordedRun, Files, Config, Task]] = []
    # (environment variables of the processes, epochs of a run that was stopped or None) -> indices in `prepared`.
    groups: dict[tuple[tuple[tuple[str, str], ...], int | None], list[int]] = {}
    for run in runs:
        try:
            files = run.files()
            config = from_record(files.config, allow)
            training_task = load_task(config)
            check_size(config, training_task)
            history = files.history
            last_epoch = history.steps_made // history.steps_an_epoch if run.tags["outcome"] == STOPPED else None
            groups.setdefault((tuple(_variables(files, tolerance).items()), last_epoch), []).append(len(prepared))
            prepared.append((run, files, config, training_task))
        except UserError as error:
            verdicts[run.run_id] = Verdict(run, False, str(error))
    configs, tasks = [config for _, _, config, _ in prepared], [training_task for *_, training_task in prepared]
    total_work = sum(work(config, training_task) for config, training_task in zip(configs, tasks, strict=True))
    with tqdm(total=total_work, bar_format=BAR, disable=None) as bar:
        for (variables, last_epoch), members in groups.items():
            member_stacks = plan([configs[k] for k in members], [tasks[k] for k in members])
            stacks = [[members[k] for k in stack] for stack in member_stacks]
            items = [([configs[k] for k in stack], tasks[stack[0]], None, last_epoch) for stack in stacks]
            with Pool(train_stack, items, cores(), dict(variables)) as pool:
                for number, trained in pool.results(raise_lost_interrupt, 1.0):
                    for lane, index in enumerate(stacks[number]):
                        run, files, _, training_task = prepared[index]
                        if isinstance(trained, Exception):
                            verdicts[run.run_id] = Verdict(run, False, f"could not be trained again: {trained}")
                        else:
                            verdicts[run.run_id] = judge(run, files, trained[lane], training_task, tolerance)
                        bar.update(work(configs[index], training_task))
                    bar.set_description_str(f"{len(verdicts)}/{len(runs)} runs")
    return [verdicts[run.run_id] for run in runs]


def _variables(files: Files, tolerance: float | None) -> dict[str, str]:
    """Return the variables of `run.machine.recorded_variables`; none where these are impossible and a tolerance is given."""
    try:
        return recorded_variables(files.environment)
    except ValueError as error:
        if tolerance is None:
            raise UserError(str(error)) from None
        return {}


@end_in_order()
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.add_argument("run_id", nargs="*", help="MLflow's ids of finished runs")
    parser.add_argument("--sweep", metavar="PARENT_ID", help="all finished runs of a sweep")
    parser.add_argument("--all", metavar="EXPERIMENT", help="all finished runs of an MLflow experiment")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    parser.add_argument("--allow", metavar="LOADER", action="append", default=[], help=ALLOW_HELP)
    parser.add_argument("--tolerance", type=float, help="for other machines: the relative difference at which a run holds")
    arguments = parser.parse_args()
    if not (arguments.run_id or arguments.sweep or arguments.all):
        parser.error("RUN_ID, --sweep or --all must say which runs")
    if arguments.tolerance is not None and not arguments.tolerance > 0:
        parser.error(f"--tolerance is {arguments.tolerance}, it must be above 0")
    # The processes that train get the variables of each record. This process only prepares the data, as most runs did.
    set_machine("portable")
    from experiments.record.reading import Archive

    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(arguments.uri, Path(folder))
            runs = [archive.run(run_id) for run_id in arguments.run_id]
            runs += archive.sweep(arguments.sweep) if arguments.sweep else []
            runs += archive.experiment(arguments.all) if arguments.all else []
            if not runs:
                raise UserError("no finished run there")
            verdicts = reproduce(runs, arguments.allow, arguments.tolerance)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if _print_verdicts(verdicts, arguments.tolerance) else 1)


def _print_verdicts(verdicts: Sequence[Verdict], tolerance: float | None) -> bool:
    """Print the verdicts; return whether all runs hold."""
    for verdict in verdicts:
        print(f"{verdict.run.run_id}  {verdict.run.name:<24}  {verdict.line}")
    for reason in dict.fromkeys(reason for verdict in verdicts for reason in verdict.explanations):
        print(f"may explain it: {printable(reason)}")
    n_holding = sum(verdict.holds for verdict in verdicts)
    print(
        f"{n_holding} of {len(verdicts)} runs are " + ("identical" if tolerance is None else f"identical or within {tolerance:g}")
    )
    return n_holding == len(verdicts)


if __name__ == "__main__":
    # The module is imported by its name, so that the processes that train need not import it again as `__main__`.
    from experiments.reproduce import main as command

    command()
