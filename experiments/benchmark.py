"""python -m experiments.benchmark [NAME ...]: what this machine takes for the laboratory's work, beside its peers.

Every comparison alternates its contestants in one process and prints medians, and the median of the ratios with its
quartiles: a machine that is busy slows all of them. Needs the extra `benchmark`.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from blocks import GradientDescent, Network, losses, reshuffled, train
from blocks.arrays import Array, transpose
from experiments.record.identity import environment

ROUNDS = 15
EPOCHS, BATCHES = 5, 22
CLASSES = 10


def alternate(contestants: dict[str, Callable[[], None]], per: float, rounds: int = ROUNDS) -> dict[str, Array]:
    """name -> seconds of each round over `per`, the contestants taking turns; the first turn warms up and is not kept."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn:
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


def _torch(sizes: list[int], x: Array, y: Array, batch: int, norms: bool) -> Callable[[], None]:
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
        for _ in range(EPOCHS):
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


BENCHMARKS = {"step": step}


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
