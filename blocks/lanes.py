"""The lanes of a network that are still trained: those that diverge leave, and the others keep their very bits."""

import numpy as np

from blocks.arrays import Array
from blocks.evaluation import evaluate
from blocks.losses import Loss
from blocks.network import Network
from blocks.optimizers import Optimizer
from blocks.workspace import Examples, Workspaces


class Lanes:
    """Lanes are counted along one axis, whatever their shape.

    x: (n_0, m) the training data. weights: (m,) of its examples, None where all count alike.

    shape: of all lanes. whole: the network of all of them. live: (lanes,) the numbers of those that are left.
    place: these in arrays of all lanes. network, optimizer, state, workspaces: of the lanes that are left.
    """

    def __init__(self, network: Network, optimizer: Optimizer, loss: Loss, x: Array, weights: Array | None) -> None:
        self.shape = network.lanes
        self.live = np.arange(int(np.prod(self.shape)))
        self.place: slice | Array = slice(None)
        if len(self.shape) > 1:
            network = network.with_parameters(network.parameters.reshape(self.live.size, -1))
            optimizer = optimizer.take(self.live, self.shape)
        self.whole, self.loss, self.x, self.weights = network, loss, x, weights
        self.has_own_batches = False
        self._occupy(network, optimizer)
        self.state = optimizer.start(network)

    def _occupy(self, network: Network, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.workspaces = Workspaces(network, self.loss, self.weights, self.has_own_batches)
        # What is evaluated.
        self.predicting = network.with_statistics(self.x)

    def give_own_batches(self) -> None:
        """From now on every lane has a batch of its own."""
        self.has_own_batches = self.workspaces.has_own_batches = True

    def leave(self, stays: Array) -> None:
        """Lanes leave. stays: (lanes,) whether each of those that are left goes on."""
        self.write_back()
        self.live = self.place = self.live[stays]
        if self.live.size:
            before, numbers = self.network, np.flatnonzero(stays)
            parameters = before.parameters.reshape(-1, before.layout.size)[numbers]
            self._occupy(before.with_parameters(parameters), self.optimizer.take(numbers, before.lanes))
            self.state = self.state.take(numbers)

    def write_back(self) -> None:
        """Put the parameters of the lanes that are left back into the network of all of them."""
        if self.network is not self.whole and self.live.size:
            self.whole.parameters.reshape(-1, self.whole.layout.size)[self.live] = self.network.parameters

    def evaluate(self, examples: Examples, batch_size: int) -> tuple[Array, Array]:
        """See `evaluate`; what mixes examples has the statistics of all training examples, see `Network.with_statistics`."""
        if self.predicting is not self.network:
            self.predicting.parameters[...] = self.network.with_statistics(self.x).parameters
        return evaluate(self.predicting, self.workspaces, examples, batch_size)
