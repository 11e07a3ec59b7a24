"""python -m experiments.store export SWEEP_ID FILE.csv | delete SWEEP_ID: what is done with a sweep's record as a whole.

export    every curve of its runs at every step, a value a line: run_id, the swept keys, step, metric, value
delete    its own run, its jobs' runs and their models, as MLflow deletes: runs can be restored until `mlflow gc`
"""

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments.run.config import UserError
from experiments.run.interrupts import end_in_order
from experiments.run.naming import differing_keys, flatten_values


def export(run_id: str, file: Path, uri: str | None) -> int:
    """Write the curves of a sweep's finished runs, or of one run, as CSV; return the number of lines below the header.

    Metrics have the names and the steps that they have in MLflow, but all blocks and all steps are written. Values that are not
    finite are left out.

    uri: MLflow's tracking URI, None is the file beside the project.
    Raises UserError where there is no such sweep, or where the file exists already.
    """
    from experiments.record.metrics import series
    from experiments.record.reading import Archive

    if file.exists():
        raise UserError(f"FILE is {str(file)!r}, which is there already: name another one")
    with tempfile.TemporaryDirectory() as downloads:
        runs = Archive(uri, Path(downloads)).finished_runs(run_id)
        configs = [flatten_values(run.files().config) for run in runs]
        keys, count = differing_keys(configs), 0
        with file.open("x", newline="") as csv_file:
            writer = csv.writer(csv_file)
            writer.writerow(["run_id", *keys, "step", "metric", "value"])
            for run, config in zip(runs, configs, strict=True):
                history, first_columns = run.files().history, [run.run_id, *(config.get(key, "") for key in keys)]
                steps = len(history.loss)
                for metric, (steps_of_metric, values) in series(history, steps, steps + 1, None).items():
                    finite = np.isfinite(values)
                    for step, value in zip(steps_of_metric[finite].tolist(), values[finite].tolist(), strict=True):
                        writer.writerow([*first_columns, step, metric, repr(value)])
                        count += 1
    return count


@end_in_order()
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["export", "delete"])
    parser.add_argument("sweep_id", metavar="SWEEP_ID", help="a sweep's parent run, or a run alone")
    parser.add_argument("file", metavar="FILE.csv", type=Path, nargs="?", help="to export to")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    arguments = parser.parse_args()
    if (arguments.action == "export") != (arguments.file is not None):
        parser.error("export takes SWEEP_ID and FILE.csv, delete takes SWEEP_ID alone")
    try:
        if arguments.action == "export":
            print(f"{export(arguments.sweep_id, arguments.file, arguments.uri)} values are in {arguments.file}")
        else:
            from experiments.record.removal import delete

            print(delete(arguments.sweep_id, arguments.uri))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
