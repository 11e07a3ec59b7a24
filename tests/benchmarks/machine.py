"""What `machine=portable` costs here: a step and a command's start beside `native`, each in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Callable

from experiments.run.machine import PORTABLE_VARIABLES
from tests.benchmarks.step import BATCHES, SHAPES, problem, time_steps
from tests.benchmarks.tables import alternate, table

ROUNDS = 5


def machine() -> None:
    """Medians of a few turns: processes start anew for each."""
    for index, (depth, width, batch, _) in enumerate(SHAPES):
        steps = {name: _step(variables, index) for name, variables in (("portable", PORTABLE_VARIABLES), ("native", {}))}
        table(f"a step of {depth} x {width}, batch {batch}", alternate(steps, 1, rounds=ROUNDS, warm_up=False), "us", 1e6)
    starts = {name: _start(f"machine={name}") for name in ("portable", "native")}
    table("python -m experiments.train --help", alternate(starts, 1, rounds=ROUNDS), "s ", 1)


def _run(arguments: list[str], variables: dict[str, str]) -> str:
    environ = {name: value for name, value in os.environ.items() if name not in PORTABLE_VARIABLES} | variables
    return subprocess.run([sys.executable, *arguments], env=environ, check=True, capture_output=True, text=True).stdout


def _step(variables: dict[str, str], index: int) -> Callable[[], float]:
    return lambda: float(_run(["-m", "tests.benchmarks.machine", str(index)], variables))


def _start(choice: str) -> Callable[[], None]:
    def run() -> None:
        _run(["-m", "experiments.train", "--help", choice], {})

    return run


if __name__ == "__main__":
    depth, width, batch, epochs = SHAPES[int(sys.argv[1])]
    run = time_steps(*problem(depth, width, batch), batch, epochs)
    run()
    print(min(run() for _ in range(5)) / (epochs * BATCHES))
