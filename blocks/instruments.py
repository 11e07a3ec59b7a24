"""The instruments on a schedule: what is measured beside losses and gradient norms while a network trains.

None of them changes a bit of the training that it watches. An `Instrument` says what and when; `mounted` on a training it
keeps what it has measured. A step is measured before its update, as its loss is; a network's lanes are measured at once,
each with the bits of the network alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from blocks.arrays import Array, choice, whole_number
from blocks.diagnostics import example_gradient_norms, saturated, update_ratios
from blocks.hessian import Hessian
from blocks.history import Quantity, log_spaced
from blocks.lanczos import Room, top_eigenpairs
from blocks.losses import Loss
from blocks.network import Network

LOG, LOG_POINTS = "log", 20
# Of the estimate of the largest eigenvalue's error, see `top_eigenpairs`; `Sharpness` says what the error itself was.
SHARPNESS_TOLERANCE = 0.01


def scheduled(argument: str, schedule: str, steps: int) -> Array:
    """The steps of 0..steps-1 that a schedule names: `k`, every k-th from 0 on; `log`, at most 20, log-spaced, first and last.

    Raises ValueError, which names the argument, for any other schedule.
    """
    if schedule == LOG:
        return log_spaced(steps, LOG_POINTS)
    if not (schedule.isdecimal() and int(schedule) >= 1):
        raise ValueError(f"{argument} is {schedule!r}, it must be a whole number of at least 1, every so many steps, or {LOG}")
    return np.arange(0, steps, int(schedule))


@dataclass(frozen=True)
class Instrument:
    """What to measure, and when.

    name: of the table INSTRUMENTS. schedule: see `scheduled`.
    examples: measured on the first so many training examples; None is as many as a batch has. update_ratio needs none.
    count: how many of the largest eigenvalues; of sharpness alone.
    Raises ValueError for an unknown name or schedule, and counts below 1.
    """

    name: str
    schedule: str
    examples: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        choice("instrument", self.name, INSTRUMENTS)
        scheduled("schedule", self.schedule, 1)
        whole_number("count", self.count, at_least=1)
        if self.examples is not None:
            whole_number("examples", self.examples, at_least=1)

    def mounted(self, network: Network, x: Array, y: Array, loss: Loss, batch_size: int, steps: int) -> "Mounted":
        """The instrument on a training of `steps` steps of that network, its lanes along one axis at most, with x and y.

        Raises ValueError where there are fewer examples, or parameters, than are asked for.
        """
        m = whole_number(f"{self.name}'s examples", self.examples or batch_size, at_least=1, at_most=x.shape[-1])
        whole_number(f"{self.name}'s count", self.count, at_least=1, at_most=network.layout.size)
        return INSTRUMENTS[self.name](self, network, x[..., :m], y[..., :m], loss, scheduled("schedule", self.schedule, steps))


class Mounted:
    """An instrument at work. at: (E,) the steps at which it measures. values: (E, lanes, n) what it has measured, else nan."""

    symbol: ClassVar[str]

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, at: Array) -> None:
        self.x, self.y, self.loss, self.at = x, y, loss, at
        self.values = np.full((len(at), int(np.prod(network.lanes)), self.width(network, instrument)), np.nan)

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """n, the numbers at a step."""
        return network.depth

    def due(self, step: int) -> bool:
        """Whether it measures at that step."""
        place = np.searchsorted(self.at, step)
        return bool(place < len(self.at) and self.at[place] == step)

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure just before the update of `step`. live: the places of the network's lanes among all."""
        self.values[np.searchsorted(self.at, step), live] = self.measure(network, live)

    def after(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure just after it."""

    def measure(self, network: Network, live: slice | Array) -> Array:
        """(lanes, n)"""
        raise NotImplementedError

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """All that was measured, in the lanes' own shape."""
        return Quantity(self.at, np.moveaxis(self.values, 1, 0).reshape(*lanes, *self.values.shape[::2]).copy())


class Sharpness(Mounted):
    """The Hessian's largest eigenvalues, each measurement starting from the last one's eigenvectors.

    A measured eigenvalue is never above the true one but for rounding. How far it was below, in per cent of it, at every 10th
    update of networks of 9 blocks x 64 on digits at a learning rate of 0.1, 30 to 60 measurements each:

    | loss, batch | activation | median | 9 of 10 | worst |
    |---|---|---|---|---|
    | cross-entropy, 64 | relu | 0.31 | 2.2 | 19 |
    | cross-entropy, 64 | tanh | 0.37 | 1.1 | 2.3 |
    | cross-entropy, all | relu | 0.9 | 1.5 | 3.7 |
    | cross-entropy, all | tanh | 0.04 | 0.8 | 1.7 |
    | squared error, all | relu | 0.01 | 0.6 | 13 |
    | squared error, all, at the edge of stability | tanh | 1.3 | 3.1 | 10 |

    `lanczos.sharpness` measures one network to any tolerance.
    """

    symbol = "lambda"

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, at: Array) -> None:
        super().__init__(instrument, network, x, y, loss, at)
        # Any start will do that has a share of the eigenvectors; a fixed one, so that a run alone has a stack's bits.
        self.start = np.random.default_rng(0).standard_normal((instrument.count, network.layout.size))
        self.start = self.start.astype(network.parameters.dtype)
        self.vectors = np.broadcast_to(self.start, (self.values.shape[1], *self.start.shape)).copy()
        self.hessian: Hessian | None = None
        self.room = Room()

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """One number an eigenvalue."""
        return instrument.count

    def measure(self, network: Network, live: slice | Array) -> Array:
        """The eigenvalues, the largest first."""
        if self.hessian is not None and self.hessian.network is network:
            self.hessian.update()
        else:
            self.hessian = Hessian(network, self.x, self.y, self.loss, self.start.shape[:1])
        start = self.vectors[live].reshape(*network.lanes, *self.start.shape)
        values, vectors = top_eigenpairs(self.hessian, start, tolerance=SHARPNESS_TOLERANCE, of_values=True, room=self.room)
        lost = np.isnan(values).any(axis=-1)
        vectors[lost] = self.start
        self.vectors[live] = vectors
        return values


class Saturated(Mounted):
    """The share of each hidden block's units that pass no gradient for any example."""

    symbol = "a"

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """One number a hidden block."""
        return network.depth - 1

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `diagnostics.saturated`."""
        return saturated(network, self.x)


class ExampleNorm(Mounted):
    """The root mean square over the examples of ||dJ_i/dW_l||, J_i the loss of example i alone."""

    symbol = "W"

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `diagnostics.example_gradient_norms`."""
        norms = example_gradient_norms(network, self.x, self.y, self.loss).astype(np.float64)
        return np.sqrt(np.square(norms).mean(axis=-1))


class UpdateRatio(Mounted):
    """||W_l after - W_l before|| / ||W_l before|| of the step's update."""

    symbol = "W"

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """Keep the parameters."""
        self.kept = network.parameters.copy()

    def after(self, step: int, network: Network, live: slice | Array) -> None:
        """See `diagnostics.update_ratios`."""
        ratios = update_ratios(self.kept, network.parameters, network.layout)
        self.values[np.searchsorted(self.at, step), live] = ratios


INSTRUMENTS: dict[str, type[Mounted]] = {
    "sharpness": Sharpness,
    "update_ratio": UpdateRatio,
    "saturated": Saturated,
    "example_norm": ExampleNorm,
}
