"""The best learning rate by the size of a network, and by the strength of feature learning, on digits."""

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
    """With mup the best rate of Adam is the same at every width and depth, here within a factor of 2."""
    width_rates = [_best_adam_rate(width, 4) for width in (32, 64, 128, 256)]
    yield Row(
        "digits, mup, widths 32 to 256: best rate, largest over smallest", YANG_2022, 1, max(width_rates) / min(width_rates), 1
    )
    depth_rates = [_best_adam_rate(32, depth) for depth in (2, 4, 8, 16, 32, 64)]
    yield Row(
        "digits, mup, depths 2 to 64: best rate, largest over smallest", BORDELON, 1, max(depth_rates) / min(depth_rates), 1
    )


def _best_adam_rate(width: int, depth: int) -> float:
    """Return the rate of the smallest loss in the third epoch, for residual blocks and batches of 64.

    The loss is the geometric mean over 3 seeds.
    """
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
    # Each lane is a pair of a seed and a rate.
    network = network.with_parameters(np.repeat(network.parameters, len(rates), axis=0))
    factors = rate_factors(network.layout, "residual", Adam.scale_free, "mup")
    optimizer, orders = Adam(np.tile(rates, seeds)[:, None] * factors), reshuffled(np.random.default_rng(1), len(labels))
    history = train(
        network,
        x,
        labels,
        loss="softmax_cross_entropy",
        optimizer=optimizer,
        epochs=3,
        batch_size=64,
        orders=orders,
        evaluations=0,
    )
    losses = np.log(history.epoch_loss()[:, -1]).reshape(seeds, -1).mean(axis=0)
    return best_rate(rates, np.exp(losses))


def feature_learning() -> Iterator[Row]:
    """Outputs are divided by gamma: the best rate is proportional to gamma^2 for small gamma, to gamma^(2/L) for large gamma."""
    for depth in (2, 3, 4):
        for word, gammas, exponent in (("small", (1e-4, 1e-3, 1e-2), 2.0), ("large", (1e1, 1e2, 1e3), 2 / depth)):
            best_rates = [_best_descent_rate(depth, gamma, gamma**exponent) for gamma in gammas]
            ours = float(np.polyfit(np.log(gammas), np.log(best_rates), 1)[0])
            yield Row(f"digits, depth {depth}, {word} gamma: exponent of the best rate", ATANASOV, exponent, ours, 0.15)


def _best_descent_rate(depth: int, gamma: float, predicted_rate: float) -> float:
    """Return the rate of the smallest loss in the fifth epoch, with batches of 64.

    The rates are 10^(k / 6), about from predicted_rate / 300 to 10 predicted_rate.
    """
    x, labels = _digits()
    rates = 10.0 ** (np.arange(*np.round(6 * np.log10(predicted_rate) + np.array([-15, 7]))) / 6)
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
    """Return x (64, 1797), standardised, and the labels (1797,)."""
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    X, labels = sklearn.datasets.load_digits(return_X_y=True)
    return np.ascontiguousarray(StandardScaler().fit_transform(X).T, dtype=np.float32), labels
