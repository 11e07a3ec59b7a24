"""The names of runs, cells and sweeps, which people read, and the flat keys of a config, which people type."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from experiments.run.config import Config

# Key -> the short word for it in a name. These keys come first.
COMMON_NAMES = {"network.depth": "depth", "optimizer.learning_rate": "rate"}
SEED = "seed"
# The largest number of characters in a run's name that a database stores.
MAX_NAME_LENGTH = 250


def run_name(config: Config, keys: Sequence[str] = ()) -> str:
    """Return the name of a run, such as `depth 5, rate 0.1, seed 1`.

    A name that is too long for a database is cut short.

    keys: the keys whose values differ between the runs of its sweep. Where there are none, the name has depth and rate.
    """
    values, keys_by_word = flatten(config), short_names(keys or tuple(COMMON_NAMES))
    name = ", ".join(f"{word} {format_value(values[key])}" for word, key in keys_by_word.items() if key in values)
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."


def cell_name(config: Config, keys: Sequence[str]) -> str:
    """Return the name of the run's cell, such as `depth 5, rate 0.1`, or "" where the sweep's runs have one seed.

    A cell is a group of runs that differ only in their seed. Its name has all digits of a number, so that no two cells of a
    sweep have the same name.

    keys: the keys whose values differ between the runs of the sweep.
    """
    values = flatten(config)
    other_keys = [key for key in keys if key != SEED]

    def format_exactly(value: Any) -> str:
        return format_value(value) if not isinstance(value, float) or float(format_value(value)) == value else str(value)

    parts = [
        f"{word} {format_exactly(values[key])}"
        for word, key in short_names(other_keys or tuple(COMMON_NAMES)).items()
        if key in values
    ]
    return ", ".join(parts) if SEED in keys else ""


def sweep_name(keys: Sequence[str], count: int) -> str:
    """Return the name of a sweep, such as `depth x rate, 48 runs`.

    keys: the keys whose values differ between its runs. count: the number of runs.
    """
    runs = f"{count} run{'s' * (count > 1)}"
    max_length = MAX_NAME_LENGTH - len(runs) - 5
    axes = " x ".join(short_names(keys))
    return f"{axes if len(axes) <= max_length else f'{axes[:max_length]}...'}, {runs}" if keys else runs


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return a dict from short words to the keys that they stand for. The words of COMMON_NAMES come first.

    Any other word is the key's part after the last dot. A `.name` at the end is dropped first: the word for `dataset.name` is
    `dataset`. Where two keys would have the same word, each key is its own word.
    """
    ordered_keys = [*(key for key in COMMON_NAMES if key in keys), *(key for key in keys if key not in COMMON_NAMES)]
    words = {key: COMMON_NAMES.get(key) or key.removesuffix(".name").rpartition(".")[2] for key in ordered_keys}
    return {word if list(words.values()).count(word) == 1 else key: key for key, word in words.items()}


def format_value(value: Any) -> str:
    """Return a value of the config as text. A float is rounded to six significant digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten(config: Config) -> dict[str, Any]:
    """Return a dict from the keys that users type, such as `network.depth`, to the config's values."""
    return flatten_values(asdict(config))


def flatten_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts as one flat dict, whose keys are joined by dots."""

    def leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                # Thousands of runs share the memory of their keys.
                yield sys.intern(f"{prefix}{key}"), value

    return dict(leaves(values, ""))


def differing_keys(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ between runs.

    A key of the data set's loader is compared only between runs on the same data set. Between data sets it often differs, but
    there the data set's name already says so.

    runs: the config of each run, as `flatten` returns it.
    """
    keys = dict.fromkeys(key for values in runs for key in values)
    runs_by_dataset: dict[str, list[dict[str, Any]]] = {}
    for values in runs:
        runs_by_dataset.setdefault(str(values.get("dataset.name")), []).append(values)

    def differs(key: str) -> bool:
        groups = runs_by_dataset.values() if key.startswith("dataset.loader.") else [runs]
        return any(len({str(values.get(key)) for values in group}) > 1 for group in groups)

    return [key for key in keys if differs(key)]
