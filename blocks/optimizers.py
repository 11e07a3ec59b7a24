"""Optimizers on the flat parameter vector, each the published update rule.

`state = optimizer.start(network)` makes what a rule carries from update to update; `optimizer.update(parameters,
gradient, state, factor)` makes one update in place. Every hyperparameter is a number, or an array with one a lane; the
learning rate may be one a parameter, too.
The gradient is left unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from blocks.arrays import Array, check_number, choice
from blocks.network import Network

# Numbers that an update goes through at a time, so that it needs room for no more; with a quarter of it an update of 130,000
# parameters takes a third longer.
PART = 262144

ALLOWED: dict[str, dict[str, float]] = {
    "learning_rate": {"above": 0},
    "weight_decay": {"at_least": 0},
    "momentum": {"at_least": 0, "below": 1},
    "beta_1": {"at_least": 0, "below": 1},
    "beta_2": {"at_least": 0, "below": 1},
    "epsilon": {"above": 0},
}


@dataclass
class State:
    """What an optimizer carries: its moments, the count of its updates, room to compute in.

    decays: (..., P) bool, where weight decay is; None without any.
    decayed: room for the gradient with its decay.
    alpha: the learning rate times the last update's `factor`.
    """

    moments: list[Array]
    scratch: Array
    decays: Array | None = None
    decayed: Array | None = None
    updates: int = 0
    factor: float = np.nan
    alpha: Any = None

    def take(self, lanes: Array) -> "State":
        """The state of some lanes alone."""
        return self._each(lambda array: array[lanes], lambda room: np.empty_like(room[lanes]))

    def part(self, place: slice) -> "State":
        """The state of a part of every flat vector."""
        return self._each(lambda array: array[..., place], lambda room: room[..., : place.stop - place.start])

    def _each(self, of: Callable[[Array], Array], room_of: Callable[[Array], Array]) -> "State":
        decays = None if self.decays is None else of(self.decays)
        decayed = None if self.decayed is None else room_of(self.decayed)
        return State([of(moment) for moment in self.moments], room_of(self.scratch), decays, decayed, self.updates)


@dataclass(frozen=True, eq=False)
class Optimizer:
    """What every rule has.

    learning_rate: alpha > 0; (..., P) where every parameter has its own, see `Layout.of_blocks`.
    weight_decay: lambda >= 0, L2 on W and not on b: the rule sees dW + lambda W.
    Raises ValueError for a value out of range.
    """

    learning_rate: Any
    weight_decay: Any = field(default=0.0, kw_only=True)

    moments = 0
    decays = False

    def __post_init__(self) -> None:
        for rule in fields(self):
            check_number(rule.name, getattr(self, rule.name), **ALLOWED[rule.name])
            object.__setattr__(self, rule.name, np.asarray(getattr(self, rule.name), dtype=np.float64))
        object.__setattr__(self, "decays", bool(self.weight_decay.any()))

    def take(self, lanes: Array, of: tuple[int, ...]) -> "Optimizer":
        """The optimizer of some lanes alone, of those with shape `of`; they are counted along one axis, whatever their shape."""
        axes = len(of)

        def taken(value: Array) -> Array:
            return value.reshape(-1, *value.shape[axes:])[lanes] if axes and value.ndim else value

        return replace(self, **{f.name: taken(getattr(self, f.name)) for f in fields(self)})

    def start(self, network: Network) -> State:
        """The state before the first update; raises ValueError where there is not one value, or one a lane."""
        whole = network.parameters.shape
        for rule in fields(self):
            shape = getattr(self, rule.name).shape
            if shape not in ((), network.lanes) and not (rule.name == "learning_rate" and shape == whole):
                raise ValueError(f"{rule.name} has shape {shape}, it must be () or {network.lanes}, one a lane")
        parameters = network.parameters
        moments = [np.zeros_like(parameters) for _ in range(self.moments)]
        scratch = np.empty((*network.lanes, min(_length(parameters), parameters.shape[-1])), parameters.dtype)
        if not self.decays:
            return State(moments, scratch)
        decays = network.layout.is_weight & (_column(self.weight_decay, parameters.dtype) > 0)
        return State(moments, scratch, np.broadcast_to(decays, parameters.shape), np.empty_like(scratch))

    def update(self, parameters: Array, gradient: Array, state: State, factor: float = 1.0) -> None:
        """One update of `parameters` (..., P) by `gradient` (..., P), in place.

        factor: what a schedule makes of the learning rate at this update.
        """
        state.updates += 1
        if state.factor != factor:
            state.factor, state.alpha = factor, self._alpha(factor, parameters)
        alpha = state.alpha
        size, length = parameters.shape[-1], state.scratch.shape[-1]
        if length == size:
            self._update(parameters, gradient, state, alpha)
            return
        for start in range(0, size, length):
            place = slice(start, min(start + length, size))
            own = alpha[..., place] if alpha.shape == parameters.shape else alpha
            self._update(parameters[..., place], gradient[..., place], state.part(place), own)

    def _alpha(self, factor: float, parameters: Array) -> Array:
        rate = self.learning_rate * factor
        return rate.astype(parameters.dtype) if rate.shape == parameters.shape else _column(rate, parameters.dtype)

    def _update(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        if state.decays is not None:
            gradient = self._decayed(parameters, gradient, state)
        self._step(parameters, gradient, state, alpha)

    def _decayed(self, parameters: Array, gradient: Array, state: State) -> Array:
        """dW + lambda W on W, db on b, lane by lane: a lane without decay keeps its gradient's very bits."""
        assert state.decays is not None
        assert state.decayed is not None
        np.copyto(state.decayed, gradient)
        np.multiply(_column(self.weight_decay, parameters.dtype), parameters, state.scratch)
        np.add(gradient, state.scratch, out=state.decayed, where=state.decays)
        return state.decayed

    def _step(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        raise NotImplementedError


def _length(parameters: Array) -> int:
    """Numbers of each lane in a part."""
    return max(1, PART * parameters.shape[-1] // parameters.size)


def _column(values: Array, dtype: np.dtype) -> Array:
    """A hyperparameter as an array that broadcasts over the flat vectors: () or (lanes, 1)."""
    return values.astype(dtype)[..., None] if values.ndim else dtype.type(values)


class GradientDescent(Optimizer):
    """theta := theta - alpha g"""

    def _step(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        parameters -= np.multiply(alpha, gradient, state.scratch)


@dataclass(frozen=True, eq=False)
class Momentum(Optimizer):
    """v := mu v - alpha g;  theta := theta + v  (Polyak 1964; as in Sutskever et al. 2013, equations 1 and 2)

    momentum: mu, 0 <= mu < 1.
    """

    momentum: Any = 0.9

    moments = 1

    def _step(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        (velocity,) = state.moments
        velocity *= _column(self.momentum, parameters.dtype)
        velocity -= np.multiply(alpha, gradient, state.scratch)
        parameters += velocity


class Nesterov(Momentum):
    """v := mu v - alpha g;  theta := theta + mu v - alpha g  (Nesterov 1983, in the variables of Bengio et al. 2013)"""

    def _step(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        (velocity,) = state.moments
        mu = _column(self.momentum, parameters.dtype)
        velocity *= mu
        step = np.multiply(alpha, gradient, state.scratch)
        velocity -= step
        parameters -= step
        parameters += np.multiply(mu, velocity, state.scratch)


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

    def _step(self, parameters: Array, gradient: Array, state: State, alpha: Array) -> None:
        first, second = state.moments
        dtype, scratch = parameters.dtype, state.scratch
        beta_1, beta_2 = self.beta_1, self.beta_2
        first *= _column(beta_1, dtype)
        first += np.multiply(_column(1 - beta_1, dtype), gradient, scratch)
        second *= _column(beta_2, dtype)
        np.multiply(gradient, gradient, scratch)
        scratch *= _column(1 - beta_2, dtype)
        second += scratch
        np.divide(second, _column(1 - beta_2**state.updates, dtype), scratch)
        np.sqrt(scratch, scratch)
        scratch += _column(self.epsilon, dtype)
        np.divide(first, scratch, scratch)
        scratch *= alpha / _column(1 - beta_1**state.updates, dtype)
        parameters -= scratch


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "gradient_descent": GradientDescent,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
}


def optimizer_named(name: str) -> type[Optimizer]:
    """The rule of that name; raises ValueError with the list of names."""
    return choice("optimizer", name, OPTIMIZERS)
