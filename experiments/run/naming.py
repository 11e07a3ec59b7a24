"""How a config is written for people: its values by the keys that users type, and names of runs and of sweeps."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from experiments.run.config import Config

# What a name begins with, where it differs.
FIRST = {"network.depth": "depth", "optimizer.learning_rate": "rate"}
SEED = "seed"
# Characters that a database has room for in a run's name.
MOST_NAME = 250


def run_name(config: Config, keys: Sequence[str] = ()) -> str:
    """What tells a run from its neighbours: `depth 5, rate 0.1, seed 1`.

    keys: that differ between the runs of its sweep; none is a run alone, whose depth and rate are named.
    """
    values, by_word = flatten(config), short_names(keys or tuple(FIRST))
    named = ", ".join(f"{word} {format_value(values[key])}" for word, key in by_word.items() if key in values)
    return named if len(named) <= MOST_NAME else f"{named[: MOST_NAME - 3]}..."


def cell_name(config: Config, keys: Sequence[str]) -> str:
    """What runs of a sweep that differ in seed alone have in common, to the last digit: `depth 5, rate 0.1`.

    keys: that differ between its runs; "" where the seed does not.
    """
    values = flatten(config)
    others = [key for key in keys if key != SEED]

    def exact(value: Any) -> str:
        return format_value(value) if not isinstance(value, float) or float(format_value(value)) == value else str(value)

    named = [f"{word} {exact(values[key])}" for word, key in short_names(others or tuple(FIRST)).items() if key in values]
    return ", ".join(named) if SEED in keys else ""


def sweep_name(keys: Sequence[str], count: int) -> str:
    """`depth x rate, 48 runs`; keys: that differ between them."""
    runs = f"{count} run{'s' * (count > 1)}"
    most = MOST_NAME - len(runs) - 5
    swept = " x ".join(short_names(keys))
    return f"{swept if len(swept) <= most else f'{swept[:most]}...'}, {runs}" if keys else runs


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """A short word for each key -> the key, depth and rate first: the last part that says something, where no other has it."""
    ordered = [*(key for key in FIRST if key in keys), *(key for key in keys if key not in FIRST)]
    last = {key: FIRST.get(key) or key.removesuffix(".name").rpartition(".")[2] for key in ordered}
    return {word if list(last.values()).count(word) == 1 else key: key for key, word in last.items()}


def format_value(value: Any) -> str:
    """A value of the config as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten(config: Config) -> dict[str, Any]:
    """The config's values by the keys users type: `network.depth` and so on."""
    return flatten_values(asdict(config))


def flatten_values(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values by dotted keys."""

    def leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(values, ""))


def differing_keys(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys whose values differ between the flat configs of runs; of a data set's loader, which its name stands for, those
    that differ between runs of one name.
    """
    keys = dict.fromkeys(key for values in runs for key in values)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for values in runs:
        by_name.setdefault(str(values.get("dataset.name")), []).append(values)

    def differs(key: str) -> bool:
        alike = by_name.values() if key.startswith("dataset.loader.") else [runs]
        return any(len({str(values.get(key)) for values in some}) > 1 for some in alike)

    return [key for key in keys if differs(key)]
