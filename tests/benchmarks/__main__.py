"""python -m tests.benchmarks [NAME ...]: what this machine takes for the laboratory's work, beside its peers.

Every comparison alternates its contestants in one process and prints medians, and the median of the ratios with its
quartiles: a machine that is busy slows all of them. `beside PATH` lays the engine and the command of another checkout, such
as an earlier version's, beside this one's. Needs the extra `benchmark`.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from functools import partial
from pathlib import Path

from experiments.run.config import UserError
from experiments.run.environment import environment
from tests.benchmarks.backends import backends
from tests.benchmarks.beside import Engine, beside
from tests.benchmarks.command import command, scale
from tests.benchmarks.compiled import compiled, stacks
from tests.benchmarks.drills import kills, outages, reproductions
from tests.benchmarks.instruments import instruments
from tests.benchmarks.larger import larger, start_up
from tests.benchmarks.machine import machine
from tests.benchmarks.profile import profile
from tests.benchmarks.record import record
from tests.benchmarks.step import step
from tests.benchmarks.sweep import halving, seeds, sweep
from tests.benchmarks.trainability import trainability

BENCHMARKS = {
    run.__name__: run
    for run in (
        step,
        profile,
        compiled,
        stacks,
        larger,
        start_up,
        instruments,
        sweep,
        seeds,
        halving,
        trainability,
        command,
        record,
        scale,
        backends,
        machine,
        reproductions,
        kills,
        outages,
    )
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    which = f"which of {', '.join(BENCHMARKS)}; all of these when none is named; or beside, with the PATH of another checkout"
    parser.add_argument("name", nargs="*", help=which)
    names = parser.parse_args().name or list(BENCHMARKS)
    runs = BENCHMARKS
    if names[0] == "beside":
        if len(names) != 2:
            parser.error(f"beside takes one PATH, it has {len(names) - 1}")
        try:
            names, runs = ["beside"], {"beside": partial(beside, Engine(Path(names[1])))}
        except UserError as error:
            parser.error(str(error))
    unknown = [name for name in names if name not in runs]
    if unknown:
        parser.error(f"{unknown[0]!r} is unknown, allowed: {', '.join(BENCHMARKS)}, or beside PATH")
    versions = environment()
    print(
        f"{versions['cpu']}, {versions['cores']} cores; NumPy {versions['numpy']}, {versions['blas']} ({versions['blas_kernel']})"
    )
    for name in names:
        try:
            runs[name]()
        except ImportError as error:
            parser.error(f"{name} needs the extra benchmark, pip install -e '.[benchmark]': {error}")


if __name__ == "__main__":
    main()
