"""Texts for people: a config's values by the keys that users type, and the names of runs and sweeps."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from experiments.run.config import Config

# The keys that come first in a name, with their short words.
COMMON_NAMES = {"network.depth": "depth", "optimizer.learning_rate": "rate"}
SEED = "seed"
# The number of characters that a database stores of a run's name.
MAX_NAME_LENGTH = 250


def run_name(config: Config, keys: Sequence[str] = ()) -> str:
    """Return the name of a run, such as `depth 5, rate 0.1, seed 1`.

    keys: the keys whose values differ between the runs of its sweep; without any, depth and rate are named.
    """
    values, keys_by_word = flatten(config), short_names(keys or tuple(COMMON_NAMES))
    name = ", ".join(f"{word} {format_value(values[key])}" for word, key in keys_by_word.items() if key in values)
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."


def cell_name(config: Config, keys: Sequence[str]) -> str:
    """Return the name of a cell, the runs of a sweep that differ only in the seed, such as `depth 5, rate 0.1`.

    Its numbers have all their digits. It is "" where the seed does not differ.

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
    """Return a short word for each key -> the key, depth and rate first.

    The word is the key's last part, without `.name`; where two keys would have the same word, the word is the key itself.
    """
    ordered_keys = [*(key for key in COMMON_NAMES if key in keys), *(key for key in keys if key not in COMMON_NAMES)]
    words = {key: COMMON_NAMES.get(key) or key.removesuffix(".name").rpartition(".")[2] for key in ordered_keys}
    return {word if list(words.values()).count(word) == 1 else key: key for key, word in words.items()}


def format_value(value: Any) -> str:
    """Return a value of the config as text, a float with at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten(config: Config) -> dict[str, Any]:
    """Return the config's values by the keys that users type, such as `network.depth`."""
    return flatten_values(asdict(config))


def flatten_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested values by dotted keys."""

    def leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(values, ""))


def differing_keys(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ between runs.

    The loader's keys differ only where they do so between runs on a data set of the same name: else the name says it already.

    runs: their configs as `flatten` returns them.
    """
    keys = dict.fromkeys(key for values in runs for key in values)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for values in runs:
        by_name.setdefault(str(values.get("dataset.name")), []).append(values)

    def differs(key: str) -> bool:
        groups = by_name.values() if key.startswith("dataset.loader.") else [runs]
        return any(len({str(values.get(key)) for values in group}) > 1 for group in groups)

    return [key for key in keys if differs(key)]
