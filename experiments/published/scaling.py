"""The best learning rate against the size of a network, and the strength of feature learning, on digits."""

from collections.abc import Iterator

import numpy as np

from blocks import Adam, GradientDescent, Network, rate_factors, reshuffled, train
from blocks.arrays import Array
from experiments.published.row import Row
from experiments.run.measure import best_rate

YANG_2022 = "Yang et al. 2022"
BORDELON = "Bordelon et al. 2023"
ATANASOV = "Atanasov et al. 2024"


def transfer() -> Iterator[Row]:
    """mup: the best rate of Adam is the same at every width and depth, here to a factor of 2."""
    widths = [_best_of_adam(width, 4) for width in (32, 64, 128, 256)]
    yield Row("digits, mup, widths 32 to 256: best rate, largest over smallest", YANG_2022, 1, max(widths) / min(widths), 1)
    depths = [_best_of_adam(32, depth) for depth in (2, 4, 8, 16, 32, 64)]
    yield Row("digits, mup, depths 2 to 64: best rate, largest over smallest", BORDELON, 1, max(depths) / min(depths), 1)


def _best_of_adam(width: int, depth: int) -> float:
    """The rate of the smallest loss in the third epoch of residual blocks, batches of 64, its geometric mean over 3 seeds."""
    x, labels = _digits()
    rates, seeds = 0.002 * 2.0 ** np.arange(6), 3
    network = Network.create(
        [64, *[width] * (depth - 1), 10],
        "relu",
        rng=np.random.default_rng(0),
        dtype=np.float32,
        lanes=seeds,
        kind="residual",
        parametrization="mup",
    )
    # Seeds side by side, each at every rate.
    network = network.with_parameters(np.repeat(network.parameters, len(rates), axis=0))
    factors = rate_factors(network.layout, "residual", Adam.scale_free, "mup")
    rule, orders = Adam(np.tile(rates, seeds)[:, None] * factors), reshuffled(np.random.default_rng(1), len(labels))
    history = train(
        network,
        x,
        labels,
        loss="softmax_cross_entropy",
        optimizer=rule,
        epochs=3,
        batch_size=64,
        orders=orders,
        evaluations=0,
    )
    losses = np.log(history.epoch_loss()[:, -1]).reshape(seeds, -1).mean(axis=0)
    return best_rate(rates, np.exp(losses))


def feature_learning() -> Iterator[Row]:
    """Outputs divided by gamma: the best rate goes as gamma^2 where gamma is small, as gamma^(2/L) where it is large."""
    for depth in (2, 3, 4):
        for word, gammas, exponent in (("small", (1e-4, 1e-3, 1e-2), 2.0), ("large", (1e1, 1e2, 1e3), 2 / depth)):
            best = [_best_of_descent(depth, gamma, gamma**exponent) for gamma in gammas]
            ours = float(np.polyfit(np.log(gammas), np.log(best), 1)[0])
            yield Row(f"digits, depth {depth}, {word} gamma: exponent of the best rate", ATANASOV, exponent, ours, 0.15)


def _best_of_descent(depth: int, gamma: float, about: float) -> float:
    """The rate of the smallest loss in the fifth epoch, batches of 64, of rates 10^(k / 6) from `about` / 300 to 10 `about`."""
    x, labels = _digits()
    rates = 10.0 ** (np.arange(*np.round(6 * np.log10(about) + np.array([-15, 7]))) / 6)
    network = Network.create(
        [64, *[64] * (depth - 1), 10],
        "relu",
        rng=np.random.default_rng(0),
        dtype=np.float32,
        gamma=gamma,
    )
    network = network.with_parameters(np.repeat(network.parameters[None], len(rates), axis=0))
    factors = rate_factors(network.layout, "plain", GradientDescent.scale_free, "standard", gamma)
    history = train(
        network,
        x,
        labels,
        loss="one_hot_squared_error",
        optimizer=GradientDescent(rates[:, None] * factors),
        epochs=5,
        batch_size=64,
        orders=reshuffled(np.random.default_rng(1), len(labels)),
        evaluations=0,
    )
    return best_rate(rates, history.epoch_loss()[:, -1])


def _digits() -> tuple[Array, Array]:
    """x (64, 1797), standardised, and labels."""
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    X, labels = sklearn.datasets.load_digits(return_X_y=True)
    return np.ascontiguousarray(StandardScaler().fit_transform(X).T, dtype=np.float32), labels
