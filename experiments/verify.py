"""python -m experiments.verify [--only NAME ...]: published and exactly known results of the field beside this engine's.

Exit status 1 where one of them is not reproduced. The table is logged to MLflow as one run, too.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from blocks import Machine
from experiments.published.descent import catapult, deep_linear, edge_of_stability, scaling, stable_rate
from experiments.published.edges import edges_of_stability
from experiments.published.mean_field import initialisation, mean_field
from experiments.published.noise import noise_scale
from experiments.published.row import Row
from experiments.published.scaling import feature_learning, transfer
from experiments.published.start import isometry, normalization
from experiments.published.trainings import bits, trainability, training_curves
from experiments.published.warm_up import warm_up
from experiments.record.address import absolute_uri, check_reachable
from experiments.run.config import TrackingConfig, UserError
from experiments.run.interrupts import end_in_order
from experiments.run.job import reason_of, status_of
from experiments.run.machine import set_machine

SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    section.__name__: section
    for section in (
        mean_field,
        initialisation,
        normalization,
        isometry,
        stable_rate,
        edge_of_stability,
        edges_of_stability,
        warm_up,
        noise_scale,
        catapult,
        deep_linear,
        training_curves,
        scaling,
        transfer,
        feature_learning,
        trainability,
        bits,
    )
}


def columns(rows: list[Row]) -> dict[str, list]:
    """Return the table as columns, with a value for each row."""
    return {
        "what": [row.quantity for row in rows],
        "source": [row.source for row in rows],
        "published": [row.published for row in rows],
        "ours": [row.ours for row in rows],
        "tolerance": [row.tolerance for row in rows],
        "holds": ["yes" if row.holds else "NO" for row in rows],
    }


def record(rows: list[Row], tracking: TrackingConfig) -> None:
    """Log the table as one run."""
    from experiments.record.tracking import Store

    store = Store(tracking)
    try:
        run = store.begin("verify", {"kind": "verify"})
        run.log_table(columns(rows))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "table.txt").write_text(table_text(rows))
            run.log_artifacts(Path(folder))
        run.end("FINISHED" if all(row.holds for row in rows) else "FAILED")
    except BaseException as error:
        with contextlib.suppress(UserError):
            store.close(status_of(error), reason_of(error))
        raise
    with contextlib.suppress(UserError):
        store.close()


def table_text(rows: list[Row]) -> str:
    """Return the table as text, with a line for each row."""
    lines = [f"{'':4}{'what':<76}{'published':>14}{'ours':>14}{'tolerance':>11}  source"]
    for row in rows:
        verdict = "ok" if row.holds else "NO"
        lines.append(f"{verdict:<4}{row.quantity:<76}{row.published:>14.7g}{row.ours:>14.7g}{row.tolerance:>11.2g}  {row.source}")
    reproduced = sum(row.holds for row in rows)
    return "\n".join([*lines, f"{reproduced} of {len(rows)} results reproduced"])


@end_in_order()
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.verify", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=SECTIONS, help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    parser.add_argument("--no-record", action="store_true", help="print the table and record nothing")
    arguments = parser.parse_args()
    reason = set_machine("portable")
    try:
        if not arguments.no_record:
            check_reachable(absolute_uri(arguments.uri))
    except UserError as error:
        sys.exit(f"error: {error}")
    rows = []
    with tqdm(arguments.only or list(SECTIONS), disable=None) as bar:
        for name in bar:
            bar.set_description_str(name)
            with threadpool_limits(1, user_api="blas"):
                rows += list(SECTIONS[name]())
    print(table_text(rows))
    print(reason or Machine.current())
    try:
        if not arguments.no_record:
            record(rows, TrackingConfig(uri=arguments.uri))
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
