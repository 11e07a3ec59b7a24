"""scikit-learn's MLP as a reference: what it begins with, in which order it takes the examples, its Adam, its curves."""

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


class Recording(MLPClassifier):
    """Keeps the weights it begins with and the state of its generator just before the first epoch's shuffle.

    initial: (W, b) of each block, in this engine's shapes.
    """

    def _fit_stochastic(self, *arguments: Any) -> Any:
        self.initial = [(W.T.copy(), b[:, None].copy()) for W, b in zip(self.coefs_, self.intercepts_, strict=True)]
        self.before_shuffles = self._random_state.get_state()
        return super()._fit_stochastic(*arguments)

    def orders(self, m: int) -> Iterator[Array]:
        """The order of m examples in each of its epochs, see `blocks.reshuffled`."""
        random_state = check_random_state(0)
        random_state.set_state(self.before_shuffles)
        order = np.arange(m)
        while True:
            order = shuffle(order, random_state=random_state)
            yield order


class ReorderedAdam(Adam):
    """Adam as scikit-learn computes it, theta := theta - alpha_t m / (sqrt(v) + epsilon): the order that Kingma and Ba 2015
    give at the end of section 2, in which epsilon is divided by sqrt(1 - beta_2^t). Units that are dead but for the penalty
    move otherwise.
    """

    def _epsilon(self, t: int) -> Array:
        return self.epsilon / np.sqrt(1 - self.beta_2**t)


def trained_as_theirs(name: str, rule: Callable[[float], Optimizer], options: dict) -> tuple[float, float]:
    """Final training score and loss of a network trained as scikit-learn's `plot_mlp_training_curves` trains its own.

    name: iris or digits. rule: weight decay -> the update. options: of their MLPClassifier.
    """
    X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    X = MinMaxScaler().fit_transform(X)
    m, alpha = len(X), 1e-4
    rate = 0.01 if options["solver"] == "adam" else 0.2
    theirs = Recording(learning_rate_init=rate, max_iter=15 if name == "digits" else 400, random_state=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(X, y)
    network = Network.create([X.shape[1], 100, len(np.unique(y))], "relu", "zeros", rng=np.random.default_rng(0))
    for block, (W, b) in zip(network.blocks, theirs.initial, strict=True):
        block.W[...], block.b[...] = W, b

    squares: list[float] = [sum(float((block.W**2).sum()) for block in network.blocks)]
    batch_size = min(200, m)
    history = train(
        network,
        X.T,
        y,
        loss=losses.softmax_cross_entropy,
        optimizer=rule(alpha / batch_size),
        epochs=theirs.n_iter_,
        batch_size=batch_size,
        orders=theirs.orders(m),
        evaluations=2,
        watch=lambda step, history: squares.append(sum(float((block.W**2).sum()) for block in network.blocks)),
    )
    penalty = alpha / (2 * batch_size) * squares[-2]
    return float(history.measures["accuracy/train"][-1]), float(history.epoch_loss()[-1] + penalty)
