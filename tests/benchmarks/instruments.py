"""What watching costs: a run with an instrument at every 10th update beside one without."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from blocks import INSTRUMENTS, GradientDescent, Instrument, Network, losses, reshuffled, train
from blocks.arrays import Array
from blocks.measure.instruments import LOG, LOG_POINTS
from experiments.run.config import Config, DatasetConfig, InstrumentsConfig, NetworkConfig
from experiments.run.data import load_task
from experiments.run.stack import steps_of, train_stack
from tests.benchmarks.tables import alternate, table

EVERY = 10


def instruments(depth: int = 9, width: int = 64) -> None:
    """Each instrument, on as many examples as a batch has, over none: in a run on digits with the configuration's defaults, as
    the laboratory trains it; and in a training alone, nothing evaluated, in batches of 64, and with all examples at once,
    where the vectors of Lanczos weigh nothing beside the products.
    """
    _runs(depth, width)
    for batch, epochs in ((64, 20), (1797, 200)):
        _instruments(depth, width, batch, epochs)


def _runs(depth: int, width: int) -> None:
    digits = DatasetConfig("digits", {"_target_": "sklearn.datasets.load_digits"})
    for activation, initializer in (("relu", "he"), ("tanh", "lecun")):
        network = NetworkConfig(depth, width, activation=activation, initializer=initializer)
        bare = Config(dataset=digits, network=network)
        task = load_task(bare)
        configs = {"none": bare}
        for name in INSTRUMENTS:
            schedule: dict[str, Any] = {name: str(EVERY)}
            configs[name] = replace(bare, instruments=InstrumentsConfig(**schedule))
        configs[f"signals at {LOG_POINTS} steps"] = replace(bare, instruments=InstrumentsConfig(signals=LOG))
        runs = {name: partial(train_stack, [config], task) for name, config in configs.items()}
        title = f"an update of a run of {depth} blocks x {width}, {activation}, an instrument at every {EVERY}th"
        table(title, alternate(runs, steps_of(bare, task)), "us", 1e6)


def _instruments(depth: int, width: int, batch: int, epochs: int) -> None:
    x, y = load_digits(return_X_y=True)
    deviation = x.std(axis=0)
    x = ((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).T.astype(np.float32)
    sizes = [len(x), *[width] * (depth - 1), 10]
    steps = epochs * -(-x.shape[1] // batch)
    for activation, initializer in (("relu", "he"), ("tanh", "lecun")):
        runs = {"none": _training(sizes, activation, initializer, x, y, batch, epochs, None)}
        runs |= {name: _training(sizes, activation, initializer, x, y, batch, epochs, name) for name in INSTRUMENTS}
        title = f"an update of a training alone, {depth} blocks x {width}, batch {batch}, {activation}"
        table(title, alternate(runs, steps, rounds=5), "us", 1e6)


def _training(
    sizes: list[int], activation: str, initializer: str, x: Array, y: Array, batch: int, epochs: int, name: str | None
) -> Callable[[], None]:
    watching = [Instrument(name, str(EVERY))] if name else []

    def run() -> None:
        train(
            Network.create(sizes, activation, initializer, rng=np.random.default_rng(1), dtype=np.float32),
            x,
            y,
            loss=losses.softmax_cross_entropy,
            optimizer=GradientDescent(0.05),
            epochs=epochs,
            batch_size=batch,
            orders=reshuffled(np.random.default_rng(2), x.shape[1]),
            evaluations=0,
            instruments=watching,
        )

    return run
