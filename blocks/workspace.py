"""What a network computes a batch in: recorded once for each size of a batch, and replayed."""

from functools import partial
from typing import NamedTuple

import numpy as np

from blocks.arrays import Array, check_finite, transpose
from blocks.losses import Loss, shares_of
from blocks.network import Network
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay, replay_is_on

# Targets of more numbers than these are encoded batch by batch: those of 10,000 classes would be far larger than the data.
ENCODED_AT_ONCE = 2**24


class Examples(NamedTuple):
    """A whole data set. rows: (m, n_0 + 1) an example a row, and a 1. target: (..., m), or (..., n_L, m) where it is encoded."""

    rows: Array
    target: Array

    @classmethod
    def create(cls, network: Network, loss: Loss, x: Array, y: Array, name: str = "") -> "Examples":
        """The examples of x (n_0, m) and y; raises ValueError where they do not fit. name: of the set, for errors."""
        sizes, dtype = network.layout.sizes, network.parameters.dtype
        x, y = np.asarray(x), np.asarray(y)
        if x.ndim != 2 or x.shape[0] != sizes[0]:
            raise ValueError(f"{name}x has shape {x.shape}, it must be ({sizes[0]}, m)")
        if y.shape[-1:] != x.shape[-1:]:
            raise ValueError(f"{name}y has shape {y.shape}, it must be (..., {x.shape[-1]}), an entry for each column of x")
        check_finite(f"{name}x", x, dtype)
        target = loss.check(y, sizes[-1], dtype)
        if loss.decides is None or target.size * sizes[-1] <= ENCODED_AT_ONCE:
            target = loss.encode(target, sizes[-1], dtype)
        # An example's values side by side: gathering a batch moves whole rows.
        rows = np.empty((x.shape[1], x.shape[0] + 1), dtype)
        rows[:, :-1], rows[:, -1] = x.T, 1
        return cls(rows, target)


class Workspace:
    """What batches of m examples are gathered into, and computed in: recorded once, and replayed.

    rows: (m, n_0 + 1) an example a row, with a 1 behind it: turned, block 1's a_prev_1, so that no batch is copied twice;
        (lanes, m, n_0 + 1) where every lane has a batch of its own.
    gradient: (..., P) where `backward` leaves the gradient.
    value: (...,) the loss. logits: (..., n_L, m).
    norms: (..., 2 L) of all dW and db. squares: their squares, see `Layout.squares`.
    """

    value: Array
    logits: Array
    norms: Array
    squares: Array

    def __init__(
        self,
        network: Network,
        loss: Loss,
        gradient: Array,
        target: Array,
        shape: tuple[int, ...],
        weighted: bool = False,
    ) -> None:
        self.network, self.loss, self.gradient, self.shape = network, loss, gradient, shape
        inputs, units, dtype = network.layout.sizes[0], network.layout.sizes[-1], network.parameters.dtype
        *lanes, m = shape
        self.labels = np.empty((*target.shape[:-1], *shape), target.dtype)
        # (units, lanes, m) -> (lanes, units, m)
        labels = self.labels.swapaxes(0, -2) if lanes else self.labels
        self.encode = partial(loss.encode, labels, units, dtype) if target.dtype != dtype else lambda: labels
        # Every lane's own copy of the labels: broadcasting takes longer, and allocates.
        is_copied = bool(network.lanes) or target.dtype != dtype
        self.target = np.empty((*network.lanes, units, m), dtype) if is_copied else self.labels
        self.shares = np.empty(shape, dtype) if weighted else None
        self.numbers: Array | None = None
        self.replay: Replay | None = None
        if replay_is_on():
            self._record(Tape(), (*lanes, inputs, m))
        else:
            self.rows = np.ones((*shape, inputs + 1), dtype)

    def _record(self, tape: Tape, shape: tuple[int, ...]) -> None:
        x = tape.input(shape, self.gradient.dtype, order=(*range(len(shape) - 2), -1, -2))
        shares = None if self.shares is None else tape.watch(self.shares)
        network = self.network.with_parameters(tape.watch(self.network.parameters))
        self._forward(network, x, tape.watch(self.target), shares)
        tape.stage = 1
        self._backward(network, tape.watch(self.gradient))
        x_1 = self.caches[0].a_prev_1
        results = self.value, self.logits, self.norms, self.squares
        self.replay = Replay(tape, [*results, x_1])
        self.value, self.logits, self.norms, self.squares = map(self.replay.array, results)
        self.rows = transpose(self.replay.array(x_1))
        del self.caches, self.dlogits

    def _forward(self, network: Network, x: Array, target: Array, shares: Array | None) -> None:
        self.logits, self.caches = network.forward(x)
        self.value, self.dlogits = self.loss.value_and_gradient(self.logits, target, shares)

    def _backward(self, network: Network, gradient: Array) -> None:
        gradient[...] = network.gradient(self.dlogits, self.caches)
        self.squares = self.network.layout.squares(gradient)
        self.norms = np.sqrt(self.squares)

    @property
    def x(self) -> Array:
        """(n_0, m) the batch, or one a lane."""
        return transpose(self.rows)[..., :-1, :]

    def forward(self) -> None:
        """Leave value and logits."""
        if self.replay is None:
            self._forward(self.network, self.x, self.target, self.shares)
        else:
            self.replay(0)

    def cycle(self) -> None:
        """Leave the gradient and its norms, too."""
        if self.replay is None:
            self._forward(self.network, self.x, self.target, self.shares)
            self._backward(self.network, self.gradient)
        else:
            self.replay()

    def gather(self, examples: Examples, numbers: Array, weights: Array | None) -> None:
        """Take the examples of these numbers out of a whole set: (m,) for all lanes, or (lanes, m)."""
        if numbers is not self.numbers:
            places = numbers if numbers.shape == self.shape else np.broadcast_to(numbers, self.shape)
            examples.rows.take(places, 0, self.rows, "clip")
            examples.target.take(places, -1, self.labels, "clip")
            if self.target is not self.labels:
                np.copyto(self.target, self.encode())
            if self.shares is not None:
                self.shares[...] = 1 / self.shape[-1] if weights is None else shares_of(weights[places])
            self.numbers = numbers


class Workspaces:
    """The workspaces of a network's lanes, one for each size of a batch.

    gradient: (..., P) of all of them. weights: (m,) of the training examples, None where all count alike.
    has_own_batches: whether every lane has a batch of its own.
    """

    def __init__(self, network: Network, loss: Loss, weights: Array | None, has_own_batches: bool = False) -> None:
        self.lanes, self.loss, self.weights, self.has_own_batches = network.lanes, loss, weights, has_own_batches
        self.gradient = np.empty_like(network.parameters)
        self._workspaces: dict[tuple[Network, int], Workspace] = {}

    def gathered(self, network: Network, examples: Examples, numbers: Array, weights: Array | None = None) -> Workspace:
        """The workspace for so many examples, with those of these numbers in it: (m,), or (lanes, m) with one series a lane."""
        key = network, numbers.shape[-1]
        if key not in self._workspaces:
            shape = (*self.lanes, numbers.shape[-1]) if self.has_own_batches else numbers.shape
            is_weighted = self.weights is not None
            self._workspaces[key] = Workspace(network, self.loss, self.gradient, examples.target, shape, is_weighted)
        self._workspaces[key].gather(examples, numbers, weights)
        return self._workspaces[key]
