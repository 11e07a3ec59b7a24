"""The optimizers: published rules that update the flat parameter vector.

`state = optimizer.start(network)` creates the state that a rule keeps from update to update. `optimizer.update(parameters,
gradient, state, factor)` makes one update in place and leaves the gradient unchanged. Every hyperparameter is a number, or an
array with one per lane; the learning rate may also have one per parameter. A new optimizer is a class with its rule and an entry
in the table OPTIMIZERS.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from blocks.arrays import Array, check_number, choice
from blocks.network import Network
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay, replay_is_on

ALLOWED: dict[str, dict[str, float]] = {
    "learning_rate": {"above": 0},
    "weight_decay": {"at_least": 0},
    "momentum": {"at_least": 0, "below": 1},
    "beta_1": {"at_least": 0, "below": 1},
    "beta_2": {"at_least": 0, "below": 1},
    "rho": {"at_least": 0, "below": 1},
    "epsilon": {"above": 0},
}


@dataclass
class State:
    """The state that an optimizer keeps from update to update.

    moments: (..., P) each. updates: the number of updates so far.
    decays: (..., P) bool, True where a parameter has weight decay; None where none has.
    numbers: see `Optimizer.numbers`. factor: the schedule's factor with which they were computed.
    """

    moments: list[Array]
    decays: Array | None = None
    updates: int = 0
    numbers: list[Array] = field(default_factory=list)
    factor: float = np.nan
    # The recorded update of these arrays.
    replay: Replay | None = None
    parameters: Array | None = None
    gradient: Array | None = None

    def take(self, lanes: Array) -> "State":
        """Return the state of some lanes alone."""
        decays = None if self.decays is None else self.decays[lanes]
        return State([moment[lanes] for moment in self.moments], decays, self.updates)

    def __reduce__(self) -> tuple[type["State"], tuple[Any, ...]]:
        # A copied replay would still update the original's arrays.
        return State, (self.moments, self.decays, self.updates)


@dataclass(frozen=True, eq=False)
class Optimizer:
    """The part that all rules share.

    learning_rate: alpha > 0; (..., P) where every parameter has its own, see `Layout.of_blocks`.
    weight_decay: lambda >= 0, L2 on W and not on b: the rule uses dW + lambda W in place of dW.
    Raises ValueError for a value out of range.
    """

    learning_rate: Any
    weight_decay: Any = field(default=0.0, kw_only=True)

    moments = 0
    # Whether `numbers` differ from update to update.
    varies = False
    # Whether, apart from epsilon, a gradient that is c times as large gives the same update.
    scale_free = False

    def __post_init__(self) -> None:
        for rule in fields(self):
            check_number(rule.name, getattr(self, rule.name), **ALLOWED[rule.name])
            object.__setattr__(self, rule.name, np.asarray(getattr(self, rule.name), dtype=np.float64))

    def step(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array]) -> tuple[Array, ...]:
        """Return the new theta, followed by the new moments.

        theta, g, moments: (..., P) parameters, gradient, and the moments after the last update. numbers: see `numbers`.
        """
        raise NotImplementedError

    def numbers(self, factor: float, t: int, theta: Array) -> list[Array]:
        """Return the numbers in the rule of update t = 1, 2, ..., which broadcast over theta.

        Here it is only alpha, the learning rate times the factor.
        """
        rate = self.learning_rate * factor
        return [rate.astype(theta.dtype) if rate.shape == theta.shape else _column(rate, theta.dtype)]

    def preconditioner(self, state: State) -> Array | None:
        """Return P, (..., P), by which the last update divided the gradient; None for a rule that does not divide it."""
        return None

    def largest_stable_curvature(self) -> Array:
        """Return the largest eigenvalue of P^-1 H at which the rule stays bounded, for a fixed P and Hessian H: here 2 / alpha.

        It has the shape of the hyperparameters, and holds without weight decay. Sources: Cohen et al. 2021 for gradient descent
        and momentum, Cohen et al. 2022 for Adam.
        """
        return 2 / self.learning_rate

    def take(self, lanes: Array, shape: tuple[int, ...]) -> "Optimizer":
        """Return the optimizer of some lanes alone. lanes: their numbers, counted along one axis. shape: of all lanes."""
        axes = len(shape)

        def chosen_lanes(value: Array) -> Array:
            return value.reshape(-1, *value.shape[axes:])[lanes] if axes and value.ndim else value

        return replace(self, **{f.name: chosen_lanes(getattr(self, f.name)) for f in fields(self)})

    def start(self, network: Network) -> State:
        """Return the state before the first update.

        Raises ValueError unless each hyperparameter has one value or one per lane, or the learning rate one per parameter.
        """
        parameters = network.parameters
        for rule in fields(self):
            shape = getattr(self, rule.name).shape
            if shape not in ((), network.lanes) and not (rule.name == "learning_rate" and shape == parameters.shape):
                raise ValueError(f"{rule.name} has shape {shape}, it must be () or {network.lanes}, one a lane")
        moments = [np.zeros_like(parameters) for _ in range(self.moments)]
        if not self.weight_decay.any():
            return State(moments)
        decays = network.layout.is_weight & (_column(self.weight_decay, parameters.dtype) > 0)
        return State(moments, np.broadcast_to(decays, parameters.shape))

    def update(self, parameters: Array, gradient: Array, state: State, factor: float = 1.0) -> None:
        """Update `parameters` (..., P) in place, with `gradient` (..., P).

        factor: the schedule's factor on the learning rate at this update.
        """
        state.updates += 1
        if self.varies or state.factor != factor:
            state.factor, numbers = factor, self.numbers(factor, state.updates, parameters)
            if not state.numbers:
                state.numbers = [np.array(number) for number in numbers]
            for number, value in zip(state.numbers, numbers, strict=True):
                number[...] = value
        if not replay_is_on():
            self._apply(parameters, gradient, state.moments, state.numbers, state.decays)
            return
        if state.replay is None or parameters is not state.parameters or gradient is not state.gradient:
            state.parameters, state.gradient, tape = parameters, gradient, Tape()
            theta, g, *moments = (tape.watch(array) for array in (parameters, gradient, *state.moments))
            self._apply(theta, g, moments, [tape.watch(number) for number in state.numbers], state.decays)
            state.replay = Replay(tape, [])
        state.replay()

    def _apply(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array], decays: Array | None) -> None:
        """Overwrite theta and the moments with the new ones."""
        if decays is not None:
            # A lane without weight decay keeps the exact bits of its gradient.
            g = np.where(decays, g + _column(self.weight_decay, theta.dtype) * theta, g)
        for old, new in zip((theta, *moments), self.step(theta, g, moments, numbers), strict=True):
            old[...] = new


def _column(values: Array, dtype: np.dtype) -> Array:
    """Return a hyperparameter as an array that broadcasts over the flat vectors, () or (lanes, 1)."""
    return values.astype(dtype)[..., None] if values.ndim else np.array(values, dtype)


class GradientDescent(Optimizer):
    """theta := theta - alpha g"""

    def step(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array]) -> tuple[Array, ...]:
        """See the class."""
        (alpha,) = numbers
        return (theta - alpha * g,)


@dataclass(frozen=True, eq=False)
class Momentum(Optimizer):
    """v := mu v - alpha g;  theta := theta + v  (Polyak 1964; as in Sutskever et al. 2013, equations 1 and 2)

    momentum: mu, 0 <= mu < 1.
    """

    momentum: Any = 0.9

    moments = 1

    def step(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array]) -> tuple[Array, ...]:
        """See the class."""
        (v,), (alpha,) = moments, numbers
        v = _column(self.momentum, theta.dtype) * v - alpha * g
        return theta + v, v

    def largest_stable_curvature(self) -> Array:
        """(2 + 2 mu) / alpha"""
        return (2 + 2 * self.momentum) / self.learning_rate


class Nesterov(Momentum):
    """v := mu v - alpha g;  theta := theta + mu v - alpha g  (Nesterov 1983, in the variables of Bengio et al. 2013)"""

    def step(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array]) -> tuple[Array, ...]:
        """See the class."""
        (v,), (alpha,), mu = moments, numbers, _column(self.momentum, theta.dtype)
        step = alpha * g
        v = mu * v - step
        return theta - step + mu * v, v

    def largest_stable_curvature(self) -> Array:
        """(2 + 2 mu) / ((1 + 2 mu) alpha)"""
        return (2 + 2 * self.momentum) / ((1 + 2 * self.momentum) * self.learning_rate)


@dataclass(frozen=True, eq=False)
class Adam(Optimizer):
    """Kingma and Ba 2015, algorithm 1, at update t = 1, 2, ...:

    m := beta_1 m + (1 - beta_1) g          v := beta_2 v + (1 - beta_2) g^2
    theta := theta - alpha (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)
    """

    beta_1: Any = 0.9
    beta_2: Any = 0.999
    epsilon: Any = 1e-8

    moments = 2
    varies = scale_free = True

    def numbers(self, factor: float, t: int, theta: Array) -> list[Array]:
        """alpha / (1 - beta_1^t), 1 - beta_2^t, epsilon"""
        (alpha,) = super().numbers(factor, t, theta)
        correction_1, correction_2 = self._corrections(t, theta.dtype)
        return [alpha / correction_1, correction_2, _column(self._epsilon(t), theta.dtype)]

    def _corrections(self, t: int, dtype: np.dtype) -> tuple[Array, Array]:
        """Return 1 - beta_1^t and 1 - beta_2^t. m and v are too small by these factors, since they begin at 0."""
        return _column(1 - self.beta_1**t, dtype), _column(1 - self.beta_2**t, dtype)

    def _epsilon(self, t: int) -> Array:
        return self.epsilon

    def step(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array]) -> tuple[Array, ...]:
        """See the class."""
        (m, v), (alpha, correction_2, epsilon) = moments, numbers
        beta_1, new_1, beta_2, new_2 = (
            _column(beta, theta.dtype) for beta in (self.beta_1, 1 - self.beta_1, self.beta_2, 1 - self.beta_2)
        )
        m = beta_1 * m + new_1 * g
        v = beta_2 * v + g * g * new_2
        return theta - m / (np.sqrt(v / correction_2) + epsilon) * alpha, m, v

    def preconditioner(self, state: State) -> Array:
        """(1 - beta_1^t) (sqrt(v / (1 - beta_2^t)) + epsilon), after t updates; nan before the first."""
        v, t = state.moments[1], state.updates
        correction_1, correction_2 = self._corrections(t, v.dtype)
        return correction_1 * (np.sqrt(v / correction_2) + _column(self._epsilon(t), v.dtype))

    def largest_stable_curvature(self) -> Array:
        """(2 + 2 beta_1) / ((1 - beta_1) alpha)"""
        return (2 + 2 * self.beta_1) / ((1 - self.beta_1) * self.learning_rate)


@dataclass(frozen=True, eq=False)
class RMSProp(Optimizer):
    """v := rho v + (1 - rho) g^2;  theta := theta - alpha g / (sqrt(v) + epsilon)  (Tieleman and Hinton 2012, lecture 6.5)

    rho: 0 <= rho < 1. epsilon: above 0.
    """

    rho: Any = 0.9
    epsilon: Any = 1e-8

    moments = 1
    scale_free = True

    def step(self, theta: Array, g: Array, moments: Sequence[Array], numbers: Sequence[Array]) -> tuple[Array, ...]:
        """See the class."""
        (v,), (alpha,) = moments, numbers
        rho, new, epsilon = (_column(number, theta.dtype) for number in (self.rho, 1 - self.rho, self.epsilon))
        v = rho * v + new * (g * g)
        return theta - alpha * g / (np.sqrt(v) + epsilon), v

    def preconditioner(self, state: State) -> Array:
        """sqrt(v) + epsilon"""
        (v,) = state.moments
        return np.sqrt(v) + _column(self.epsilon, v.dtype)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "gradient_descent": GradientDescent,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "rmsprop": RMSProp,
}


def optimizer_named(name: str) -> type[Optimizer]:
    """Return the rule of that name. Raises ValueError with the allowed names where it is unknown."""
    return choice("optimizer", name, OPTIMIZERS)
