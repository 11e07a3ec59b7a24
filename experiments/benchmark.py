"""python -m experiments.benchmark [NAME ...]: what this machine takes for the laboratory's work, beside its peers.

Every comparison alternates its contestants in one process and prints medians, and the median of the ratios with its
quartiles: a machine that is busy slows all of them. Needs the extra `benchmark`.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse

from experiments.benchmarks.backends import backends
from experiments.benchmarks.command import end_to_end, scale
from experiments.benchmarks.compiled import compiled, stacks
from experiments.benchmarks.drills import kills, outages, reproductions
from experiments.benchmarks.instruments import instruments
from experiments.benchmarks.larger import larger, start_up
from experiments.benchmarks.profile import profile
from experiments.benchmarks.step import step
from experiments.benchmarks.sweep import sweep
from experiments.benchmarks.trainability import trainability
from experiments.run.environment import environment

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
        trainability,
        end_to_end,
        scale,
        backends,
        reproductions,
        kills,
        outages,
    )
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"which of {', '.join(BENCHMARKS)}; all when none is named")
    names = parser.parse_args().name or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]!r} is unknown, allowed: {', '.join(BENCHMARKS)}")
    here = environment()
    print(f"{here['cpu']}, {here['cores']} cores; NumPy {here['numpy']}, {here['blas']} ({here['blas_kernel']})")
    for name in names:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
