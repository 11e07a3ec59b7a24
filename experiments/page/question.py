"""What a sweep asks, and the command that runs it again: both found in its configs alone."""

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.run.config import CONF, Config, flat, flat_values, varied

SEED, DATASET, LOADER = "seed", "dataset.name", "dataset.loader."
# What a command need not say: where the record goes, and what becomes of an earlier one.
ELSEWHERE = ("tracking.", "sweep.resume", "sweep.stale")


def question(configs: Sequence[Config]) -> str:
    """The first line of the preset that the sweep is, or is a part of, "" where there is none; the seeds may be any.

    Every run has the values that the preset fixes, what is swept is swept there, and each value is one of those there.
    """
    runs = [flat(config) for config in configs]
    swept = {key: {str(run[key]) for run in runs if key in run} for key in varied(runs) if key != SEED}
    for text, axes, fixed in _presets():
        asked = swept.keys() == axes.keys() and all(swept[key] <= axes[key] for key in swept)
        if asked and all(run.get(key) == value for run in runs for key, value in fixed.items()):
            return text
    return ""


def _presets() -> Iterator[tuple[str, dict[str, set[str]], dict[str, Any]]]:
    """(first line, swept key -> its values, what every run has) of the files in conf/experiment, without the seeds."""
    for file in sorted(Path(CONF, "experiment").glob("*.yaml")):
        text = file.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        values: Any = OmegaConf.to_container(OmegaConf.load(file))
        params = values.pop("hydra")["sweeper"]["params"]
        axes = {key: set(str(values).split(",")) for key, values in params.items() if key != SEED}
        chosen = {key: name for default in values.pop("defaults", []) for key, name in default.items()}
        fixed = flat_values(values)
        if "override /dataset" in chosen:
            fixed[DATASET] = chosen["override /dataset"]
        yield text, {DATASET if key == "dataset" else key: axis for key, axis in axes.items()}, fixed


def command(configs: Sequence[Config]) -> str:
    """The `experiments.train` command of a sweep, or of one run; "" where its runs are no full grid of the values of their keys,
    and where a data set's loader has other arguments than its file in conf/dataset gives it.
    """
    runs, defaults = [flat(config) for config in configs], flat(Config())
    # One of each data set: it takes OmegaConf milliseconds.
    loaders = {str([value for key, value in run.items() if key.startswith("dataset.")]): run for run in runs}
    if not all(_has_own_loader(run) for run in loaders.values()):
        return ""
    arguments, jobs = [], 1
    for key in dict.fromkeys(key for run in runs for key in run):
        values = list(dict.fromkeys(_typed(run[key]) for run in runs if key in run))
        if key.startswith((LOADER, *ELSEWHERE)) or values == [_typed(defaults.get(key))]:
            continue
        jobs *= len(values)
        arguments.append(f"{'dataset' if key == DATASET else key}={','.join(values)}")
    if jobs != len(runs):
        return ""
    many = ["-m", "~experiment"] if len(runs) > 1 else []
    return shlex.join(["python", "-m", "experiments.train", *many, *arguments])


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
    given = flat_values(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
    return all(run.get(key) == given.get(key) for key in run.keys() | given if key.startswith(LOADER))
