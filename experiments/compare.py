"""python -m experiments.compare A B: how the configs of two runs or sweeps differ, and from which step their histories differ."""

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

DEFAULT_MEASURE = "loss/train"


def compare_runs(files_a: Files, files_b: Files) -> list[str]:
    """Return a line for each difference of two runs, in config, environment and history. files_a, files_b: what they recorded."""
    lines = []
    values_a, values_b = flatten_values(files_a.config), flatten_values(files_b.config)
    for key in dict.fromkeys([*values_a, *values_b]):
        if values_a.get(key) != values_b.get(key):
            lines.append(f"{key}: {_value_text(values_a, key)} and {_value_text(values_b, key)}")
    for key in dict.fromkeys([*files_a.environment, *files_b.environment]):
        if files_a.environment.get(key) != files_b.environment.get(key):
            lines.append(
                f"environment {key}: {_value_text(files_a.environment, key)} and {_value_text(files_b.environment, key)}"
            )
    if files_a.diff != files_b.diff:
        lines.append("environment: the code's uncommitted changes differ")
    try:
        difference = first_training_difference(files_a, files_b)
        if stop := _stop_text(difference, files_a, files_b):
            lines.append(f"histories are identical until {stop}")
        else:
            lines.append(f"histories differ from {difference}" if difference else "histories and final parameters are identical")
    except ValueError as error:
        lines.append(f"histories cannot be laid side by side: {error}")
    return lines


def compare_sweeps(runs_a: "Sequence[RecordedRun]", runs_b: "Sequence[RecordedRun]", measures: Sequence[str]) -> list[str]:
    """Return the lines that compare two sweeps.

    First come the values that neither sweep varies, but that differ between the two. Then comes a table with a row for each
    pair of a run of A and a run of B. The runs of a pair have the same value of every key that either sweep varies.
    The last line counts the pairs, and the runs without a partner.

    runs_a, runs_b: the runs of A and of B, at least one each. measures: names of the measures whose last values are columns.
    """
    sweeps = [[(run, _training_values(run.files().config)) for run in runs] for runs in (runs_a, runs_b)]
    keys = list(dict.fromkeys(key for sweep in sweeps for key in differing_keys([config for _, config in sweep])))
    lines = []
    values_a, values_b = (sweep[0][1] for sweep in sweeps)
    for key in dict.fromkeys([*values_a, *values_b]):
        if key not in keys and values_a.get(key) != values_b.get(key):
            lines.append(f"{key}: {_value_text(values_a, key)} and {_value_text(values_b, key)}")

    def swept_values(config: dict[str, Any]) -> str:
        return str([config.get(key) for key in keys])

    partners = {swept_values(config): run for run, config in sweeps[1]}
    pairs = [(run, config, partners[swept_values(config)]) for run, config in sweeps[0] if swept_values(config) in partners]
    from pandas import DataFrame

    rows, identical = [], 0
    for run, config, partner in pairs:
        files_a, files_b = run.files(), partner.files()
        try:
            difference = first_training_difference(files_a, files_b)
            if stop := _stop_text(difference, files_a, files_b):
                result = f"identical until {stop}"
            else:
                result = f"differ from step {difference.step}" if difference else "identical"
        except ValueError as error:
            result = str(error)
        identical += result == "identical"
        last_values = [_last_value(files, measure) for measure in measures for files in (files_a, files_b)]
        rows.append([*(str(config.get(key, "")) for key in keys), *last_values, result])
    if rows:
        columns = [*keys, *(f"{measure} {side}" for measure in measures for side in "AB"), "histories"]
        lines.append(DataFrame(rows, columns=columns).to_string(index=False))
    unpaired = [len(sweep) - len(pairs) for sweep in sweeps]
    return [
        *lines,
        f"{len(pairs)} pairs of runs, {identical} identical; {unpaired[0]} runs are in A alone, {unpaired[1]} in B alone",
    ]


def _last_value(files: Files, measure: str) -> str:
    """Return the last value of a measure as text, or "" where the run does not have the measure."""
    values = files.history.measures.get(measure)
    return "" if values is None else f"{float(values[-1]):.4g}"


def _stop_text(difference: Difference | None, files_a: Files, files_b: Files) -> str:
    """Return `A is stopped at step 8` where A was stopped by `run.halving` and the histories are equal until then, else "".

    difference: the first difference of the two runs. B is treated like A.
    """
    for name, history in (("A", files_a.history), ("B", files_b.history)):
        is_complete = history.diverged_step >= 0 or history.steps_made == len(history.loss)
        if difference and not is_complete and difference.step == history.steps_made:
            return f"{name} is stopped at step {difference.step}"
    return ""


def _training_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the flat config without the groups of the record, which do not change the training."""
    return {key: value for key, value in flatten_values(config).items() if key.partition(".")[0] not in RECORD_GROUPS}


def _value_text(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


@end_in_order()
def main() -> None:
    """Run the command."""
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
                if single_run := next((run_id for run_id in ids if kinds[run_id] != "sweep"), None):
                    raise UserError(f"run {single_run} is no sweep: a sweep is compared with a sweep, a run with a run")
                runs_a, runs_b = (archive.sweep(run_id) for run_id in ids)
                if not (runs_a and runs_b):
                    raise UserError(f"sweep {ids[len(runs_a) > 0]} has no finished run")
                measures = [archive.get_run(run_id).data.tags.get(MEASURE, DEFAULT_MEASURE) for run_id in ids]
                lines = compare_sweeps(runs_a, runs_b, list(dict.fromkeys([DEFAULT_MEASURE, *measures])))
            else:
                lines = compare_runs(*(archive.run(run_id).files() for run_id in ids))
            print("\n".join(printable(part) for line in lines for part in line.splitlines()))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
