"""A larger job for the same engine, beside PyTorch; and how long the command takes to start."""

import subprocess
import sys

import numpy as np

from tests.benchmarks.peers import torch_loop
from tests.benchmarks.step import on_two_threads, ours, problem
from tests.benchmarks.tables import alternate, ratio, table

EXAMPLES, INPUTS, DEPTH, WIDTH, BATCH = 60_000, 784, 5, 512, 256
EPOCHS, ROUNDS, STARTS = 3, 5, 9


def larger() -> None:
    """Images a second of 5 x 512 on data of mnist_784's shape, run whole, beside PyTorch on two threads."""
    sizes, x, y = problem(DEPTH, WIDTH, BATCH, INPUTS, -(-EXAMPLES // BATCH))
    x, y = x[:, :EXAMPLES], y[:EXAMPLES]
    run = ours(sizes, x, y, BATCH, EPOCHS)
    contestants = {
        "ours, with norms, two threads": on_two_threads(run),
        "ours, with norms, one thread": run,
        "PyTorch eager, with norms, two threads": torch_loop(sizes, x, y, BATCH, True, EPOCHS, threads=2),
        "PyTorch eager, no norms, two threads": torch_loop(sizes, x, y, BATCH, False, EPOCHS, threads=2),
    }
    times = alternate(contestants, EPOCHS, ROUNDS, warm_up=False)
    table(f"an epoch of {EXAMPLES} x {INPUTS}, {DEPTH} blocks x {WIDTH}, batch {BATCH}, float32, relu", times, "s ", 1)
    for name, seconds in times.items():
        print(f"  {name:<42}{EXAMPLES / np.median(seconds):>10.0f} images a second")
    two, _, torch, torch_without = times.values()
    print(f"  ours over PyTorch, images a second: {ratio(torch, two)}, against PyTorch without norms {ratio(torch_without, two)}")


def start_up() -> None:
    """Seconds until `python -m experiments.train --help` is there."""

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    contestants = {
        "python -m experiments.train --help": lambda: run("-m", "experiments.train", "--help"),
        "python -c 'import numpy'": lambda: run("-c", "import numpy"),
    }
    table("start-up", alternate(contestants, 1, STARTS), "ms", 1e3)
