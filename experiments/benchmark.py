"""python -m experiments.benchmark [NAME ...]: what this machine takes for the laboratory's work, beside its peers.

Every comparison alternates its contestants in one process and prints medians, and the median of the ratios with its
quartiles: a machine that is busy slows all of them. Needs the extra `benchmark`.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from blocks import GradientDescent, History, Network, losses, reshuffled, train
from blocks.arrays import Array, transpose
from experiments.record.identity import environment
from experiments.run.config import Config, DatasetConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from experiments.run.data import Task

ROUNDS, SWEEP_ROUNDS = 15, 3
EPOCHS, BATCHES = 5, 22
CLASSES = 10


def alternate(
    contestants: dict[str, Callable[[], None]], per: float, rounds: int = ROUNDS, warm_up: bool = True
) -> dict[str, Array]:
    """name -> seconds of each round over `per`, the contestants taking turns; a first turn that warms up is not kept."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + warm_up):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - start) / per)
    return {name: np.array(seconds) for name, seconds in times.items()}


def table(title: str, times: dict[str, Array], unit: str, scale: float) -> None:
    """Medians, and each contestant's time over the first one's: median of the ratios, quartiles."""
    ours = next(iter(times.values()))
    print(f"\n{title}")
    for name, seconds in times.items():
        low, ratio, high = np.quantile(seconds / ours, [0.25, 0.5, 0.75])
        print(f"  {name:<38}{np.median(seconds) * scale:>10.1f} {unit}   {ratio:6.2f} x ours  ({low:.2f} to {high:.2f})")


def step(depth: int = 9, width: int = 64, batch: int = 64, inputs: int = 64) -> None:
    """One update, every block's gradient norms included, beside bare products, PyTorch's eager loop and scikit-learn."""
    sizes = [inputs, *[width] * (depth - 1), CLASSES]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((inputs, BATCHES * batch)).astype(np.float32)
    y = rng.integers(0, CLASSES, BATCHES * batch)
    contestants = {
        "ours, with norms": _ours(sizes, x, y, batch),
        "bare np.matmul": _bare(sizes, batch, EPOCHS * BATCHES),
        "PyTorch eager, with norms": _torch(sizes, x, y, batch, norms=True),
        "PyTorch eager, without norms": _torch(sizes, x, y, batch, norms=False),
        "scikit-learn, without norms": _sklearn(sizes, x, y, batch),
    }
    times = alternate(contestants, EPOCHS * BATCHES)
    table(f"a step of {depth} blocks x {width}, batch {batch}, float32, relu, one thread", times, "us", 1e6)
    ours = times["ours, with norms"]
    print(f"  ours over the bare products: {np.median(ours / times['bare np.matmul']):.2f}")


def _ours(sizes: list[int], x: Array, y: Array, batch: int) -> Callable[[], None]:
    network = Network.create(sizes, rng=np.random.default_rng(1), dtype=np.float32)
    orders = reshuffled(np.random.default_rng(2), x.shape[1])
    rule = GradientDescent(1e-3)

    def run() -> None:
        train(
            network,
            x,
            y,
            loss=losses.softmax_cross_entropy,
            optimizer=rule,
            epochs=EPOCHS,
            batch_size=batch,
            orders=orders,
            evaluations=0,
        )

    return run


def _bare(sizes: list[int], batch: int, repeats: int) -> Callable[[], None]:
    """The products no step can do without: W a_prev, dz a_prev^T and, above block 1, W^T dz."""
    rng = np.random.default_rng(3)

    def matrix(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    products = []
    for index, (n_prev, n) in enumerate(pairwise(sizes)):
        W, a_prev, z = matrix(n, n_prev), matrix(n_prev, batch), matrix(n, batch)
        products += [(W, a_prev, z.copy()), (z, transpose(a_prev), W.copy())]
        if index:
            products.append((transpose(W), z, a_prev.copy()))

    def run() -> None:
        for _ in range(repeats):
            for left, right, out in products:
                np.matmul(left, right, out=out)

    return run


def _torch(sizes: list[int], x: Array, y: Array, batch: int, norms: bool, epochs: int = EPOCHS) -> Callable[[], None]:
    import torch

    torch.set_num_threads(1)
    layers: list[torch.nn.Module] = []
    for n_prev, n in pairwise(sizes):
        layers += [torch.nn.Linear(n_prev, n), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    rule = torch.optim.SGD(model.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss()
    X, labels = torch.from_numpy(x.T.copy()), torch.from_numpy(y)

    def run() -> None:
        history, steps = [], []
        for _ in range(epochs):
            order = torch.randperm(len(X))
            for start in range(0, len(X), batch):
                rows = order[start : start + batch]
                rule.zero_grad()
                loss = criterion(model(X[rows]), labels[rows])
                loss.backward()
                if norms:
                    steps.append(torch.stack(torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])))
                history.append(loss.item())
                rule.step()

    return run


def _sklearn(sizes: list[int], x: Array, y: Array, batch: int) -> Callable[[], None]:
    from sklearn.neural_network import MLPClassifier

    X = x.T.copy()
    model = MLPClassifier(
        tuple(sizes[1:-1]),
        solver="sgd",
        momentum=0,
        alpha=0,
        batch_size=batch,
        learning_rate_init=1e-3,
        max_iter=EPOCHS,
        warm_start=True,
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, y)

    return run


DEPTHS, RATES, SWEEP_EPOCHS, WIDTH, BATCH = (2, 3, 5, 9, 17, 33), np.geomspace(1e-3, 1, 16), 20, 64, 64


def sweep() -> None:
    """Training alone of depths 2 to 33 x 16 rates on digits, 460 updates each: ours in stacks on all cores, beside JAX's
    jit(vmap(scan)) over the rates with compilation, a PyTorch loop, scikit-learn under joblib.
    """
    contestants = {
        "ours, with norms": _ours_sweep,
        "JAX jit(vmap(scan)), with norms": _jax_sweep,
        "scikit-learn, joblib, without norms": _sklearn_sweep,
        "PyTorch loop, with norms": _torch_sweep,
    }
    times = alternate(contestants, 1, rounds=SWEEP_ROUNDS, warm_up=False)
    table(f"a sweep of {len(DEPTHS)} depths x {len(RATES)} rates on digits, float32, relu", times, "s ", 1)


def _sweep_configs() -> list[Config]:
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


def _ours_sweep() -> None:
    """A new pool of processes, all stacks, every history fetched."""
    from experiments.run.data import task
    from experiments.run.pool import Pool, cores
    from experiments.run.stack import plan

    configs = _sweep_configs()
    tasks = [task(config) for config in configs]
    items = [([configs[k] for k in stack], tasks[stack[0]]) for stack in plan(configs, tasks)]
    with Pool(_ours_stack, items, cores()) as pool:
        histories = [history for _, history in pool.results(lambda: None, 1.0)]
    assert sum(len(history.loss) for history in histories) == len(configs)


def _ours_stack(configs: list[Config], of: Task) -> History:
    """The training alone, as the peers have it: the whole sets are not measured."""
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
        evaluations=0,
        loss_bound=configs[0].training.loss_bound,
    )


def _digits() -> Task:
    from experiments.run.data import task

    return task(_sweep_configs()[0])


def _jax_sweep() -> None:
    """One compilation a depth, the rates as vmap's axis, epochs and batches as scan's; norms of every block and step."""
    import jax
    import jax.numpy as jnp

    jax.clear_caches()
    of = _digits()
    x, y = jnp.asarray(of.dataset.x.T, jnp.float32), jnp.asarray(of.dataset.y)
    full = len(y) // BATCH
    orders = np.stack([np.random.default_rng(epoch).permutation(len(y))[: full * BATCH] for epoch in range(SWEEP_EPOCHS)])
    batches = jnp.asarray(orders.reshape(-1, BATCH))
    for depth in DEPTHS:
        sizes = [x.shape[1], *[WIDTH] * (depth - 1), of.units]
        rng = np.random.default_rng(depth)
        start = [
            (jnp.asarray(rng.normal(0, np.sqrt(2 / n_prev), (n_prev, n)), jnp.float32), jnp.zeros(n, jnp.float32))
            for n_prev, n in pairwise(sizes)
        ]

        def loss(parameters: Any, rows: Any) -> Any:
            a = x[rows]
            for W, b in parameters[:-1]:
                a = jax.nn.relu(a @ W + b)
            W, b = parameters[-1]
            logits = jax.nn.log_softmax(a @ W + b)
            return -jnp.mean(jnp.take_along_axis(logits, y[rows][:, None], axis=1))

        def run(rate: Any, start: Any = start, loss: Any = loss) -> Any:
            def cycle(parameters: Any, rows: Any) -> Any:
                value, gradients = jax.value_and_grad(loss)(parameters, rows)
                norms = jnp.stack([jnp.sqrt(jnp.sum(dW**2)) for dW, _ in gradients])
                parameters = [(W - rate * dW, b - rate * db) for (W, b), (dW, db) in zip(parameters, gradients, strict=True)]
                return parameters, (value, norms)

            return jax.lax.scan(cycle, start, batches)

        jax.block_until_ready(jax.jit(jax.vmap(run))(jnp.asarray(RATES, jnp.float32)))


def _torch_sweep() -> None:
    of = _digits()
    x, y = of.dataset.x.astype(np.float32), of.dataset.y
    for depth in DEPTHS:
        for _ in RATES:
            _torch([x.shape[0], *[WIDTH] * (depth - 1), of.units], x, y, BATCH, norms=True, epochs=SWEEP_EPOCHS)()


def _sklearn_sweep() -> None:
    from joblib import Parallel, delayed

    of = _digits()
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


def end_to_end() -> None:
    """The command itself into a new store, with and without tracking, beside the usual script, process start included."""
    rates = ",".join(f"{rate:.4g}" for rate in RATES)
    command = [sys.executable, "-m", "experiments.train", "-m", f"network.depth={','.join(map(str, DEPTHS))}"]
    runs = len(DEPTHS) * len(RATES)

    def ours(*more: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            uri = f"tracking.uri=sqlite:///{folder}/runs.db"
            subprocess.run(
                [*command, f"optimizer.learning_rate={rates}", uri, *more], cwd=folder, check=True, capture_output=True
            )

    def usual() -> None:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script.py"
            script.write_text(USUAL)
            # One rate of each depth: its time a run is what counts.
            axes = [f"depth={','.join(map(str, DEPTHS))}", f"rate={RATES[8]}", f"epochs={SWEEP_EPOCHS}"]
            environ = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
            subprocess.run([sys.executable, script, "-m", *axes], cwd=folder, env=environ, check=True, capture_output=True)

    times = alternate({"ours": ours, "ours, tracking off": lambda: ours("tracking.enabled=false"), "usual": usual}, 1, 3, False)
    of_usual = times["usual"] / len(DEPTHS)
    print(f"\nend to end, {runs} runs of {SWEEP_EPOCHS} epochs into a new SQLite store, process start included")
    print(f"  ours                     {np.median(times['ours']) / runs:8.3f} s a run")
    print(
        f"  PyTorch + Hydra + MLflow {np.median(of_usual):8.3f} s a run   {np.median(of_usual * runs / times['ours']):.1f} x ours"
    )
    share = 1 - times["ours, tracking off"] / times["ours"]
    print(f"  tracking takes {100 * np.median(share):.0f} % of the sweep's time")


# What a reader of the three tutorials writes.
USUAL = """
import hydra, mlflow, torch
from hydra.core.config_store import ConfigStore
from dataclasses import dataclass
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

@dataclass
class Config:
    depth: int = 3
    width: int = 64
    rate: float = 0.1
    epochs: int = 20
    batch_size: int = 64

ConfigStore.instance().store(name="config", node=Config)

@hydra.main(version_base=None, config_name="config")
def main(cfg):
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    scaler = StandardScaler().fit(X)
    X, X_test = (torch.tensor(scaler.transform(part), dtype=torch.float32) for part in (X, X_test))
    y, y_test = torch.tensor(y), torch.tensor(y_test)
    loader = DataLoader(TensorDataset(X, y), batch_size=cfg.batch_size, shuffle=True)
    layers = [nn.Linear(64, cfg.width), nn.ReLU()]
    for _ in range(cfg.depth - 2):
        layers += [nn.Linear(cfg.width, cfg.width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(cfg.width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.rate)
    criterion = nn.CrossEntropyLoss()
    with mlflow.start_run():
        mlflow.log_params({"depth": cfg.depth, "width": cfg.width, "rate": cfg.rate})
        for epoch in range(cfg.epochs):
            total = 0.0
            for X_batch, y_batch in loader:
                optimizer.zero_grad()
                loss = criterion(model(X_batch), y_batch)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(X_batch)
            norms = {f"grad_norm/{name}": p.grad.norm().item() for name, p in model.named_parameters()}
            with torch.no_grad():
                logits = model(X_test)
                validation = criterion(logits, y_test).item()
                accuracy = (logits.argmax(1) == y_test).float().mean().item()
            metrics = {"loss/train": total / len(X), "loss/validation": validation, "accuracy/validation": accuracy}
            mlflow.log_metrics({**metrics, **norms}, step=epoch)

main()
"""


def scale() -> None:
    """10 to 5,000 runs: seconds a run and the main process's peak memory."""
    print("\nmany runs (depth 2, width 16, 2 epochs of digits) into a new SQLite store")
    for runs in (10, 100, 1000, 5000):
        with tempfile.TemporaryDirectory() as folder:
            rates = ",".join(f"{rate:.6g}" for rate in np.geomspace(1e-3, 1, runs))
            few = ["network.depth=2", "network.width=16", "training.epochs=2", f"tracking.uri=sqlite:///{folder}/runs.db"]
            command = [sys.executable, "-m", "experiments.train", "-m", f"optimizer.learning_rate={rates}", *few]
            start = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            assert os.waitstatus_to_exitcode(status) == 0
            print(f"  {runs:5d} runs  {seconds:7.1f} s  {seconds / runs:.4f} s a run  {usage.ru_maxrss / 1024:.0f} MiB")


BENCHMARKS = {"step": step, "sweep": sweep, "end_to_end": end_to_end, "scale": scale}


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
