"""One update of a network, beside its bare products, PyTorch and scikit-learn."""

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from blocks import GradientDescent, Network, losses, reshuffled, train
from blocks.arrays import Array, transpose
from experiments.benchmarks.tables import alternate, table

EPOCHS, BATCHES = 5, 22
CLASSES = 10


def step(depth: int = 9, width: int = 64, batch: int = 64, inputs: int = 64) -> None:
    """One update, every block's gradient norms included, beside bare products, PyTorch's eager loop and scikit-learn."""
    sizes = [inputs, *[width] * (depth - 1), CLASSES]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((inputs, BATCHES * batch)).astype(np.float32)
    y = rng.integers(0, CLASSES, BATCHES * batch)
    contestants = {
        "ours, with norms": _ours(sizes, x, y, batch),
        "bare np.matmul": _bare(sizes, batch, EPOCHS * BATCHES),
        "PyTorch eager, with norms": torch_loop(sizes, x, y, batch, norms=True),
        "PyTorch eager, without norms": torch_loop(sizes, x, y, batch, norms=False),
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


def torch_loop(sizes: list[int], x: Array, y: Array, batch: int, norms: bool, epochs: int = EPOCHS) -> Callable[[], None]:
    """Epochs of PyTorch's eager loop, on one thread."""
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
