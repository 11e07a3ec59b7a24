"""scikit-learn's MLP as a reference: what it begins with, in which order it takes the examples, and its Adam."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.utils import check_random_state, shuffle

from blocks import Adam
from blocks.arrays import Array
from blocks.optimizers import State


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

    def _step(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        own = Adam(self.learning_rate, epsilon=self.epsilon / np.sqrt(1 - self.beta_2**state.updates))
        own._step(parameters, gradient, state, alpha)
