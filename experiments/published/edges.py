"""The edge of stability of every rule: full-batch training raises the preconditioned sharpness to it."""

from collections.abc import Iterator

import numpy as np

from blocks import Adam, Instrument, Momentum, Nesterov, Network, Optimizer, RMSProp, train
from experiments.published.row import Row

COHEN_2021 = "Cohen et al. 2021"
COHEN_2022 = "Cohen et al. 2022"


def edges_of_stability() -> Iterator[Row]:
    """lambda_1(P^-1 H) in the second half of 1500 updates of momentum, Nesterov's momentum, Adam and RMSProp."""
    rules: dict[str, tuple[Optimizer, float, str]] = {
        "momentum 0.9, lr 0.5: (2 + 2 beta) / lr": (Momentum(0.5, 0.9), 3.8 / 0.5, COHEN_2021),
        "Nesterov 0.9, lr 0.2: (2 + 2 beta) / ((1 + 2 beta) lr)": (Nesterov(0.2, 0.9), 3.8 / (2.8 * 0.2), COHEN_2021),
        "Adam, lr 0.01: 38 / lr": (Adam(0.01), 38 / 0.01, COHEN_2022),
        "RMSProp 0.99, lr 0.0003: 2 / lr": (RMSProp(0.0003, 0.99), 2 / 0.0003, COHEN_2022),
    }
    for name, (rule, edge, source) in rules.items():
        yield Row(f"digits, {name}: preconditioned sharpness", source, edge, _median_sharpness(rule), 0.1 * edge)


def _median_sharpness(rule: Optimizer) -> float:
    """Return the median preconditioned sharpness in the second half of a training.

    The network has tanh and 2 hidden blocks of 32 units; the loss is the squared error on digits.
    """
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    X, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = np.ascontiguousarray(StandardScaler().fit_transform(X).T)
    network = Network.create([64, 32, 32, 10], "tanh", "lecun", rng=np.random.default_rng(0))
    instruments = [Instrument("preconditioned_sharpness", "50")]
    history = train(
        network, x, labels, loss="one_hot_squared_error", optimizer=rule, epochs=1500, evaluations=0, instruments=instruments
    )
    values = history.quantities["preconditioned_sharpness"].values[:, 0]
    return float(np.nanmedian(values[len(values) // 2 :]))
