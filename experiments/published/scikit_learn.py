"""scikit-learn's MLP as a reference: its initial weights, its order of examples, its Adam, and its results."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sklearn.datasets
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import check_random_state, shuffle

from blocks import Adam, Network, Optimizer, losses, train
from blocks.arrays import Array


class RecordingMLP(MLPClassifier):
    """An MLPClassifier that stores its initial weights, and its generator's state before the shuffle of the first epoch.

    initial: (W, b) of each block, in this engine's shapes.
    """

    def _fit_stochastic(self, *arguments: Any) -> Any:
        self.initial = [(W.T.copy(), b[:, None].copy()) for W, b in zip(self.coefs_, self.intercepts_, strict=True)]
        self.state_before_shuffles = self._random_state.get_state()
        return super()._fit_stochastic(*arguments)

    def orders(self, m: int) -> Iterator[Array]:
        """Yield the order of the m examples in each of its epochs, see `blocks.reshuffled`."""
        random_state = check_random_state(0)
        random_state.set_state(self.state_before_shuffles)
        order = np.arange(m)
        while True:
            order = shuffle(order, random_state=random_state)
            yield order


class ReorderedAdam(Adam):
    """Adam as scikit-learn computes it: theta := theta - alpha_t m / (sqrt(v) + epsilon).

    Kingma and Ba 2015 give this order at the end of section 2. It is `blocks.Adam` with epsilon divided by sqrt(1 - beta_2^t).
    The two differ in dead units, whose only gradient is the small one of the penalty.
    """

    def _epsilon(self, t: int) -> Array:
        return self.epsilon / np.sqrt(1 - self.beta_2**t)


def train_like_scikit_learn(name: str, create_optimizer: Callable[[float], Optimizer], options: dict) -> tuple[float, float]:
    """Train a network as scikit-learn's `plot_mlp_training_curves` does, and return its final training score and loss.

    name: iris or digits. create_optimizer: takes the weight decay. options: arguments of MLPClassifier.
    """
    X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    X = MinMaxScaler().fit_transform(X)
    m, alpha = len(X), 1e-4
    rate = 0.01 if options["solver"] == "adam" else 0.2
    mlp = RecordingMLP(learning_rate_init=rate, max_iter=15 if name == "digits" else 400, random_state=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlp.fit(X, y)
    network = Network.create([X.shape[1], 100, len(np.unique(y))], "relu", "zeros", rng=np.random.default_rng(0))
    for block, (W, b) in zip(network.blocks, mlp.initial, strict=True):
        block.W[...], block.b[...] = W, b

    squares: list[float] = [sum(float((block.W**2).sum()) for block in network.blocks)]
    batch_size = min(200, m)
    history = train(
        network,
        X.T,
        y,
        loss=losses.softmax_cross_entropy,
        optimizer=create_optimizer(alpha / batch_size),
        epochs=mlp.n_iter_,
        batch_size=batch_size,
        orders=mlp.orders(m),
        evaluations=2,
        watch=lambda step, history: squares.append(sum(float((block.W**2).sum()) for block in network.blocks)),
    )
    penalty = alpha / (2 * batch_size) * squares[-2]
    return float(history.measures["accuracy/train"][-1]), float(history.epoch_loss()[-1] + penalty)
