"""python -m experiments.compare RUN_A RUN_B: what differs in their configs, and from which step on their histories differ."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.record.comparison import first_difference_of
from experiments.record.files import Files
from experiments.run.config import UserError, flat_values, printable
from experiments.run.interrupts import end_in_order


def compared(left: Files, right: Files) -> list[str]:
    """The differences, a line each."""
    lines = []
    one, other = flat_values(left.config), flat_values(right.config)
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            lines.append(f"{key}: {_shown(one, key)} and {_shown(other, key)}")
    for key in dict.fromkeys([*left.environment, *right.environment]):
        if left.environment.get(key) != right.environment.get(key):
            lines.append(f"environment {key}: {_shown(left.environment, key)} and {_shown(right.environment, key)}")
    if left.diff != right.diff:
        lines.append("environment: the code's uncommitted changes differ")
    try:
        difference = first_difference_of(left, right)
        lines.append(f"histories differ from {difference}" if difference else "histories and final parameters are identical")
    except ValueError as error:
        lines.append(f"histories cannot be laid side by side: {error}")
    return lines


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


@end_in_order()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    parser.add_argument("run_a", metavar="RUN_A")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    arguments = parser.parse_args()
    from experiments.record.reading import Archive

    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(arguments.uri, Path(folder))
            left, right = (archive.run(run_id).files() for run_id in (arguments.run_a, arguments.run_b))
            print("\n".join(printable(line) for line in compared(left, right)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
