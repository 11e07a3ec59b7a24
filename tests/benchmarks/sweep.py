"""Training alone of a depth x learning-rate grid, beside JAX, PyTorch and scikit-learn; of depth x seed; with halving."""

import contextlib
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np

from blocks import GradientDescent, History, Network, reshuffled, train
from blocks.arrays import Array
from experiments.run.config import Config, DatasetConfig, NetworkConfig, OptimizerConfig, SweepConfig, TrainingConfig
from experiments.run.data import Task
from experiments.run.stack import TrainedRun
from tests.benchmarks.peers import jax_training, torch_loop
from tests.benchmarks.tables import alternate, table

SWEEP_ROUNDS, HALVED_SEEDS = 3, 10
# Factor of the halving, and evaluations of a run: its rungs are where the data were measured last.
HALVINGS = [(3, 10), (3, 20), (4, 10)]
DEPTHS, RATES, SWEEP_EPOCHS, WIDTH, BATCH = (2, 3, 5, 9, 17, 33), np.geomspace(1e-3, 1, 16), 20, 64, 64


def sweep() -> None:
    """Training alone of depths 2 to 33 x 16 rates on digits, 460 updates each: ours in stacks on all cores, beside JAX's
    jit(vmap(scan)) over the rates with compilation, a PyTorch loop, scikit-learn under joblib.
    """
    contestants = {
        "ours, with norms": ours_sweep,
        "JAX jit(vmap(scan)), with norms": _jax_sweep,
        "scikit-learn, joblib, without norms": _sklearn_sweep,
        "PyTorch loop, with norms": _torch_sweep,
    }
    times = alternate(contestants, 1, rounds=SWEEP_ROUNDS, warm_up=False)
    table(f"a sweep of {len(DEPTHS)} depths x {len(RATES)} rates on digits, float32, relu", times, "s ", 1)


def seeds() -> None:
    """Training alone of depths 2 to 33 x 16 seeds in stacks, whose lanes have each an order of the batches of their own,
    beside 16 rates, which share one; none diverges.
    """
    rates = [
        replace(config, optimizer=OptimizerConfig(learning_rate=float(rate)))
        for config, rate in zip(sweep_configs(), np.tile(np.geomspace(1e-3, 1e-2, len(RATES)), len(DEPTHS)), strict=True)
    ]
    same_optimizer = OptimizerConfig(learning_rate=1e-2)
    seeds = [replace(config, seed=number % len(RATES), optimizer=same_optimizer) for number, config in enumerate(rates)]

    contestants = {"16 rates": partial(_in_turn, rates), "16 seeds": partial(_in_turn, seeds)}
    times = alternate(contestants, 1, rounds=SWEEP_ROUNDS, clock=time.process_time)
    table(f"stacks of {len(DEPTHS)} depths x 16 rates or seeds on digits, one process", times, "s ", 1)


def halving() -> None:
    """Successive halving of 4 depths x 64 rates on digits, 81 epochs at width 16, beside the full grid, for 10 seeds.

    Whether the run of the smallest final loss is among those that go on, and at which share of updates and of processor time.
    """
    successes: dict[tuple[float, int], list[bool]] = {case: [] for case in HALVINGS}
    shares: dict[tuple[float, int], list[tuple[float, float]]] = {case: [] for case in HALVINGS}
    for seed in range(HALVED_SEEDS):
        configs = [
            replace(
                config,
                seed=seed,
                network=NetworkConfig(depth=config.network.depth, width=16),
                optimizer=OptimizerConfig(learning_rate=float(rate)),
                training=TrainingConfig(epochs=81, batch_size=BATCH),
            )
            for config in sweep_configs()[: 4 * len(RATES) : len(RATES)]
            for rate in np.geomspace(0.003, 1, 64)
        ]
        start = time.process_time()
        full = _in_turn(configs)
        seconds = time.process_time() - start
        best, updates = np.nanargmin([run.final("loss/train") for run in full]), sum(run.history.steps_made for run in full)
        for factor, evaluations in HALVINGS:
            training = replace(configs[0].training, evaluations=evaluations)
            start = time.process_time()
            survivors, n_updates = _halved(
                [replace(config, training=training, sweep=SweepConfig(halving=factor)) for config in configs]
            )
            shares[factor, evaluations].append((n_updates / updates, (time.process_time() - start) / seconds))
            successes[factor, evaluations].append(best in survivors)
    print(
        "\nhalving, 4 depths x 64 rates on digits, 81 epochs: is the best run of the full grid found, and at which share of it?"
    )
    for factor, evaluations in HALVINGS:
        update_share, time_share = np.median(shares[factor, evaluations], axis=0)
        seeds = f"{sum(successes[factor, evaluations])} of {HALVED_SEEDS} seeds"
        print(
            f"  by {factor}, {evaluations} evaluations: for {seeds}, at {update_share:.1%} of its updates and {time_share:.1%} "
            "of its processor time (medians)"
        )


def _halved(configs: list[Config]) -> tuple[list[int], int]:
    """The runs that are trained to their end, and the updates that all have made."""
    from experiments.run.halving import Halving

    rungs, jobs, updates = Halving(configs), list(range(len(configs))), 0
    for rung in range(1, rungs.count + 2):
        trained = dict(zip(jobs, _in_turn([configs[k] for k in jobs], rungs.end_epoch(0, rung)), strict=True))
        updates += sum(run.history.steps_made for run in trained.values())
        if rung <= rungs.count:
            jobs = rungs.survivors(rung, trained, {})
    return jobs, updates


def _in_turn(configs: list[Config], until: int | None = None) -> list[TrainedRun]:
    """The runs, trained stack by stack."""
    from experiments.run.stack import plan, train_stack

    task = digits()
    trained: dict[int, TrainedRun] = {}
    for stack in plan(configs, [task] * len(configs)):
        trained |= dict(zip(stack, train_stack([configs[k] for k in stack], task, until=until), strict=True))
    return [trained[k] for k in range(len(configs))]


def sweep_configs() -> list[Config]:
    """The grid as typed configs."""
    digits = DatasetConfig("digits", {"_target_": "sklearn.datasets.load_digits"})
    return [
        Config(
            dataset=digits,
            network=NetworkConfig(depth=depth, width=WIDTH),
            optimizer=OptimizerConfig(learning_rate=float(rate)),
            training=TrainingConfig(epochs=SWEEP_EPOCHS, batch_size=BATCH),
        )
        for depth in DEPTHS
        for rate in RATES
    ]


def ours_sweep(evaluations: int = 0) -> None:
    """A new pool of processes, all stacks, every history fetched. evaluations: how often the whole sets are measured."""
    from experiments.run.data import load_task
    from experiments.run.pool import Pool, cores
    from experiments.run.stack import plan

    configs = sweep_configs()
    tasks = [load_task(config) for config in configs]
    items = [([configs[k] for k in stack], tasks[stack[0]], evaluations) for stack in plan(configs, tasks)]
    with Pool(_ours_stack, items, cores()) as pool:
        histories = [history for _, history in pool.results(lambda: None, 1.0)]
    assert sum(len(history.loss) for history in histories) == len(configs)


def _ours_stack(configs: list[Config], task: Task, evaluations: int) -> History:
    """The training; the peers do not measure the whole sets."""
    from experiments.run.stack import sizes

    network = Network.create(sizes(configs[0], task), rng=np.random.default_rng(1), dtype=np.float32, lanes=len(configs))
    return train(
        network,
        task.dataset.x,
        task.dataset.y,
        loss=task.loss,
        optimizer=GradientDescent(np.array([config.optimizer.learning_rate for config in configs])),
        epochs=SWEEP_EPOCHS,
        batch_size=BATCH,
        orders=reshuffled(np.random.default_rng(2), task.dataset.x.shape[-1]),
        evaluations=evaluations,
        validation=(task.dataset.x_validation, task.dataset.y_validation),
        loss_bound=configs[0].training.loss_bound,
    )


def digits() -> Task:
    """The data set that is trained on."""
    from experiments.run.data import load_task

    return load_task(sweep_configs()[0])


def _jax_sweep() -> None:
    """One compilation a depth, the rates as vmap's axis, epochs and batches as scan's; norms of every block and step."""
    import jax

    jax.clear_caches()
    task = digits()
    for depth in DEPTHS:
        sizes = [task.dataset.x.shape[0], *[WIDTH] * (depth - 1), task.units]
        training = jax_training(sizes, task.dataset.x, task.dataset.y, BATCH, SWEEP_EPOCHS)
        jax.block_until_ready(jax.jit(jax.vmap(training))(np.float32(RATES)))


def _torch_sweep() -> None:
    task = digits()
    x, y = task.dataset.x.astype(np.float32), task.dataset.y
    for depth in DEPTHS:
        for _ in RATES:
            torch_loop([x.shape[0], *[WIDTH] * (depth - 1), task.units], x, y, BATCH, norms=True, epochs=SWEEP_EPOCHS)()


def _sklearn_sweep() -> None:
    from joblib import Parallel, delayed

    task = digits()
    X, y = task.dataset.x.T.astype(np.float32), task.dataset.y
    Parallel(n_jobs=2)(delayed(_sklearn_fit)(X, y, depth, float(rate)) for depth in DEPTHS for rate in RATES)


def _sklearn_fit(X: Array, y: Array, depth: int, rate: float) -> None:
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        (WIDTH,) * (depth - 1),
        solver="sgd",
        momentum=0,
        alpha=0,
        batch_size=BATCH,
        learning_rate_init=rate,
        max_iter=SWEEP_EPOCHS,
        tol=0,
        n_iter_no_change=SWEEP_EPOCHS,
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.suppress(ValueError):
        # A training that diverges ends with a ValueError.
        warnings.simplefilter("ignore")
        model.fit(X, y)
