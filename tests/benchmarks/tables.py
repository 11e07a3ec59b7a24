"""Contestants that take turns, and the table of their times."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from blocks.arrays import Array

ROUNDS = 15


def alternate(
    contestants: Mapping[str, Callable[[], Any]],
    per: float,
    rounds: int = ROUNDS,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Array]:
    """name -> seconds of each round over `per`, the contestants taking turns, forth and back; a first turn that warms up is
    not kept. A number that a contestant returns is in place of its seconds: it has measured itself.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + warm_up):
        for name in list(contestants)[:: 1 if turn % 2 else -1]:
            start = clock()
            value = contestants[name]()
            if turn >= warm_up:
                times[name].append((value if isinstance(value, int | float) else clock() - start) / per)
    return {name: np.array(seconds) for name, seconds in times.items()}


def table(title: str, times: dict[str, Array], unit: str, scale: float) -> None:
    """Medians, and each contestant's time over the first one's: median of the ratios, quartiles."""
    ours = next(iter(times.values()))
    print(f"\n{title}")
    for name, seconds in times.items():
        print(f"  {name:<38}{np.median(seconds) * scale:>10.1f} {unit}   {ratio(seconds, ours)} x ours")


def ratio(times: Array, reference_times: Array) -> str:
    """The median of the rounds' ratios and, in brackets, their quartiles."""
    low, middle, high = np.quantile(times / reference_times, [0.25, 0.5, 0.75])
    return f"{middle:6.2f} ({low:.2f} to {high:.2f})"
