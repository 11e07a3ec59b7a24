"""The instruments on a schedule: what is measured beside losses and gradient norms while a network trains.

None of them changes a bit of the training that it watches. An `Instrument` says what and when; `mounted` on a training it
keeps what it has measured. A step is measured before its update, as its loss is; a network's lanes are measured at once,
each with the bits of the network alone.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from blocks.arrays import Array, choice, norm, quiet, whole_number
from blocks.history import Histogram, Quantity, log_spaced
from blocks.losses import Loss
from blocks.measure.diagnostics import checked, example_gradient_norms, noise_scale, saturated, update_ratios
from blocks.measure.hessian import Hessian
from blocks.measure.jacobian import singular_values
from blocks.measure.lanczos import Room, top_eigenpairs
from blocks.measure.signals import BINS, NUMBERS, deviations, signals
from blocks.network import Network
from blocks.optimizers import Optimizer, State

LOG, LOG_POINTS = "log", 20
SHARPNESS_TOLERANCE, PRODUCTS = 0.01, 200
# How much of a random vector is added to the last eigenvectors: what has become the largest since may be none of theirs.
RANDOM_SHARE = 0.3
NO_UPDATE = "no update was made"
NOT_FINITE, NOT_CONVERGED = "a product of H is not finite", f"not within {SHARPNESS_TOLERANCE:.0%} after {PRODUCTS} products of H"


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
    count: how many of the largest eigenvalues; of sharpness and preconditioned_sharpness alone.
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
        kind = INSTRUMENTS[self.name]
        m = self.examples or batch_size
        m = whole_number(f"{self.name}'s examples", m, at_least=kind.least_examples, at_most=x.shape[-1])
        whole_number(f"{self.name}'s count", self.count, at_least=1, at_most=network.layout.size)
        return kind(self, network, x[..., :m], y[..., :m], loss, scheduled("schedule", self.schedule, steps))


class Mounted:
    """An instrument at work. at: (E,) the steps at which it measures. values: (E, lanes, n) what it has measured, else nan."""

    symbol: ClassVar[str]
    least_examples: ClassVar[int] = 1

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, at: Array) -> None:
        self.x, self.y, self.loss, self.at = x, y, loss, at
        self.values = np.full((len(at), int(np.prod(network.lanes)), self.width(network, instrument)), np.nan)

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """n, the numbers at a step."""
        return network.depth

    def place(self, step: int) -> int:
        """Where a step stands in `at`, or would."""
        return int(np.searchsorted(self.at, step))

    def due(self, step: int) -> bool:
        """Whether it measures at that step."""
        place = self.place(step)
        return bool(place < len(self.at) and self.at[place] == step)

    def read(self, optimizer: Optimizer, state: State) -> None:
        """Called just ahead of `before`, for what depends on the optimizer."""

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure just before the update of `step`. live: the places of the network's lanes among all."""
        self.values[self.place(step), live] = self.measure(network, live)

    def after(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure just after it."""

    def measure(self, network: Network, live: slice | Array) -> Array:
        """(lanes, n)"""
        raise NotImplementedError

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """All that was measured, in the lanes' own shape."""
        return Quantity(self.at, quiet(_by_lane(self.values, lanes)))


def _by_lane(values: Array, lanes: tuple[int, ...]) -> Array:
    """(E, lanes, ...) -> (*lanes, E, ...), a copy."""
    return np.moveaxis(values, 1, 0).reshape(*lanes, len(values), *values.shape[2:]).copy()


class Sharpness(Mounted):
    """The Hessian's largest eigenvalues, each measurement starting from the last one's eigenvectors and something random.

    Each is within 1 % of the eigenvalue itself, or of rounding, 8 epsilons of the largest |lambda|; see `top_eigenpairs`. One
    that is not after 200 products is nan, as all are where a product is not finite: `Quantity.reasons` says which.
    """

    symbol = "lambda"
    # See `Hessian`.
    scale: Array | None = None

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, at: Array) -> None:
        super().__init__(instrument, network, x, y, loss, at)
        # Any start will do that has a share of the eigenvectors; a fixed one, so that a run alone has a stack's bits.
        self.start = np.random.default_rng(0).standard_normal((instrument.count, network.layout.size))
        self.start = (RANDOM_SHARE / norm(self.start)[:, None] * self.start).astype(network.parameters.dtype)
        self.vectors = np.zeros((self.values.shape[1], *self.start.shape), self.start.dtype)
        self.reasons: Array = np.full(self.values.shape[:2], "", dtype=object)
        self.hessian: Hessian | None = None
        self.room = Room()

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """One number an eigenvalue."""
        return instrument.count

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """The eigenvalues, the largest first, and why one is missing."""
        if self.hessian is not None and self.hessian.network is network:
            self.hessian.update()
        else:
            self.hessian = Hessian(network, self.x, self.y, self.loss, self.start.shape[:1])
        self.hessian.scale = self.scale
        start = self.vectors[live].reshape(*network.lanes, *self.start.shape) + self.start
        values, vectors = top_eigenpairs(self.hessian, start, tolerance=SHARPNESS_TOLERANCE, iterations=PRODUCTS, room=self.room)
        # All of a lane's numbers are nan, or none.
        lost = np.isnan(vectors[..., 0, 0])
        self.vectors[live] = np.where(lost[..., None, None], 0, vectors) if lost.any() else vectors
        missing = np.where(lost, NOT_FINITE, np.where(np.isnan(values).any(axis=-1), NOT_CONVERGED, ""))
        self.values[self.place(step), live], self.reasons[self.place(step), live] = values, missing

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """See `Mounted.quantity`."""
        return replace(super().quantity(lanes), reasons=self.reasons.T.reshape(*lanes, len(self.at)).copy())


class PreconditionedSharpness(Sharpness):
    """The largest eigenvalues of P^-1 H, those of P^(-1/2) H P^(-1/2), P what the optimizer divides the gradient by.

    Without P it is the sharpness. At step 0 a rule that has one has divided by nothing yet, and there is no value.
    """

    def read(self, optimizer: Optimizer, state: State) -> None:
        """Keep P^(-1/2)."""
        P = optimizer.preconditioner(state)
        self.scale = None if P is None else P**-0.5
        self.is_known = P is None or state.updates > 0

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """See `Sharpness.before`."""
        if self.is_known:
            super().before(step, network, live)
        else:
            self.reasons[self.place(step), live] = NO_UPDATE


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
        return norm(norms) / np.sqrt(norms.shape[-1])


class NoiseScale(Mounted):
    """The simple noise scale tr(Sigma) / |G|^2: the batch size from which on larger batches bring less and less."""

    symbol = "B"
    least_examples = 2

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """One number."""
        return 1

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `diagnostics.noise_scale`."""
        return noise_scale(network, self.x, self.y, self.loss)[..., None]


class SingularValue(Mounted):
    """The singular values of da_{L-1}/da_1, the largest first, each its mean over the examples."""

    symbol = "s"

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """As many as the narrower of the first and the last hidden block has units."""
        if network.mixes_examples or network.depth == 1:
            raise ValueError(f"singular_value is of hidden blocks that take each example alone, not of {network}")
        return min(network.layout.sizes[1], network.layout.sizes[-2])

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `jacobian.singular_values`."""
        return singular_values(network, self.x)


class UpdateRatio(Mounted):
    """||W_l after - W_l before|| / ||W_l before|| of the step's update."""

    symbol = "W"

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """Keep the parameters."""
        self.kept = network.parameters.copy()

    def after(self, step: int, network: Network, live: slice | Array) -> None:
        """See `diagnostics.update_ratios`."""
        ratios = update_ratios(self.kept, network.parameters, network.layout)
        self.values[self.place(step), live] = ratios


class Signals(Mounted):
    """How z, a, da and dW of every block are distributed, and what an update is beside the weights; see `measure.signals`.

    values: (E, lanes, len(NUMBERS), L). counts: symbol -> (E, lanes, L, B) of its histogram.
    """

    symbol = "W"

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, at: Array) -> None:
        super().__init__(instrument, network, x, y, loss, at)
        self.x, self.target = checked(network, x, y, loss)
        steps, lanes, depth = self.values.shape
        self.values = np.full((steps, lanes, len(NUMBERS), depth), np.nan)
        # The smallest whole numbers that can count all entries of the largest array.
        dtype = np.min_scalar_type(max(network.layout.sizes) * max(x.shape[-1], *network.layout.sizes))
        self.counts = {symbol: np.zeros((steps, lanes, depth, len(bins.edges) - 1), dtype) for symbol, bins in BINS.items()}

    def before(self, step: int, network: Network, live: slice | Array) -> None:
        """All but the update, and the parameters, which are kept."""
        self.kept, self.std_W = network.parameters.copy(), deviations(network.parameters, network.layout)
        counts, self.values[self.place(step), live, :-1] = signals(network, self.x, self.target, self.loss, self.std_W)
        for symbol, counted in counts.items():
            self.counts[symbol][self.place(step), live] = counted

    def after(self, step: int, network: Network, live: slice | Array) -> None:
        """update_data, std(W after - W before) / std(W before)."""
        update = np.subtract(network.parameters, self.kept, out=self.kept)
        self.values[self.place(step), live, -1] = deviations(update, network.layout) / self.std_W

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """See `Mounted.quantity`."""
        counts = {symbol: _by_lane(counts, lanes) for symbol, counts in self.counts.items()}
        return replace(
            super().quantity(lanes),
            histograms={symbol: Histogram(BINS[symbol].edges, counted) for symbol, counted in counts.items()},
        )


class Parameters(Mounted):
    """The parameters themselves, as they lie in the flat vector."""

    symbol = "theta"

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, at: Array) -> None:
        super().__init__(instrument, network, x, y, loss, at)
        self.values = self.values.astype(network.parameters.dtype)

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """P"""
        return network.layout.size

    def measure(self, network: Network, live: slice | Array) -> Array:
        """The parameters."""
        return network.parameters


INSTRUMENTS: dict[str, type[Mounted]] = {
    "sharpness": Sharpness,
    "preconditioned_sharpness": PreconditionedSharpness,
    "update_ratio": UpdateRatio,
    "saturated": Saturated,
    "example_norm": ExampleNorm,
    "noise_scale": NoiseScale,
    "singular_value": SingularValue,
    "signals": Signals,
    "parameters": Parameters,
}
