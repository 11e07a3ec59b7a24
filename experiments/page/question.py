"""The question of a sweep, and the command that trains it again; both are derived from its configs alone."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from experiments.run.composition import CONF
from experiments.run.config import Config
from experiments.run.naming import differing_keys, flatten, flatten_values

SEED, DATASET, LOADER = "seed", "dataset.name", "dataset.loader."
# A command omits these keys: they say where the record goes, and what is done with an earlier one.
OMITTED_KEYS = ("tracking.uri", "tracking.experiment", "tracking.register", "sweep.resume", "sweep.stale")
# Keys that are swept together have at most so many values: those of a search, one for each run, would fill the page.
MAX_GROUP_VALUES = 36


def find_question(configs: Sequence[Config]) -> str:
    """Return the first line of the preset to which the sweep belongs; "" where there is none.

    A sweep belongs to a preset where every run has the values that the preset fixes, and where it sweeps exactly the preset's
    axes, over two or more of their values. The seeds do not count.
    """
    runs = [flatten(config) for config in configs]
    swept_keys = set(differing_keys(runs)) - {SEED}
    for text, axes, fixed in _presets():
        values_by_axis = [{tuple(str(run.get(key)) for key in keys) for run in runs} for keys, _ in axes]
        is_subset = all(
            len(values) > 1 and values <= preset_values for values, (_, preset_values) in zip(values_by_axis, axes, strict=True)
        )
        is_covered = swept_keys <= {key for keys, _ in axes for key in keys}
        if is_subset and is_covered and all(run.get(key) == value for run in runs for key, value in fixed.items()):
            return text
    return ""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """OmegaConf's loader, based on libyaml where it is installed: it reads the same values in a tenth of the time."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


# The keys of an axis, several for a group, and the set of their values as text.
AxisValues = tuple[tuple[str, ...], set[tuple[str, ...]]]


def _presets() -> Iterator[tuple[str, list[AxisValues], dict[str, Any]]]:
    """Yield (first line, axes, fixed values) of the files in conf/experiment, without the axis of the seeds."""
    for file in sorted(Path(CONF, "experiment").glob("*.yaml")):
        content = file.read_text(encoding="utf-8")
        text, values = content.splitlines()[1].removeprefix("# "), yaml.load(content, _Loader)
        params = values.pop("hydra")["sweeper"]["params"]
        axes = [_axis(DATASET if key == "dataset" else key, str(axis)) for key, axis in params.items() if key != SEED]
        defaults = {key: name for default in values.pop("defaults", []) for key, name in default.items()}
        fixed = flatten_values(values)
        if "override /dataset" in defaults:
            fixed[DATASET] = defaults["override /dataset"]
        yield text, axes, fixed


def _axis(key: str, axis: str) -> AxisValues:
    """Return the keys and values of an axis.

    Examples are `network.depth` with "2,5", and `network` with "{activation: relu, gain: 2.0},{activation: tanh, gain: 1.0}".
    """
    if not axis.startswith("{"):
        return (key,), {(value,) for value in axis.split(",")}
    groups: Any = OmegaConf.to_container(OmegaConf.create(f"[{axis}]"))
    return tuple(f"{key}.{name}" for name in groups[0]), {tuple(map(str, group.values())) for group in groups}


def train_command(configs: Sequence[Config]) -> str:
    """Return the `experiments.train` command of a sweep, or of one run.

    It is "" where the runs are not a full grid of the axes' values, and where a data set's loader has other arguments than in its
    file in conf/dataset.
    """
    runs, defaults = [flatten(config) for config in configs], flatten(Config())
    # One run of each data set is checked, since a check takes OmegaConf milliseconds.
    loaders = {str([value for key, value in run.items() if key.startswith("dataset.")]): run for run in runs}
    if not all(_has_own_loader(run) for run in loaders.values()):
        return ""
    columns = {key: [_hydra_text(run[key]) for run in runs] for key in runs[0] if not key.startswith((LOADER, *OMITTED_KEYS))}
    axes = {axis: _combinations(axis, columns) for axis in _axes(columns)}
    if math.prod(map(len, axes.values())) != len(runs):
        return ""
    default_values = {axis: [tuple(_hydra_text(defaults.get(key)) for key in axis)] for axis in axes}
    arguments = [_argument(axis, values) for axis, values in axes.items() if values != default_values[axis]]
    sweep_arguments = ["-m", "~experiment"] if len(runs) > 1 else []
    return shlex.join(["python", "-m", "experiments.train", *sweep_arguments, *arguments])


# Maps each key to its value in every run, as Hydra reads it.
Columns = Mapping[str, Sequence[str]]


def _axes(columns: Columns) -> list[tuple[str, ...]]:
    """Return the axes: one key each, or several keys of one group that do not have every combination of their values."""
    axes: list[tuple[str, ...]] = []
    for key, values in columns.items():
        group_axes = [axis for axis in axes if _group(key) == _group(axis[0]) != ""] if len(set(values)) > 1 else []
        for axis in group_axes:
            count = len(_combinations((*axis, key), columns))
            if count < len(set(values)) * len(_combinations(axis, columns)) and count <= MAX_GROUP_VALUES:
                axes[axes.index(axis)] = *axis, key
                break
        else:
            axes.append((key,))
    return axes


def _group(key: str) -> str:
    """Return the group of a key: `network` for `network.depth`, "" for a key without a group."""
    return "" if key == DATASET else key.rpartition(".")[0]


def _combinations(axis: Sequence[str], columns: Columns) -> list[tuple[str, ...]]:
    """Return the combinations of values that the axis's keys have in the runs."""
    return list(dict.fromkeys(zip(*(columns[key] for key in axis), strict=True)))


def _argument(axis: Sequence[str], values: Sequence[Sequence[str]]) -> str:
    """Return an axis as `network.depth=2,5`, or `network={activation: relu, gain: 2.0},{activation: tanh, gain: 1.0}`."""
    if len(axis) == 1:
        return f"{'dataset' if axis[0] == DATASET else axis[0]}={','.join(value for (value,) in values)}"
    names = [key.rpartition(".")[2] for key in axis]
    groups = (", ".join(f"{name}: {value}" for name, value in zip(names, group_values, strict=True)) for group_values in values)
    return f"{_group(axis[0])}={','.join(f'{{{group}}}' for group in groups)}"


def _hydra_text(value: Any) -> str:
    """Return the value as text that Hydra reads as this value."""
    if value is None or isinstance(value, bool | list):
        return json.dumps(value)
    return "inf" if isinstance(value, float) and math.isinf(value) else str(value)


def _has_own_loader(run: dict[str, Any]) -> bool:
    """Return whether the loader of the run's data set is the one in the data set's file."""
    file = Path(CONF, "dataset", f"{run[DATASET]}.yaml")
    if not file.is_file():
        return False
    values = OmegaConf.merge({"dataset": {"seed": run["dataset.seed"]}}, {"dataset": OmegaConf.load(file)})
    file_values = flatten_values(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
    return all(run.get(key) == file_values.get(key) for key in run.keys() | file_values if key.startswith(LOADER))
