"""Optimizers on the flat parameter vector, each the published update rule.

`state = optimizer.start(network)` makes what a rule carries from update to update; `optimizer.update(parameters,
gradient, state, factor)` makes one update in place. Every hyperparameter is a number, or an array with one a lane; the
learning rate may be one a parameter, too.
The gradient is left unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from blocks.arrays import PART, Array, Call, check_number, choice
from blocks.network import Network
from blocks.program import program

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
    """What an optimizer carries from update to update, and the update itself, as calls.

    moments: (..., P) each.
    scratch: (..., numbers of a part) room to compute in.
    decays: (..., P) bool, where weight decay is; None without any.
    decayed: room for the gradient with its decay.
    updates: how many were made.
    parameters, gradient: (..., P) what `calls` updates, and by what.
    numbers: what the calls multiply by, see `Optimizer._numbers`; factor: the schedule's, with which they were made.
    """

    moments: list[Array]
    scratch: Array
    decays: Array | None = None
    decayed: Array | None = None
    updates: int = 0
    parameters: Array = field(default_factory=lambda: np.empty(0))
    gradient: Array = field(default_factory=lambda: np.empty(0))
    numbers: tuple[Array, ...] = ()
    factor: float = np.nan
    calls: Sequence[Call] = ()

    def take(self, lanes: Array) -> "State":
        """The state of some lanes alone."""
        decays = None if self.decays is None else self.decays[lanes]
        decayed = None if self.decayed is None else np.empty_like(self.decayed[lanes])
        moments = [moment[lanes] for moment in self.moments]
        return State(moments, np.empty_like(self.scratch[lanes]), decays, decayed, self.updates)

    def part(self, place: slice) -> "State":
        """Views of what belongs to a part of the parameters."""
        length = place.stop - place.start
        return State(
            [moment[..., place] for moment in self.moments],
            self.scratch[..., :length],
            None if self.decays is None else self.decays[..., place],
            None if self.decayed is None else self.decayed[..., :length],
            self.updates,
            self.parameters[..., place],
            self.gradient[..., place],
            tuple(number[..., place] if number.shape == self.parameters.shape else number for number in self.numbers),
        )

    def __reduce__(self) -> tuple[type["State"], tuple[Any, ...]]:
        # A copy's calls would be the original's.
        return State, (self.moments, self.scratch, self.decays, self.decayed, self.updates)


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
    # Whether the numbers are others at every update.
    varies = False

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
        if parameters is not state.parameters or gradient is not state.gradient:
            self._bind(parameters, gradient, state)
        if self.varies or state.factor != factor:
            state.factor = factor
            for number, value in zip(state.numbers, self._numbers(factor, state), strict=True):
                number[...] = value
        for call in state.calls:
            call()

    def _bind(self, parameters: Array, gradient: Array, state: State) -> None:
        state.parameters, state.gradient, state.factor = parameters, gradient, np.nan
        state.numbers = tuple(np.array(number) for number in self._numbers(1.0, state))
        size, length = parameters.shape[-1], state.scratch.shape[-1]
        calls: list[Call] = []
        for start in range(0, size, length):
            part = state.part(slice(start, min(start + length, size)))
            calls += [*self._decay_calls(part), *self._calls(part)]
        state.calls = program(calls)

    def _numbers(self, factor: float, state: State) -> tuple[Array, ...]:
        """What an update multiplies by, broadcasting over the parameters: here alpha, the learning rate times the factor."""
        rate, parameters = self.learning_rate * factor, state.parameters
        return (rate.astype(parameters.dtype) if rate.shape == parameters.shape else _column(rate, parameters.dtype),)

    def _decay_calls(self, state: State) -> list[Call]:
        """dW + lambda W on W, db on b, lane by lane: a lane without decay keeps its gradient's very bits."""
        if state.decays is None or state.decayed is None:
            return []
        gradient, state.gradient = state.gradient, state.decayed
        return [
            partial(np.copyto, state.decayed, gradient),
            partial(np.multiply, _column(self.weight_decay, gradient.dtype), state.parameters, state.scratch),
            partial(np.add, gradient, state.scratch, out=state.decayed, where=state.decays),
        ]

    def _calls(self, state: State) -> list[Call]:
        raise NotImplementedError


def _length(parameters: Array) -> int:
    """Numbers of each lane in a part."""
    return max(1, PART * parameters.shape[-1] // parameters.size)


def _column(values: Array, dtype: np.dtype) -> Array:
    """A hyperparameter as an array that broadcasts over the flat vectors: () or (lanes, 1)."""
    return values.astype(dtype)[..., None] if values.ndim else np.array(values, dtype)


class GradientDescent(Optimizer):
    """theta := theta - alpha g"""

    def _calls(self, state: State) -> list[Call]:
        theta, g, step, (alpha,) = state.parameters, state.gradient, state.scratch, state.numbers
        return [partial(np.multiply, alpha, g, step), partial(np.subtract, theta, step, theta)]


@dataclass(frozen=True, eq=False)
class Momentum(Optimizer):
    """v := mu v - alpha g;  theta := theta + v  (Polyak 1964; as in Sutskever et al. 2013, equations 1 and 2)

    momentum: mu, 0 <= mu < 1.
    """

    momentum: Any = 0.9

    moments = 1

    def _calls(self, state: State) -> list[Call]:
        theta, g, step, (alpha,), (v,) = state.parameters, state.gradient, state.scratch, state.numbers, state.moments
        return [
            partial(np.multiply, v, _column(self.momentum, theta.dtype), v),
            partial(np.multiply, alpha, g, step),
            partial(np.subtract, v, step, v),
            partial(np.add, theta, v, theta),
        ]


class Nesterov(Momentum):
    """v := mu v - alpha g;  theta := theta + mu v - alpha g  (Nesterov 1983, in the variables of Bengio et al. 2013)"""

    def _calls(self, state: State) -> list[Call]:
        theta, g, step, (alpha,), (v,) = state.parameters, state.gradient, state.scratch, state.numbers, state.moments
        mu = _column(self.momentum, theta.dtype)
        return [
            partial(np.multiply, v, mu, v),
            partial(np.multiply, alpha, g, step),
            partial(np.subtract, v, step, v),
            partial(np.subtract, theta, step, theta),
            partial(np.multiply, mu, v, step),
            partial(np.add, theta, step, theta),
        ]


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
    varies = True

    def _numbers(self, factor: float, state: State) -> tuple[Array, ...]:
        """alpha / (1 - beta_1^t), 1 - beta_2^t, epsilon"""
        t, dtype = state.updates, state.parameters.dtype
        (alpha,) = super()._numbers(factor, state)
        numbers = 1 - self.beta_1**t, 1 - self.beta_2**t, self._epsilon(t)
        rest_1, rest_2, epsilon = (_column(number, dtype) for number in numbers)
        return alpha / rest_1, rest_2, epsilon

    def _epsilon(self, t: int) -> Array:
        return self.epsilon

    def _calls(self, state: State) -> list[Call]:
        theta, g, step, (m, v) = state.parameters, state.gradient, state.scratch, state.moments
        (alpha, rest, epsilon), dtype = state.numbers, theta.dtype
        return [
            partial(np.multiply, m, _column(self.beta_1, dtype), m),
            partial(np.multiply, _column(1 - self.beta_1, dtype), g, step),
            partial(np.add, m, step, m),
            partial(np.multiply, v, _column(self.beta_2, dtype), v),
            partial(np.multiply, g, g, step),
            partial(np.multiply, step, _column(1 - self.beta_2, dtype), step),
            partial(np.add, v, step, v),
            partial(np.divide, v, rest, step),
            partial(np.sqrt, step, step),
            partial(np.add, step, epsilon, step),
            partial(np.divide, m, step, step),
            partial(np.multiply, step, alpha, step),
            partial(np.subtract, theta, step, theta),
        ]


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "gradient_descent": GradientDescent,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
}


def optimizer_named(name: str) -> type[Optimizer]:
    """The rule of that name; raises ValueError with the list of names."""
    return choice("optimizer", name, OPTIMIZERS)
