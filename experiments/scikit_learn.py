"""scikit-learn's MLP as a reference: what it begins with, and in which order it takes the examples."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.utils import check_random_state, shuffle

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
