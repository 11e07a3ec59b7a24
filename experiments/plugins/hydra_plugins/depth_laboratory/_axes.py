"""The axes of a sweep, and the jobs that they span."""

from collections.abc import Mapping, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra_plugins.depth_laboratory._composer import Composer

# The config group of the presets, whose `hydra.sweeper.params` are axes.
PRESETS = "experiment"


def span(composer: Composer, params: Mapping[str, str], typed_overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of every job: all combinations of the values of `hydra.sweeper.params` and the typed overrides.

    This is what Hydra's basic sweeper does, with two additions. Where a group is swept and one of its options has its own
    `hydra.sweeper.params`, each option spans the jobs of its own params, one option after the other. Where the user has typed
    an axis and no preset, the axes of the default preset are left out.

    params: `hydra.sweeper.params`, key -> values, separated by commas. typed_overrides: those of the command line.
    """
    params, removals = _sweeper_params(composer, params, typed_overrides)
    return _span_options(composer, params, typed_overrides, removals)


def search_axes(composer: Composer, params: Mapping[str, str], typed_overrides: Sequence[Override]) -> list[Override]:
    """Return the axes of a search, and its overrides with one value. The arguments are those of `span`.

    Raises HydraException where several presets are typed.
    """
    for override in typed_overrides:
        if override.key_or_group == PRESETS and override.is_sweep_override():
            raise HydraException(f"{override.input_line} is of several presets, of which a search has one")
    params, _ = _sweeper_params(composer, params, typed_overrides)
    return _merge_axes(composer, params, typed_overrides)


def _sweeper_params(
    composer: Composer, params: Mapping[str, str], typed_overrides: Sequence[Override]
) -> tuple[Mapping[str, str], Sequence[Override]]:
    """Return the params that count, and overrides that remove the default preset where the user typed axes and no preset."""
    has_typed_axes = any(override.is_sweep_override() for override in typed_overrides)
    if (
        not has_typed_axes
        or any(override.key_or_group == PRESETS for override in typed_overrides)
        or not composer.has_option(PRESETS)
    ):
        return params, []
    removals = composer.parser.parse_overrides([f"~{PRESETS}"])
    fixed_overrides = [override for override in typed_overrides if not override.is_sweep_override()]
    return _composed_params(composer, [*fixed_overrides, *removals]), removals


def _span_options(
    composer: Composer, params: Mapping[str, str], typed_overrides: Sequence[Override], removals: Sequence[Override]
) -> list[list[str]]:
    """Return the jobs as `span` does. removals: the overrides that remove the default preset, if any."""
    axes = _merge_axes(composer, params, typed_overrides)
    for axis in axes:
        if not (axis.is_sweep_override() and composer.chooses_option(axis)):
            continue
        fixed_overrides = [override for override in axes if override is axis or not override.is_sweep_override()]
        options = composer.split_sweep(axis)
        params_of_options = [
            _composed_params(composer, [option if other is axis else other for other in [*fixed_overrides, *removals]])
            for option in options
        ]
        if any(option_params != params for option_params in params_of_options):
            jobs = []
            for option, option_params in zip(options, params_of_options, strict=True):
                overrides = [option if override is axis else override for override in typed_overrides]
                if axis not in typed_overrides:
                    overrides.append(option)
                jobs += _span_options(composer, option_params, overrides, removals)
            return jobs
    for axis in axes:
        if axis.is_sweep_override() and not axis.is_discrete_sweep():
            raise HydraException(
                f"{axis.input_line} is an interval, of which a grid has no values: hydra/sweeper=random and "
                "hydra/sweeper=optuna draw from it, choice(...) and range(...) have values"
            )
    return BasicSweeper.split_arguments(axes, None)[0]


def _composed_params(composer: Composer, overrides: Sequence[Override]) -> dict[str, str]:
    """Return `hydra.sweeper.params` of the config with those overrides."""
    (job,) = BasicSweeper.split_arguments(list(overrides), None)[0]
    return {str(key): str(values) for key, values in (composer.compose(job).hydra.sweeper.params or {}).items()}


def _merge_axes(composer: Composer, params: Mapping[str, str], typed_overrides: Sequence[Override]) -> list[Override]:
    """Return all axes in their order. An axis of `params` is left out where a typed override sets the same value."""
    param_axes = composer.parser.parse_overrides([f"{key}={values}" for key, values in params.items()])
    by_key = {override.get_key_element(): override for override in typed_overrides}
    remaining_axes = [
        axis
        for axis in param_axes
        if axis.get_key_element() in by_key or not any(_set_same_value(composer, axis, override) for override in typed_overrides)
    ]
    return list(({axis.get_key_element(): axis for axis in remaining_axes} | by_key).values())


def _set_same_value(composer: Composer, axis: Override, other: Override) -> bool:
    """Return whether two overrides set the same key, or one a key within the other's.

    An override that chooses an option of a group sets no key within the group.
    """
    if axis.key_or_group == other.key_or_group:
        return True
    pairs = ((axis, other), (other, axis))
    return any(f"{a.key_or_group}".startswith(f"{b.key_or_group}.") and not composer.chooses_option(b) for a, b in pairs)
