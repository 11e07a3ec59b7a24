"""Warm-up: with it a sharp initial network trains at 32 / lambda_0; after it the sharpness is at the edge of stability."""

from collections.abc import Iterator

import numpy as np

from blocks import GradientDescent, History, Instrument, Network, train
from blocks.arrays import Array
from blocks.schedules import rate_schedule
from experiments.published.row import Row

KALRA = "Kalra and Barkeshli 2024"
COHEN = "Cohen et al. 2021"


def warm_up() -> Iterator[Row]:
    """Full-batch gradient descent on digits, with tanh, sharp initial weights, 1024 updates of warm-up and 256 more.

    At 32 / lambda_0, near the largest rate that trains, the sharpness is here 1.18 times 2 / rate. No published value exists.
    """
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    first_factor = rate_schedule("constant", 1024, 1280)(0)
    yield Row("warm-up of 1024 updates: rate of the first, in target rates", KALRA, 1 / 1024, first_factor, 0)
    X, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = np.ascontiguousarray(StandardScaler().fit_transform(X).T)
    initial_network = Network.create([64, 32, 32, 32, 10], "tanh", "he", rng=np.random.default_rng(0), gain=2.0, dtype=np.float32)

    def train_network(network: Network, rates: Array, epochs: int, warmup: int) -> History:
        return train(
            network,
            x,
            labels,
            loss="one_hot_squared_error",
            optimizer=GradientDescent(rates),
            epochs=epochs,
            warmup=warmup,
            evaluations=0,
            instruments=[Instrument("sharpness", "32")],
        )

    network_copy = initial_network.with_parameters(initial_network.parameters.copy())
    lambda_0 = train_network(network_copy, np.array(1e-9), 1, 0).quantities["sharpness"].values.item()
    multiples = np.array([8.0, 16.0, 32.0])
    history = train_network(
        initial_network.with_parameters(np.stack([initial_network.parameters] * 3)), multiples / lambda_0, 1280, 1024
    )
    quantity = history.quantities["sharpness"]
    for lane, multiple in enumerate(multiples):
        setting = f"digits, {multiple:g} / lambda_0, warm-up of 1024 updates"
        if multiple == 32:
            yield Row(f"{setting}: diverges", KALRA, 0, float(history.diverged_step[lane] >= 0), 0)
        else:
            edge_ratios = quantity.values[lane, quantity.at >= 1024, 0] * multiple / lambda_0
            yield Row(f"{setting}: sharpness times rate", COHEN, 2, float(np.nanmedian(edge_ratios)), 0.2)
