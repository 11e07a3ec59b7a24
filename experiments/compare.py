"""python -m experiments.compare A B: what differs between two runs, or two sweeps, in config, and from which step in history."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.record.comparison import Difference, first_training_difference
from experiments.record.files import Files
from experiments.record.identity import RECORD_GROUPS
from experiments.run.config import MEASURE, UserError, printable
from experiments.run.interrupts import end_in_order
from experiments.run.naming import differing_keys, flatten_values

if TYPE_CHECKING:
    from experiments.record.reading import RecordedRun

FINAL = "loss/train"


def compared(left: Files, right: Files) -> list[str]:
    """The differences, a line each."""
    lines = []
    one, other = flatten_values(left.config), flatten_values(right.config)
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            lines.append(f"{key}: {_shown(one, key)} and {_shown(other, key)}")
    for key in dict.fromkeys([*left.environment, *right.environment]):
        if left.environment.get(key) != right.environment.get(key):
            lines.append(f"environment {key}: {_shown(left.environment, key)} and {_shown(right.environment, key)}")
    if left.diff != right.diff:
        lines.append("environment: the code's uncommitted changes differ")
    try:
        difference = first_training_difference(left, right)
        if stopped := _stopped_at(difference, left, right):
            lines.append(f"histories are identical until {stopped}")
        else:
            lines.append(f"histories differ from {difference}" if difference else "histories and final parameters are identical")
    except ValueError as error:
        lines.append(f"histories cannot be laid side by side: {error}")
    return lines


def compared_sweeps(left: "Sequence[RecordedRun]", right: "Sequence[RecordedRun]", measures: Sequence[str]) -> list[str]:
    """The runs of two sweeps side by side: those with the same values of every key that is swept in either.

    measures: of a history, whose last values are shown.
    """
    sides = [[(run, _trained(run.files().config)) for run in runs] for runs in (left, right)]
    keys = list(dict.fromkeys(key for side in sides for key in differing_keys([config for _, config in side])))
    lines = []
    one, other = (side[0][1] for side in sides)
    for key in dict.fromkeys([*one, *other]):
        if key not in keys and one.get(key) != other.get(key):
            lines.append(f"{key}: {_shown(one, key)} and {_shown(other, key)}")

    def place(config: dict[str, Any]) -> str:
        return str([config.get(key) for key in keys])

    partners = {place(config): run for run, config in sides[1]}
    pairs = [(run, config, partners[place(config)]) for run, config in sides[0] if place(config) in partners]
    from pandas import DataFrame

    rows, identical = [], 0
    for run, config, partner in pairs:
        mine, theirs = run.files(), partner.files()
        try:
            difference = first_training_difference(mine, theirs)
            if stopped := _stopped_at(difference, mine, theirs):
                told = f"identical until {stopped}"
            else:
                told = f"differ from step {difference.step}" if difference else "identical"
        except ValueError as error:
            told = str(error)
        identical += told == "identical"
        finals = [_last(files, measure) for measure in measures for files in (mine, theirs)]
        rows.append([*(str(config.get(key, "")) for key in keys), *finals, told])
    if rows:
        columns = [*keys, *(f"{measure} {side}" for measure in measures for side in "AB"), "histories"]
        lines.append(DataFrame(rows, columns=columns).to_string(index=False))
    alone = [len(side) - len(pairs) for side in sides]
    return [*lines, f"{len(pairs)} pairs of runs, {identical} identical; {alone[0]} runs are in A alone, {alone[1]} in B alone"]


def _last(files: Files, measure: str) -> str:
    """The last value of a measure, "" where the run has no such measure."""
    values = files.history.measures.get(measure)
    return "" if values is None else f"{float(values[-1]):.4g}"


def _stopped_at(difference: Difference | None, left: Files, right: Files) -> str:
    """`A is stopped at step 8` where they differ in that alone, "" otherwise; see `run.halving`."""
    for name, history in (("A", left.history), ("B", right.history)):
        is_whole = history.diverged_step >= 0 or history.steps_made == len(history.loss)
        if difference and not is_whole and difference.step == history.steps_made:
            return f"{name} is stopped at step {difference.step}"
    return ""


def _trained(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten_values(config).items() if key.partition(".")[0] not in RECORD_GROUPS}


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


@end_in_order()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    parser.add_argument("run_a", metavar="A", help="id of a run, or of a sweep's parent run")
    parser.add_argument("run_b", metavar="B", help="id of another one")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    arguments = parser.parse_args()
    from experiments.record.reading import Archive

    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(arguments.uri, Path(folder))
            ids = (arguments.run_a, arguments.run_b)
            kinds = {run_id: archive.kind(run_id) for run_id in ids}
            if "sweep" in kinds.values():
                if other := next((run_id for run_id in ids if kinds[run_id] != "sweep"), None):
                    raise UserError(f"run {other} is no sweep: a sweep is compared with a sweep, a run with a run")
                left, right = (archive.sweep(run_id) for run_id in ids)
                if not (left and right):
                    raise UserError(f"sweep {ids[len(left) > 0]} has no finished run")
                judged_by = [archive.get_run(run_id).data.tags.get(MEASURE, FINAL) for run_id in ids]
                lines = compared_sweeps(left, right, list(dict.fromkeys([FINAL, *judged_by])))
            else:
                lines = compared(*(archive.run(run_id).files() for run_id in ids))
            print("\n".join(printable(part) for line in lines for part in line.splitlines()))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
