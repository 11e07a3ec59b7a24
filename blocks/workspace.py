"""The arrays in which a network computes a batch. The computation is recorded once for each size of a batch, and replayed."""

from functools import partial
from typing import NamedTuple

import numpy as np

from blocks.arrays import Array, check_finite, transpose
from blocks.losses import Loss, shares_of
from blocks.network import Network
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay, collector_off, replay_is_on

# Targets with more numbers than this are encoded batch by batch: for 10,000 classes they would be far larger than the data.
ENCODED_AT_ONCE = 2**24


class Examples(NamedTuple):
    """A data set. rows: (m, n_0 + 1), each an example and a 1. target: (..., m), or (..., n_L, m) where it is encoded."""

    rows: Array
    target: Array

    @classmethod
    def create(cls, network: Network, loss: Loss, x: Array, y: Array, name: str = "") -> "Examples":
        """Return the examples of x (n_0, m) and y. Raises ValueError where they do not fit. name: of the data set, for errors."""
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
        # An example is a row here, since gathering a batch copies whole rows faster than columns.
        rows = np.empty((x.shape[1], x.shape[0] + 1), dtype)
        rows[:, :-1], rows[:, -1] = x.T, 1
        return cls(rows, target)


class Workspace:
    """The arrays for batches of m examples, which are gathered into it.

    rows: (m, n_0 + 1), each an example and a 1; (lanes, m, n_0 + 1) where every lane has its own batch. Transposed, it is
        a_prev_1 of block 1, so that no batch is copied twice.
    gradient: (..., P) to which `cycle` writes the gradient.
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
        # Every lane has its own copy of the labels, since broadcasting takes longer and allocates memory.
        is_copied = bool(network.lanes) or target.dtype != dtype
        self.target = np.empty((*network.lanes, units, m), dtype) if is_copied else self.labels
        self.shares = np.empty(shape, dtype) if weighted else None
        self.numbers: Array | None = None
        self.replay: Replay | None = None
        if replay_is_on():
            self._record(Tape(), (*lanes, inputs, m))
        else:
            self.rows = np.ones((*shape, inputs + 1), dtype)

    @collector_off()
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
        """The batch (n_0, m), or (lanes, n_0, m) where every lane has its own."""
        return transpose(self.rows)[..., :-1, :]

    def forward(self) -> None:
        """Compute value and logits."""
        if self.replay is None:
            self._forward(self.network, self.x, self.target, self.shares)
        else:
            self.replay(0)

    def cycle(self) -> None:
        """Compute value and logits, the gradient and its norms."""
        if self.replay is None:
            self._forward(self.network, self.x, self.target, self.shares)
            self._backward(self.network, self.gradient)
        else:
            self.replay()

    def gather(self, examples: Examples, numbers: Array, weights: Array | None) -> None:
        """Copy examples of a data set into the workspace. numbers: theirs, (m,) for all lanes, or (lanes, m)."""
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

    gradient: (..., P), the same array in all workspaces. weights: (m,) of the training examples, None where all are equal.
    has_own_batches: whether every lane has its own batch.
    """

    def __init__(self, network: Network, loss: Loss, weights: Array | None, has_own_batches: bool = False) -> None:
        self.lanes, self.loss, self.weights, self.has_own_batches = network.lanes, loss, weights, has_own_batches
        self.gradient = np.empty_like(network.parameters)
        self._workspaces: dict[tuple[Network, int], Workspace] = {}

    def gathered(self, network: Network, examples: Examples, numbers: Array, weights: Array | None = None) -> Workspace:
        """Return the workspace for a batch, with its examples. numbers: theirs, (m,), or (lanes, m) for a batch per lane."""
        key = network, numbers.shape[-1]
        if key not in self._workspaces:
            shape = (*self.lanes, numbers.shape[-1]) if self.has_own_batches else numbers.shape
            is_weighted = self.weights is not None
            self._workspaces[key] = Workspace(network, self.loss, self.gradient, examples.target, shape, is_weighted)
        self._workspaces[key].gather(examples, numbers, weights)
        return self._workspaces[key]
