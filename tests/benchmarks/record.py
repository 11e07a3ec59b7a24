"""What it costs to write a run, through MLflow's client and as rows of its tables."""

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.run.config import SweepConfig, TrackingConfig
from experiments.run.stack import train_stack
from tests.benchmarks.sweep import RATES, sweep_configs
from tests.benchmarks.tables import alternate, table

ROUNDS = 5


def record() -> None:
    """Runs of 5 epochs, 16 of each depth, from their beginning to their end, into a SQLite store: processor time."""
    from experiments.record.rows import Rows
    from experiments.record.tracking import Store
    from experiments.record.writer import Requests, Writer

    configs = [replace(config, training=replace(config.training, epochs=5)) for config in sweep_configs()]
    stacks = [train_stack(configs[first : first + len(RATES)]) for first in range(0, len(configs), len(RATES))]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(TrackingConfig(uri=f"sqlite:///{Path(folder, 'runs.db')}"))
        assert isinstance(store.writer, Rows)
        parent, _ = store.begin_sweep("sweep", {"kind": "sweep"}, "", SweepConfig())

        def write(writer: Writer) -> None:
            store.writer = writer
            for runs in (runs for stack in stacks for runs in store.transactions(stack)):
                open_runs = store.begin_runs([("run", {"kind": "run"}, run.config) for run in runs], parent.run_id)
                store.finish(list(zip(open_runs, runs, strict=True)))

        writers: dict[str, Writer] = {"rows": store.writer, "MLflow's client": Requests(store.client, store.experiment_id)}
        contestants = {name: partial(write, writer) for name, writer in writers.items()}
        times = alternate(contestants, len(configs), ROUNDS, clock=time.process_time)
    table("a run's record: processor time", times, "ms", 1e3)
