"""The instruments: what is measured on a schedule, in addition to losses and gradient norms, while a network trains.

No instrument changes a bit of the training. An `Instrument` says what is measured, and when; `mount` connects it to a training,
and the mounted instrument stores what it measures. A step is measured before its update, as its loss is. All lanes of a network
are measured together; each lane's values have the bits of the lane trained alone.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from blocks.arrays import Array, choice, norm, quiet, whole_number
from blocks.history import Histogram, Quantity, log_spaced
from blocks.losses import Loss
from blocks.measure.diagnostics import check_data, example_gradient_norms, noise_scale, saturated, update_ratios
from blocks.measure.hessian import Hessian
from blocks.measure.jacobian import singular_values
from blocks.measure.lanczos import BufferPool, top_eigenpairs
from blocks.measure.signals import BINS, NUMBERS, deviations, signals
from blocks.network import Network
from blocks.optimizers import Optimizer, State

LOG, LOG_POINTS = "log", 20
SHARPNESS_TOLERANCE, PRODUCTS = 0.01, 200
# The length of the random vector that is added to each of the last eigenvectors, since another eigenvalue may be the largest now.
RANDOM_SHARE = 0.3
NO_UPDATE = "no update was made"
NOT_FINITE, NOT_CONVERGED = "a product of H is not finite", f"not within {SHARPNESS_TOLERANCE:.0%} after {PRODUCTS} products of H"


def scheduled_steps(argument: str, schedule: str, steps: int) -> Array:
    """Return the steps of 0..steps-1 at which a schedule measures.

    schedule: `k` is every k-th step from 0 on; `log` is at most 20 log-spaced steps, with the first and the last.
    Raises ValueError, which names the argument, for any other schedule.
    """
    if schedule == LOG:
        return log_spaced(steps, LOG_POINTS)
    if not (schedule.isdecimal() and int(schedule) >= 1):
        raise ValueError(f"{argument} is {schedule!r}, it must be a whole number of at least 1, every so many steps, or {LOG}")
    return np.arange(0, steps, int(schedule))


@dataclass(frozen=True)
class Instrument:
    """What is measured, and at which steps.

    name: a name in the table INSTRUMENTS. schedule: see `scheduled_steps`.
    examples: the number of training examples that are measured, the first ones; None is the batch size. Not for update_ratio
        and parameters.
    count: the number of eigenvalues, for sharpness and preconditioned_sharpness.
    Raises ValueError for an unknown name or schedule, and for counts below 1.
    """

    name: str
    schedule: str
    examples: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        choice("instrument", self.name, INSTRUMENTS)
        scheduled_steps("schedule", self.schedule, 1)
        whole_number("count", self.count, at_least=1)
        if self.examples is not None:
            whole_number("examples", self.examples, at_least=1)

    def mount(self, network: Network, x: Array, y: Array, loss: Loss, batch_size: int, steps: int) -> "MountedInstrument":
        """Return the instrument, connected to a training.

        network: its lanes have at most one axis. x, y, loss, batch_size: those of the training. steps: their number.
        Raises ValueError where there are fewer examples or parameters than are measured.
        """
        instrument_type = INSTRUMENTS[self.name]
        m = self.examples or batch_size
        m = whole_number(f"{self.name}'s examples", m, at_least=instrument_type.least_examples, at_most=x.shape[-1])
        whole_number(f"{self.name}'s count", self.count, at_least=1, at_most=network.layout.size)
        return instrument_type(self, network, x[..., :m], y[..., :m], loss, scheduled_steps("schedule", self.schedule, steps))


class MountedInstrument:
    """An instrument that is connected to a training.

    steps: (E,) at which it measures. values: (E, lanes, n) what it has measured, nan where it has not.
    """

    symbol: ClassVar[str]
    least_examples: ClassVar[int] = 1

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, steps: Array) -> None:
        self.x, self.y, self.loss, self.steps = x, y, loss, steps
        self.values = np.full((len(steps), int(np.prod(network.lanes)), self.width(network, instrument)), np.nan)

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """Return n, how many numbers are measured at a step."""
        return network.depth

    def row(self, step: int) -> int:
        """Return the row of a step in `values`."""
        return int(np.searchsorted(self.steps, step))

    def is_due(self, step: int) -> bool:
        """Return whether the instrument measures at that step."""
        row = self.row(step)
        return bool(row < len(self.steps) and self.steps[row] == step)

    def read(self, optimizer: Optimizer, state: State) -> None:
        """Read what depends on the optimizer. It is called before `before_update`."""

    def before_update(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure just before the update of `step`. live: the numbers of the network's lanes among all lanes of the training."""
        self.values[self.row(step), live] = self.measure(network, live)

    def after_update(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure just after the update of `step`."""

    def measure(self, network: Network, live: slice | Array) -> Array:
        """Return the n numbers of each lane, (lanes, n)."""
        raise NotImplementedError

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """Return all that was measured. lanes: the shape of the training's lanes."""
        return Quantity(self.steps, quiet(_by_lane(self.values, lanes)))


def _by_lane(values: Array, lanes: tuple[int, ...]) -> Array:
    """Return a copy of values (E, lanes, ...) with the shape (*lanes, E, ...). lanes: the shape of the lanes."""
    return np.moveaxis(values, 1, 0).reshape(*lanes, len(values), *values.shape[2:]).copy()


class Sharpness(MountedInstrument):
    """The Hessian's largest eigenvalues. Each measurement starts from the last one's eigenvectors plus a random vector.

    A value is within 1 % of the eigenvalue, or within rounding, 8 epsilons of the largest |lambda|; see `top_eigenpairs`. It is
    nan where this is not reached after 200 products, or where a product is not finite; `Quantity.reasons` says which.
    """

    symbol = "lambda"
    # s of the `Hessian`.
    scale: Array | None = None

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, steps: Array) -> None:
        super().__init__(instrument, network, x, y, loss, steps)
        # A fixed random start gives a run the same bits alone and in a stack.
        self.start = np.random.default_rng(0).standard_normal((instrument.count, network.layout.size))
        self.start = (RANDOM_SHARE / norm(self.start)[:, None] * self.start).astype(network.parameters.dtype)
        self.vectors = np.zeros((self.values.shape[1], *self.start.shape), self.start.dtype)
        self.reasons: Array = np.full(self.values.shape[:2], "", dtype=object)
        self.hessian: Hessian | None = None
        self.pool = BufferPool()

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """Return n: one number per eigenvalue."""
        return instrument.count

    def before_update(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure the eigenvalues, the largest first, and note the reasons why values are missing."""
        if self.hessian is not None and self.hessian.network is network:
            self.hessian.update()
        else:
            self.hessian = Hessian(network, self.x, self.y, self.loss, self.start.shape[:1])
        self.hessian.scale = self.scale
        start = self.vectors[live].reshape(*network.lanes, *self.start.shape) + self.start
        values, vectors = top_eigenpairs(self.hessian, start, tolerance=SHARPNESS_TOLERANCE, iterations=PRODUCTS, pool=self.pool)
        # Either all of a lane's vectors are nan, or none.
        is_missing = np.isnan(vectors[..., 0, 0])
        self.vectors[live] = np.where(is_missing[..., None, None], 0, vectors) if is_missing.any() else vectors
        reasons = np.where(is_missing, NOT_FINITE, np.where(np.isnan(values).any(axis=-1), NOT_CONVERGED, ""))
        self.values[self.row(step), live], self.reasons[self.row(step), live] = values, reasons

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """See `MountedInstrument.quantity`."""
        return replace(super().quantity(lanes), reasons=self.reasons.T.reshape(*lanes, len(self.steps)).copy())


class PreconditionedSharpness(Sharpness):
    """The largest eigenvalues of P^-1 H, which are those of P^(-1/2) H P^(-1/2). The optimizer divides the gradient by P.

    For a rule without P it is the sharpness. A rule with P has not divided a gradient yet at step 0, so that there is no value.
    """

    def read(self, optimizer: Optimizer, state: State) -> None:
        """Store P^(-1/2)."""
        P = optimizer.preconditioner(state)
        self.scale = None if P is None else P**-0.5
        self.is_known = P is None or state.updates > 0

    def before_update(self, step: int, network: Network, live: slice | Array) -> None:
        """See `Sharpness.before_update`."""
        if self.is_known:
            super().before_update(step, network, live)
        else:
            self.reasons[self.row(step), live] = NO_UPDATE


class Saturated(MountedInstrument):
    """The share of each hidden block's units that pass no gradient for any example."""

    symbol = "a"

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """Return n: one number per hidden block."""
        return network.depth - 1

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `diagnostics.saturated`."""
        return saturated(network, self.x)


class ExampleNorm(MountedInstrument):
    """The root mean square over the examples of ||dJ_i/dW_l||, where J_i is the loss of example i."""

    symbol = "W"

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `diagnostics.example_gradient_norms`."""
        norms = example_gradient_norms(network, self.x, self.y, self.loss).astype(np.float64)
        return norm(norms) / np.sqrt(norms.shape[-1])


class NoiseScale(MountedInstrument):
    """The simple noise scale tr(Sigma) / |G|^2: the batch size above which larger batches bring less and less."""

    symbol = "B"
    least_examples = 2

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """Return 1."""
        return 1

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `diagnostics.noise_scale`."""
        return noise_scale(network, self.x, self.y, self.loss)[..., None]


class SingularValue(MountedInstrument):
    """The singular values of da_{L-1}/da_1, the largest first, each the mean over the examples."""

    symbol = "s"

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """Return n, the smaller number of units of the first and the last hidden block.

        Raises ValueError where there is no hidden block, and where the blocks mix the examples of a batch.
        """
        if network.mixes_examples or network.depth == 1:
            raise ValueError(f"singular_value is of hidden blocks that take each example alone, not of {network}")
        return min(network.layout.sizes[1], network.layout.sizes[-2])

    def measure(self, network: Network, live: slice | Array) -> Array:
        """See `jacobian.singular_values`."""
        return singular_values(network, self.x)


class UpdateRatio(MountedInstrument):
    """||W_l after - W_l before|| / ||W_l before|| of the step's update."""

    symbol = "W"

    def before_update(self, step: int, network: Network, live: slice | Array) -> None:
        """Store the parameters."""
        self.parameters_before = network.parameters.copy()

    def after_update(self, step: int, network: Network, live: slice | Array) -> None:
        """See `diagnostics.update_ratios`."""
        ratios = update_ratios(self.parameters_before, network.parameters, network.layout)
        self.values[self.row(step), live] = ratios


class Signals(MountedInstrument):
    """The distributions of z, a, da and dW of every block, and the size of an update; see `measure.signals`.

    values: (E, lanes, len(NUMBERS), L). counts: symbol -> (E, lanes, L, B) of its histogram.
    """

    symbol = "W"

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, steps: Array) -> None:
        super().__init__(instrument, network, x, y, loss, steps)
        self.x, self.target = check_data(network, x, y, loss)
        n_steps, lanes, depth = self.values.shape
        self.values = np.full((n_steps, lanes, len(NUMBERS), depth), np.nan)
        # The smallest whole numbers that can count all entries of the largest array.
        dtype = np.min_scalar_type(max(network.layout.sizes) * max(x.shape[-1], *network.layout.sizes))
        self.counts = {symbol: np.zeros((n_steps, lanes, depth, len(bins.edges) - 1), dtype) for symbol, bins in BINS.items()}

    def before_update(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure all but the update, and store the parameters."""
        self.parameters_before, self.std_W = network.parameters.copy(), deviations(network.parameters, network.layout)
        counts, self.values[self.row(step), live, :-1] = signals(network, self.x, self.target, self.loss, self.std_W)
        for symbol, count in counts.items():
            self.counts[symbol][self.row(step), live] = count

    def after_update(self, step: int, network: Network, live: slice | Array) -> None:
        """Measure update_data, std(W after - W before) / std(W before)."""
        update = np.subtract(network.parameters, self.parameters_before, out=self.parameters_before)
        self.values[self.row(step), live, -1] = deviations(update, network.layout) / self.std_W

    def quantity(self, lanes: tuple[int, ...]) -> Quantity:
        """See `MountedInstrument.quantity`."""
        counts = {symbol: _by_lane(counts, lanes) for symbol, counts in self.counts.items()}
        return replace(
            super().quantity(lanes),
            histograms={symbol: Histogram(BINS[symbol].edges, count) for symbol, count in counts.items()},
        )


class Parameters(MountedInstrument):
    """Copies of the parameters, as the flat vector (P,)."""

    symbol = "theta"

    def __init__(self, instrument: Instrument, network: Network, x: Array, y: Array, loss: Loss, steps: Array) -> None:
        super().__init__(instrument, network, x, y, loss, steps)
        self.values = self.values.astype(network.parameters.dtype)

    @staticmethod
    def width(network: Network, instrument: Instrument) -> int:
        """Return P."""
        return network.layout.size

    def measure(self, network: Network, live: slice | Array) -> Array:
        """Return the parameters, (lanes, P)."""
        return network.parameters


INSTRUMENTS: dict[str, type[MountedInstrument]] = {
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
