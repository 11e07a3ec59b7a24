"""Which jobs a sweep's axes span."""

from collections.abc import Mapping, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra_plugins.depth_laboratory._composer import Composer

# The group whose options are presets: what they have in `hydra.sweeper.params` are axes.
PRESETS = "experiment"


def span(composer: Composer, params: Mapping[str, str], typed: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job: all combinations of the values of `hydra.sweeper.params` and of what was typed.

    As by Hydra's basic sweeper, and beyond it: where a group is swept and one of its options has params of its own, each
    option's jobs are those that its own params span, one option's after another's. Where an axis was typed and no preset was,
    the default preset has no axes.

    params: `hydra.sweeper.params`, key -> values, separated by commas. typed: the overrides of the command line.
    """
    params, without = _given(composer, params, typed)
    return _span(composer, params, typed, without)


def axes_of(composer: Composer, params: Mapping[str, str], typed: Sequence[Override]) -> list[Override]:
    """The axes, and the overrides that have one value, of a search: as by `span`, but of one preset alone."""
    for override in typed:
        if override.key_or_group == PRESETS and override.is_sweep_override():
            raise HydraException(f"{override.input_line} is of several presets, of which a search has one")
    params, _ = _given(composer, params, typed)
    return _give_way(composer, params, typed)


def _given(
    composer: Composer, params: Mapping[str, str], typed: Sequence[Override]
) -> tuple[Mapping[str, str], Sequence[Override]]:
    """`hydra.sweeper.params`, and the overrides that leave the default preset's out, where axes were typed and no preset."""
    replaces = any(override.is_sweep_override() for override in typed)
    if not replaces or any(override.key_or_group == PRESETS for override in typed) or not composer.has_option(PRESETS):
        return params, []
    without = composer.parser.parse_overrides([f"~{PRESETS}"])
    fixed = [override for override in typed if not override.is_sweep_override()]
    return _params(composer, [*fixed, *without]), without


def _span(
    composer: Composer, params: Mapping[str, str], typed: Sequence[Override], without: Sequence[Override]
) -> list[list[str]]:
    """As `span`. without: overrides that leave out what is to have no axes."""
    axes = _give_way(composer, params, typed)
    for axis in axes:
        if not (axis.is_sweep_override() and composer.chooses(axis)):
            continue
        fixed = [other for other in axes if other is axis or not other.is_sweep_override()]
        options = composer.split(axis)
        own = [_params(composer, [option if other is axis else other for other in [*fixed, *without]]) for option in options]
        if any(each != params for each in own):
            jobs = []
            for option, each in zip(options, own, strict=True):
                rest = [option if other is axis else other for other in typed]
                jobs += _span(composer, each, rest if axis in typed else [*rest, option], without)
            return jobs
    for axis in axes:
        if axis.is_sweep_override() and not axis.is_discrete_sweep():
            raise HydraException(
                f"{axis.input_line} is an interval, of which a grid has no values: hydra/sweeper=random and "
                "hydra/sweeper=optuna draw from it, choice(...) and range(...) have values"
            )
    return BasicSweeper.split_arguments(axes, None)[0]


def _params(composer: Composer, overrides: Sequence[Override]) -> dict[str, str]:
    """`hydra.sweeper.params` of the config with those overrides."""
    (job,) = BasicSweeper.split_arguments(list(overrides), None)[0]
    return {str(key): str(values) for key, values in (composer.compose(job).hydra.sweeper.params or {}).items()}


def _give_way(composer: Composer, params: Mapping[str, str], typed: Sequence[Override]) -> list[Override]:
    """The axes in their order, without those of `params` for whose key, or for one above or below it, something is typed."""
    given = composer.parser.parse_overrides([f"{key}={values}" for key, values in params.items()])
    by_key = {override.get_key_element(): override for override in typed}
    stays = [axis for axis in given if axis.get_key_element() in by_key or not any(_meet(composer, axis, o) for o in typed)]
    return list(({axis.get_key_element(): axis for axis in stays} | by_key).values())


def _meet(composer: Composer, axis: Override, other: Override) -> bool:
    """Whether the two set the same value, or one a value within the other's. A group's option leaves its values to others."""
    if axis.key_or_group == other.key_or_group:
        return True
    pairs = ((axis, other), (other, axis))
    return any(f"{a.key_or_group}".startswith(f"{b.key_or_group}.") and not composer.chooses(b) for a, b in pairs)
