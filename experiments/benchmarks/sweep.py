"""Training alone of a depth x learning-rate grid, beside JAX, PyTorch and scikit-learn."""

import contextlib
import warnings

import numpy as np

from blocks import GradientDescent, History, Network, reshuffled, train
from blocks.arrays import Array
from experiments.benchmarks.peers import jax_training, torch_loop
from experiments.benchmarks.tables import alternate, table
from experiments.run.config import Config, DatasetConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from experiments.run.data import Task

SWEEP_ROUNDS = 3
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
    from experiments.run.data import task
    from experiments.run.pool import Pool, cores
    from experiments.run.stack import plan

    configs = sweep_configs()
    tasks = [task(config) for config in configs]
    items = [([configs[k] for k in stack], tasks[stack[0]], evaluations) for stack in plan(configs, tasks)]
    with Pool(_ours_stack, items, cores()) as pool:
        histories = [history for _, history in pool.results(lambda: None, 1.0)]
    assert sum(len(history.loss) for history in histories) == len(configs)


def _ours_stack(configs: list[Config], of: Task, evaluations: int) -> History:
    """The training; the peers do not measure the whole sets."""
    from experiments.run.stack import sizes

    network = Network.create(sizes(configs[0], of), rng=np.random.default_rng(1), dtype=np.float32, lanes=len(configs))
    return train(
        network,
        of.dataset.x,
        of.dataset.y,
        loss=of.loss,
        optimizer=GradientDescent(np.array([config.optimizer.learning_rate for config in configs])),
        epochs=SWEEP_EPOCHS,
        batch_size=BATCH,
        orders=reshuffled(np.random.default_rng(2), of.dataset.x.shape[-1]),
        evaluations=evaluations,
        validation=(of.dataset.x_validation, of.dataset.y_validation),
        loss_bound=configs[0].training.loss_bound,
    )


def digits() -> Task:
    """The data set that is trained on."""
    from experiments.run.data import task

    return task(sweep_configs()[0])


def _jax_sweep() -> None:
    """One compilation a depth, the rates as vmap's axis, epochs and batches as scan's; norms of every block and step."""
    import jax

    jax.clear_caches()
    of = digits()
    for depth in DEPTHS:
        sizes = [of.dataset.x.shape[0], *[WIDTH] * (depth - 1), of.units]
        training = jax_training(sizes, of.dataset.x, of.dataset.y, BATCH, SWEEP_EPOCHS)
        jax.block_until_ready(jax.jit(jax.vmap(training))(np.float32(RATES)))


def _torch_sweep() -> None:
    of = digits()
    x, y = of.dataset.x.astype(np.float32), of.dataset.y
    for depth in DEPTHS:
        for _ in RATES:
            torch_loop([x.shape[0], *[WIDTH] * (depth - 1), of.units], x, y, BATCH, norms=True, epochs=SWEEP_EPOCHS)()


def _sklearn_sweep() -> None:
    from joblib import Parallel, delayed

    of = digits()
    X, y = of.dataset.x.T.astype(np.float32), of.dataset.y
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
