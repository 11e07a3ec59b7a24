"""What a sweep asks, and the command that runs it again: both found in its configs alone."""

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
# What a command need not say: where the record goes, and what becomes of an earlier one.
ELSEWHERE = ("tracking.uri", "tracking.experiment", "tracking.register", "sweep.resume", "sweep.stale")
# Values of keys that are swept together: the line of a search, which has as many as runs, would fill the page.
MOST_OF_GROUP = 36


def question(configs: Sequence[Config]) -> str:
    """The first line of the preset that the sweep is, or is a part of, "" where there is none; the seeds may be any.

    Every run has the values that the preset fixes, each of the preset's axes is swept, over values of its own, and nothing else.
    """
    runs = [flatten(config) for config in configs]
    swept = set(differing_keys(runs)) - {SEED}
    for text, axes, fixed in _presets():
        found = [{tuple(str(run.get(key)) for key in keys) for run in runs} for keys, _ in axes]
        asked = all(len(values) > 1 and values <= own for values, (_, own) in zip(found, axes, strict=True))
        along = swept <= {key for keys, _ in axes for key in keys}
        if asked and along and all(run.get(key) == value for run in runs for key, value in fixed.items()):
            return text
    return ""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """OmegaConf's, on libyaml where there is one: the same values in a tenth of the time."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


# The keys of an axis, of which a group has several at once, and their values, as text.
Sweep = tuple[tuple[str, ...], set[tuple[str, ...]]]


def _presets() -> Iterator[tuple[str, list[Sweep], dict[str, Any]]]:
    """(first line, axes, what every run has) of the files in conf/experiment, without the seeds."""
    for file in sorted(Path(CONF, "experiment").glob("*.yaml")):
        content = file.read_text(encoding="utf-8")
        text, values = content.splitlines()[1].removeprefix("# "), yaml.load(content, _Loader)
        params = values.pop("hydra")["sweeper"]["params"]
        axes = [_axis(DATASET if key == "dataset" else key, str(axis)) for key, axis in params.items() if key != SEED]
        chosen = {key: name for default in values.pop("defaults", []) for key, name in default.items()}
        fixed = flatten_values(values)
        if "override /dataset" in chosen:
            fixed[DATASET] = chosen["override /dataset"]
        yield text, axes, fixed


def _axis(key: str, axis: str) -> Sweep:
    """Of `network.depth` and "2,5", or of `network` and "{activation: relu, gain: 2.0},{activation: tanh, gain: 1.0}"."""
    if not axis.startswith("{"):
        return (key,), {(value,) for value in axis.split(",")}
    groups: Any = OmegaConf.to_container(OmegaConf.create(f"[{axis}]"))
    return tuple(f"{key}.{name}" for name in groups[0]), {tuple(map(str, group.values())) for group in groups}


def command(configs: Sequence[Config]) -> str:
    """The `experiments.train` command of a sweep, or of one run; "" where its runs are no full grid of the values of its axes,
    and where a data set's loader has other arguments than its file in conf/dataset gives it.
    """
    runs, defaults = [flatten(config) for config in configs], flatten(Config())
    # One of each data set: it takes OmegaConf milliseconds.
    loaders = {str([value for key, value in run.items() if key.startswith("dataset.")]): run for run in runs}
    if not all(_has_own_loader(run) for run in loaders.values()):
        return ""
    columns = {key: [_typed(run[key]) for run in runs] for key in runs[0] if not key.startswith((LOADER, *ELSEWHERE))}
    axes = {axis: _combinations(axis, columns) for axis in _axes(columns)}
    if math.prod(map(len, axes.values())) != len(runs):
        return ""
    by_default = {axis: [tuple(_typed(defaults.get(key)) for key in axis)] for axis in axes}
    arguments = [_argument(axis, values) for axis, values in axes.items() if values != by_default[axis]]
    many = ["-m", "~experiment"] if len(runs) > 1 else []
    return shlex.join(["python", "-m", "experiments.train", *many, *arguments])


# Key -> its value in every run, as Hydra reads it.
Columns = Mapping[str, Sequence[str]]


def _axes(columns: Columns) -> list[tuple[str, ...]]:
    """The keys one by one, but those of one group together that have not every combination of their values."""
    axes: list[tuple[str, ...]] = []
    for key, values in columns.items():
        alike = [axis for axis in axes if _group(key) == _group(axis[0]) != ""] if len(set(values)) > 1 else []
        for axis in alike:
            found = len(_combinations((*axis, key), columns))
            if found < len(set(values)) * len(_combinations(axis, columns)) and found <= MOST_OF_GROUP:
                axes[axes.index(axis)] = *axis, key
                break
        else:
            axes.append((key,))
    return axes


def _group(key: str) -> str:
    """`network` of `network.depth`; "" of what is set for itself."""
    return "" if key == DATASET else key.rpartition(".")[0]


def _combinations(axis: Sequence[str], columns: Columns) -> list[tuple[str, ...]]:
    """The values that its keys have together in the runs."""
    return list(dict.fromkeys(zip(*(columns[key] for key in axis), strict=True)))


def _argument(axis: Sequence[str], values: Sequence[Sequence[str]]) -> str:
    """`network.depth=2,5`, or `network={activation: relu, gain: 2.0},{activation: tanh, gain: 1.0}`."""
    if len(axis) == 1:
        return f"{'dataset' if axis[0] == DATASET else axis[0]}={','.join(value for (value,) in values)}"
    names = [key.rpartition(".")[2] for key in axis]
    groups = (", ".join(f"{name}: {value}" for name, value in zip(names, each, strict=True)) for each in values)
    return f"{_group(axis[0])}={','.join(f'{{{group}}}' for group in groups)}"


def _typed(value: Any) -> str:
    """The value as Hydra reads it."""
    if value is None or isinstance(value, bool | list):
        return json.dumps(value)
    return "inf" if isinstance(value, float) and math.isinf(value) else str(value)


def _has_own_loader(run: dict[str, Any]) -> bool:
    """Whether the run's data set has the loader that its file gives it."""
    file = Path(CONF, "dataset", f"{run[DATASET]}.yaml")
    if not file.is_file():
        return False
    values = OmegaConf.merge({"dataset": {"seed": run["dataset.seed"]}}, {"dataset": OmegaConf.load(file)})
    given = flatten_values(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
    return all(run.get(key) == given.get(key) for key in run.keys() | given if key.startswith(LOADER))
