"""What an engine costs beyond the training: its start, and every stack."""

import time

import numpy as np

from experiments.run.config import Config, DatasetConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from experiments.run.data import load_task
from experiments.run.engines import BACKENDS, connect
from experiments.run.pool import cores
from experiments.run.stack import TrainedRun, train_stack

STACKS, LANES = 60, 16


def backends() -> None:
    """60 stacks of 16 networks on digits, depth 5, 115 updates each, on the engines' own workers on this machine.

    start: seconds until every worker has trained its first stack. a stack: seconds of a worker beyond the training of it.
    """
    digits = DatasetConfig("digits", {"_target_": "sklearn.datasets.load_digits"})
    network, cycles = NetworkConfig(depth=5, width=64), TrainingConfig(epochs=5, batch_size=64)
    configs = [
        Config(dataset=digits, network=network, optimizer=OptimizerConfig(learning_rate=float(rate)), training=cycles)
        for rate in np.geomspace(1e-3, 0.1, STACKS * LANES)
    ]
    print(f"\n{STACKS} stacks of {LANES} networks of depth 5, {cores()} workers")
    for backend in BACKENDS:
        start, training, overhead = _measured(backend, configs)
        print(
            f"  {backend:<6}start {start:6.1f} s   a stack: training {training * 1e3:6.0f} ms, beyond it {overhead * 1e3:6.1f} ms"
        )


def _measured(backend: str, configs: list[Config]) -> tuple[float, float, float]:
    start_time = time.perf_counter()
    with connect(backend) as engine:
        task = engine.share(load_task(configs[0]))
        items = [(configs[k : k + LANES], task) for k in range(0, len(configs), LANES)]
        finished: list[tuple[float, float]] = []
        with engine.pool(train_stack, items, -1) as pool:
            for _, trained in pool.results(lambda: None, 1.0):
                if isinstance(trained, Exception):
                    raise trained
                finished.append((time.perf_counter(), _seconds(trained)))
    # From then on every worker has what it needs.
    warm = finished[cores() - 1][0]
    durations = [seconds for _, seconds in finished[cores() :]]
    overhead = (finished[-1][0] - warm) * cores() - sum(durations)
    return warm - start_time, float(np.mean(durations)), overhead / len(durations)


def _seconds(trained: list[TrainedRun]) -> float:
    return trained[0].end_time - trained[0].start_time
