"""The space of a search: axes, each of which is a list of values or an interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra_plugins.depth_laboratory._axes import search_axes
from hydra_plugins.depth_laboratory._composer import Composer
from omegaconf import DictConfig, IntegerNode
from omegaconf._impl import select_node

# A random number is rounded to so many significant digits, so that a table and the dashboard show exactly what was trained.
DIGITS = 6


@dataclass(frozen=True)
class Axis:
    """A key with a list of values, or with the interval from `low` to `high`.

    values: as Hydra writes them, empty for an interval. log: whether the logarithm is drawn evenly. is_integer: whether the
    interval has integers alone.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    is_integer: bool = False

    def value_at(self, quantile: float) -> str:
        """Return the value at that quantile, 0 <= quantile < 1, of the axis's uniform distribution (log-uniform with `log`)."""
        if self.values:
            return self.values[int(quantile * len(self.values))]
        low, high = (self.low, self.high + 1) if self.is_integer else (self.low, self.high)
        value = math.exp(math.log(low) + quantile * math.log(high / low)) if self.log else low + quantile * (high - low)
        return self.as_override(math.floor(value) if self.is_integer else value)

    def as_override(self, value: float) -> str:
        """Return a value of the interval as text for an override."""
        if self.is_integer:
            return str(int(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def end_values(self) -> Sequence[str]:
        """Return the values of the axis, or the two ends of its interval."""
        return self.values or [self.as_override(self.low), self.as_override(self.high)]


@dataclass(frozen=True)
class Space:
    """The axes of a search, and the overrides that all of its jobs have."""

    axes: tuple[Axis, ...]
    fixed_overrides: tuple[str, ...]

    def job(self, values: Sequence[str]) -> list[str]:
        """Return the overrides of a job. values: one for each axis."""
        return [*self.fixed_overrides, *(f"{axis.key}={value}" for axis, value in zip(self.axes, values, strict=True))]

    def end_jobs(self) -> list[list[str]]:
        """Return a job for each end value of every axis, in which the other axes have their first value."""
        first = [axis.end_values()[0] for axis in self.axes]
        return [self.job([*first[:k], end, *first[k + 1 :]]) for k, axis in enumerate(self.axes) for end in axis.end_values()]


def create_space(composer: Composer, params: Mapping[str, str], typed_overrides: Sequence[Override]) -> Space:
    """Create the space of `hydra.sweeper.params` and the typed overrides; raises HydraException for an invalid axis."""
    overrides = search_axes(composer, params, typed_overrides)
    axes = tuple(_axis(override, composer.master) for override in overrides if override.is_sweep_override())
    if not axes:
        raise HydraException("there is nothing to search: no key has several values, or an interval")
    fixed_overrides = [
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in overrides
        if not override.is_sweep_override()
    ]
    return Space(axes, tuple(fixed_overrides))


def _axis(override: Override, config: DictConfig) -> Axis:
    key = override.get_key_element()
    if override.is_discrete_sweep():
        if not (values := tuple(override.sweep_string_iterator())):
            raise HydraException(f"{override.input_line} has no value")
        return Axis(key, values)
    interval: Any = override.value()
    low, high, tags = interval.start, interval.end, interval.tags
    if unknown := tags - {"log", "int"}:
        raise HydraException(f"{override.input_line} has the tag {min(unknown)!r}, allowed: log, int")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise HydraException(f"{override.input_line} must be an interval from a smaller number to a larger one")
    if "log" in tags and low <= 0:
        raise HydraException(f"{override.input_line} begins at {low:g}: an interval with the tag log must begin above 0")
    # As with Hydra's own Optuna sweeper: int(interval(2, 33)).
    is_integer = "int" in tags or (isinstance(low, int) and isinstance(high, int))
    if is_integer and not (float(low).is_integer() and float(high).is_integer()):
        raise HydraException(f"{override.input_line} is of whole numbers, its ends must be, too")
    if not is_integer and isinstance(select_node(config, key, throw_on_resolution_failure=False), IntegerNode):
        interval = f"{override.input_line}".partition("=")[2]
        raise HydraException(f"{override.input_line} has values that are not whole, as {key} must be: {key}=int({interval})")
    return Axis(key, low=float(low), high=float(high), log="log" in tags, is_integer=is_integer)
