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

from experiments.record.comparison import distance, first_difference_of, surroundings
from experiments.record.files import Files
from experiments.record.identity import fingerprint, trajectory_hash
from experiments.run.config import Config, UserError, printable
from experiments.run.data import Task, task
from experiments.run.environment import uncommitted_diff
from experiments.run.interrupts import end_in_order, raise_lost_interrupt
from experiments.run.machine import recorded_variables, set_machine
from experiments.run.pool import Pool, cores
from experiments.run.stack import STOPPED, Trained, check_size, plan, train_stack, work
from experiments.run.trust import ALLOW_HELP, from_record
from experiments.sweep.training import BAR

if TYPE_CHECKING:
    from experiments.record.reading import Recorded


@dataclass(frozen=True)
class Verdict:
    """What came of a run. holds: whether it is identical, or within the tolerance. explained: differences of environment."""

    run: "Recorded"
    holds: bool
    line: str
    explained: tuple[str, ...] = ()


def judge(run: "Recorded", kept: Files, trained: Trained, of: Task, tolerance: float | None) -> Verdict:
    """Compare a record with its training again."""
    here = {**trained.environment, "threads": str(trained.config.training.threads), "data": of.dataset.digest}
    explained = surroundings(kept.environment, here)
    if kept.diff != uncommitted_diff():
        explained.append("uncommitted changes of the code differ")
    own = fingerprint(trained.config, of.dataset.digest, kept.environment.get("package"))
    if own != run.tags.get("fingerprint"):
        explained.append("config or data are not those that were recorded: the fingerprint differs")
    same_bits = trajectory_hash(trained.history, trained.parameters) == run.tags["trajectory"]
    if same_bits and own == run.tags.get("fingerprint"):
        return Verdict(run, True, "identical")
    if same_bits:
        return Verdict(run, False, "the bits are identical, the record is not", tuple(explained))
    try:
        difference = first_difference_of(kept, trained)
        apart = distance(kept.history, trained.history)
    except ValueError as error:
        return Verdict(run, False, str(error), tuple(explained))
    if tolerance is not None and apart <= tolerance:
        return Verdict(run, True, f"within {tolerance:g}: losses and norms are at most {apart:.2g} apart", tuple(explained))
    return Verdict(run, False, f"differs from {difference}; at most {apart:.2g} apart", tuple(explained))


def reproduce(runs: Sequence["Recorded"], allow: Sequence[str], tolerance: float | None) -> list[Verdict]:
    """Train the runs again, those that share shapes, data and order as stacks, and judge each."""
    verdicts: dict[str, Verdict] = {}
    ready: list[tuple[Recorded, Files, Config, Task]] = []
    # The variables with which processes compute as the records' did, epochs to a run that was stopped -> places in `ready`.
    machines: dict[tuple[tuple[tuple[str, str], ...], int | None], list[int]] = {}
    for run in runs:
        try:
            kept = run.files()
            config = from_record(kept.config, allow)
            of = task(config)
            check_size(config, of)
            history = kept.history
            until = history.steps_made // history.steps_an_epoch if run.tags["outcome"] == STOPPED else None
            machines.setdefault((tuple(_variables(kept, tolerance).items()), until), []).append(len(ready))
            ready.append((run, kept, config, of))
        except UserError as error:
            verdicts[run.run_id] = Verdict(run, False, str(error))
    configs, tasks = [config for _, _, config, _ in ready], [of for *_, of in ready]
    whole = sum(work(config, of) for config, of in zip(configs, tasks, strict=True))
    with tqdm(total=whole, bar_format=BAR, disable=None) as bar:
        for (machine, until), members in machines.items():
            some = plan([configs[k] for k in members], [tasks[k] for k in members])
            stacks = [[members[k] for k in stack] for stack in some]
            items = [([configs[k] for k in stack], tasks[stack[0]], None, until) for stack in stacks]
            with Pool(train_stack, items, cores(), dict(machine)) as pool:
                for number, trained in pool.results(raise_lost_interrupt, 1.0):
                    for lane, index in enumerate(stacks[number]):
                        run, kept, _, of = ready[index]
                        if isinstance(trained, Exception):
                            verdicts[run.run_id] = Verdict(run, False, f"could not be trained again: {trained}")
                        else:
                            verdicts[run.run_id] = judge(run, kept, trained[lane], of, tolerance)
                        bar.update(work(configs[index], of))
                    bar.set_description_str(f"{len(verdicts)}/{len(runs)} runs")
    return [verdicts[run.run_id] for run in runs]


def _variables(kept: Files, tolerance: float | None) -> dict[str, str]:
    """See `as_recorded`; where that cannot be had and bits are not asked for, those of this process."""
    try:
        return recorded_variables(kept.environment)
    except ValueError as error:
        if tolerance is None:
            raise UserError(str(error)) from None
        return {}


@end_in_order()
def main() -> None:
    """The command."""
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
    # Each run is trained again as it was; what is not trained, the data, as most are.
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
    sys.exit(0 if _shown(verdicts, arguments.tolerance) else 1)


def _shown(verdicts: Sequence[Verdict], tolerance: float | None) -> bool:
    for verdict in verdicts:
        print(f"{verdict.run.run_id}  {verdict.run.name:<24}  {verdict.line}")
    for reason in dict.fromkeys(reason for verdict in verdicts for reason in verdict.explained):
        print(f"may explain it: {printable(reason)}")
    held = sum(verdict.holds for verdict in verdicts)
    print(f"{held} of {len(verdicts)} runs are " + ("identical" if tolerance is None else f"identical or within {tolerance:g}"))
    return held == len(verdicts)


if __name__ == "__main__":
    # Under its own name, so that the processes that train need not import this module again.
    from experiments.reproduce import main as command

    command()
