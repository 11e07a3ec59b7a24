"""The lanes of a network that are still trained. Lanes that diverge are removed, and the others keep their bits."""

import numpy as np

from blocks.arrays import Array
from blocks.evaluation import evaluate
from blocks.losses import Loss
from blocks.network import Network
from blocks.optimizers import Optimizer
from blocks.workspace import Examples, Workspaces


class Lanes:
    """The lanes of a training. Here they are counted along one axis, whatever their shape.

    x: (n_0, m) the training data. weights: (m,) of its examples, None where all have the same weight.

    shape: of all lanes. full_network: the network of all lanes. live: (lanes,) the numbers of the lanes that are still trained.
    index: selects these in arrays of all lanes. network, optimizer, state, workspaces: of the lanes that are still trained.
    """

    def __init__(self, network: Network, optimizer: Optimizer, loss: Loss, x: Array, weights: Array | None) -> None:
        self.shape = network.lanes
        self.live = np.arange(int(np.prod(self.shape)))
        self.index: slice | Array = slice(None)
        if len(self.shape) > 1:
            network = network.with_parameters(network.parameters.reshape(self.live.size, -1))
            optimizer = optimizer.take(self.live, self.shape)
        self.full_network, self.loss, self.x, self.weights = network, loss, x, weights
        self.has_own_batches = False
        self._set_network(network, optimizer)
        self.state = optimizer.start(network)

    def _set_network(self, network: Network, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.workspaces = Workspaces(network, self.loss, self.weights, self.has_own_batches)
        self.evaluation_network = network.with_statistics(self.x)

    def give_own_batches(self) -> None:
        """Give every lane its own batch from now on."""
        self.has_own_batches = self.workspaces.has_own_batches = True

    def keep(self, mask: Array) -> None:
        """Remove lanes. mask: (lanes,) True for the lanes, of those that are still trained, that go on."""
        self.write_back()
        self.live = self.index = self.live[mask]
        if self.live.size:
            previous, numbers = self.network, np.flatnonzero(mask)
            parameters = previous.parameters.reshape(-1, previous.layout.size)[numbers]
            self._set_network(previous.with_parameters(parameters), self.optimizer.take(numbers, previous.lanes))
            self.state = self.state.take(numbers)

    def write_back(self) -> None:
        """Write the parameters of the lanes that are still trained into the network of all lanes."""
        if self.network is not self.full_network and self.live.size:
            self.full_network.parameters.reshape(-1, self.full_network.layout.size)[self.live] = self.network.parameters

    def evaluate(self, examples: Examples, batch_size: int) -> tuple[Array, Array]:
        """Return what `evaluate` does. Batch normalisation uses the statistics of all training examples."""
        if self.evaluation_network is not self.network:
            self.evaluation_network.parameters[...] = self.network.with_statistics(self.x).parameters
        return evaluate(self.evaluation_network, self.workspaces, examples, batch_size)
