"""What a search draws from: the axes of a sweep, each a list of values or an interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra_plugins.depth_laboratory._axes import axes_of
from hydra_plugins.depth_laboratory._composer import Composer
from omegaconf import DictConfig, IntegerNode
from omegaconf._impl import select_node

# Of a number that is drawn: what a table and the dashboard show is then what was trained.
DIGITS = 6


@dataclass(frozen=True)
class Axis:
    """A key, and either its values as Hydra writes them, or the interval from low to high; whole: of whole numbers alone."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> str:
        """The value below which lies that share, 0 to below 1, of the axis: of its logarithm where `log`."""
        if self.values:
            return self.values[int(share * len(self.values))]
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = math.exp(math.log(low) + share * math.log(high / low)) if self.log else low + share * (high - low)
        return self.written(math.floor(value) if self.whole else value)

    def written(self, value: float) -> str:
        """A value of the interval as an override has it."""
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def ends(self) -> Sequence[str]:
        """Its values, or the ends of its interval."""
        return self.values or [self.written(self.low), self.written(self.high)]


@dataclass(frozen=True)
class Space:
    """The axes, and the overrides that every job has."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    def job(self, values: Sequence[str]) -> list[str]:
        """The overrides of the job with a value of each axis."""
        return [*self.fixed, *(f"{axis.key}={value}" for axis, value in zip(self.axes, values, strict=True))]

    def ends(self) -> list[list[str]]:
        """A job for each end of every axis, the others at their first."""
        first = [axis.ends()[0] for axis in self.axes]
        return [self.job([*first[:k], end, *first[k + 1 :]]) for k, axis in enumerate(self.axes) for end in axis.ends()]


def space_of(composer: Composer, params: Mapping[str, str], typed: Sequence[Override]) -> Space:
    """The space of `hydra.sweeper.params` and of what was typed; raises HydraException for an axis that cannot be drawn from."""
    overrides = axes_of(composer, params, typed)
    axes = tuple(_axis(override, composer.master) for override in overrides if override.is_sweep_override())
    if not axes:
        raise HydraException("there is nothing to search: no key has several values, or an interval")
    fixed = [f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in overrides if not each.is_sweep_override()]
    return Space(axes, tuple(fixed))


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
    whole = "int" in tags or (isinstance(low, int) and isinstance(high, int))
    if whole and not (float(low).is_integer() and float(high).is_integer()):
        raise HydraException(f"{override.input_line} is of whole numbers, its ends must be, too")
    if not whole and isinstance(select_node(config, key, throw_on_resolution_failure=False), IntegerNode):
        asked = f"{override.input_line}".partition("=")[2]
        raise HydraException(f"{override.input_line} has values that are not whole, as {key} must be: {key}=int({asked})")
    return Axis(key, low=float(low), high=float(high), log="log" in tags, whole=whole)
