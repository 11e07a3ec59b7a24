"""The same training in JAX, PyTorch and scikit-learn, each as its users write it."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from blocks.arrays import Array


def jax_training(sizes: list[int], x: Array, y: Array, batch: int, epochs: int) -> Callable[[Any], Any]:
    """rate -> parameters, (every step's loss, every block's gradient norm): to be compiled, epochs and batches are one scan."""
    import jax
    import jax.numpy as jnp

    X, labels = jnp.asarray(x.T, jnp.float32), jnp.asarray(y)
    full = len(labels) // batch
    orders = np.stack([np.random.default_rng(epoch).permutation(len(labels))[: full * batch] for epoch in range(epochs)])
    batches = jnp.asarray(orders.reshape(-1, batch))
    rng = np.random.default_rng(0)
    start = [
        (jnp.asarray(rng.normal(0, np.sqrt(2 / n_prev), (n_prev, n)), jnp.float32), jnp.zeros(n, jnp.float32))
        for n_prev, n in pairwise(sizes)
    ]

    def loss(parameters: Any, rows: Any) -> Any:
        a = X[rows]
        for W, b in parameters[:-1]:
            a = jax.nn.relu(a @ W + b)
        W, b = parameters[-1]
        logits = jax.nn.log_softmax(a @ W + b)
        return -jnp.mean(jnp.take_along_axis(logits, labels[rows][:, None], axis=1))

    def training(rate: Any) -> Any:
        def cycle(parameters: Any, rows: Any) -> Any:
            value, gradients = jax.value_and_grad(loss)(parameters, rows)
            norms = jnp.stack([jnp.sqrt(jnp.sum(dW**2)) for dW, _ in gradients])
            parameters = [(W - rate * dW, b - rate * db) for (W, b), (dW, db) in zip(parameters, gradients, strict=True)]
            return parameters, (value, norms)

        return jax.lax.scan(cycle, start, batches)

    return training


def torch_loop(
    sizes: list[int], x: Array, y: Array, batch: int, norms: bool, epochs: int, threads: int = 1
) -> Callable[[], None]:
    """Epochs of PyTorch's eager loop."""
    import torch

    layers: list[torch.nn.Module] = []
    for n_prev, n in pairwise(sizes):
        layers += [torch.nn.Linear(n_prev, n), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    rule = torch.optim.SGD(model.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss()
    X, labels = torch.from_numpy(x.T.copy()), torch.from_numpy(y)

    def run() -> None:
        torch.set_num_threads(threads)
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


def scikit_learn(sizes: list[int], x: Array, y: Array, batch: int, epochs: int) -> Callable[[], None]:
    """Epochs of scikit-learn's MLPClassifier."""
    from sklearn.neural_network import MLPClassifier

    X = x.T.copy()
    model = MLPClassifier(
        tuple(sizes[1:-1]),
        solver="sgd",
        momentum=0,
        alpha=0,
        batch_size=batch,
        learning_rate_init=1e-3,
        max_iter=epochs,
        # It would stop once the loss stands still.
        n_iter_no_change=10**9,
        warm_start=True,
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, y)

    return run
