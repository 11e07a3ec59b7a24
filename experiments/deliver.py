"""python -m experiments.deliver FOLDER: write into MLflow the records left in a sweep's folder since no server answered."""

import argparse
import os
import sys
from pathlib import Path

from experiments.record.address import strip_typed_passwords
from experiments.run.config import UserError
from experiments.run.interrupts import end_in_order
from experiments.run.trust import ALLOW_HELP


@end_in_order("what waits is there still")
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.deliver", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a sweep or a run, as its last line says")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI, where they belong")
    parser.add_argument("--allow", metavar="LOADER", action="append", default=[], help=ALLOW_HELP)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        sys.exit(f"error: FOLDER is {str(arguments.folder)!r}, it must be a folder that is there")
    try:
        # A record has its store's address without a password. The typed address is compared with it, so it loses its password.
        strip_typed_passwords()
        from experiments.record.outbox import deliver

        count = deliver(arguments.folder.absolute(), allow=arguments.allow, uri=arguments.uri)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} records delivered" if count else "no record waits there")


if __name__ == "__main__":
    main()
