"""python -m experiments.deliver FOLDER: write into MLflow what waits in a sweep's folder since its server did not answer."""

import argparse
import sys
from pathlib import Path

from experiments.record.address import conceal_typed
from experiments.run.config import UserError
from experiments.run.interrupts import end_in_order


@end_in_order()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.deliver", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a sweep or a run, as its last line says")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        sys.exit(f"error: FOLDER is {str(folder)!r}, it must be a folder that is there")
    from experiments.record.outbox import deliver

    try:
        # Records name their store without its password.
        conceal_typed()
        count = deliver(folder)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{count} records delivered" if count else "no record waits there")


if __name__ == "__main__":
    main()
