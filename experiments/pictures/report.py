"""What a sweep ends with: the depth x learning-rate table of final losses, the best run, the outcomes."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.run.config import Config, flat, varied

# Cells side by side that can still be read.
MOST = 24
ROWS, COLUMNS, REPEATS = "network.depth", "optimizer.learning_rate", "seed"


@dataclass(frozen=True)
class Row:
    """One run of a sweep. loss: final, over the training data; inf where it diverged. job: its number in the sweep."""

    config: Config
    loss: float
    outcome: str
    job: int = 0

    @property
    def values(self) -> dict[str, Any]:
        """The config, flat; lists as text, so that any value can be the name of a row."""
        return {key: str(value) if isinstance(value, list) else value for key, value in flat(self.config).items()}

    def place(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those keys. Another data set's loader may have arguments that this run's has not: they are empty."""
        values = self.values
        return {key: values.get(key, "") for key in keys}


class Report:
    """The runs of a sweep as tables: depth down, learning rate across, another for each value of the other swept keys.

    Where one of the two is not swept, another swept key takes its place; seeds are averaged.

    lost: the name of each run that was not trained -> what kept it from that.
    """

    def __init__(self, rows: Sequence[Row], lost: Mapping[str, str] | None = None) -> None:
        self.rows, self.lost = list(rows), lost or {}
        self.varied = varied([row.values for row in self.rows])
        self.places = [row.place([*self.varied, ROWS, COLUMNS]) for row in self.rows]
        others = [key for key in self.varied if key not in (ROWS, COLUMNS, REPEATS)]
        self.down = ROWS if ROWS in self.varied or not others else others.pop(0)
        self.across = COLUMNS if COLUMNS in self.varied or not others else others.pop(0)
        self.tables_by = others

    @cached_property
    def best(self) -> Row | None:
        """The run with the smallest final loss, None where all diverged."""
        finite = [row for row in self.rows if math.isfinite(row.loss)]
        return min(finite, key=lambda row: row.loss, default=None)

    @property
    def outcomes(self) -> str:
        """`40 trained, 3 stuck, 5 diverged`"""
        counts = Counter({"lost": len(self.lost)}) + Counter(row.outcome for row in self.rows)
        return ", ".join(
            f"{counts[outcome]} {outcome}" for outcome in ("trained", "stuck", "diverged", "lost") if counts[outcome]
        )

    def tables(self) -> dict[str, dict[tuple[Any, Any], list[Row]]]:
        """What sets a table apart -> (value down, value across) -> the runs of that cell, one a seed."""
        tables: dict[str, dict[tuple[Any, Any], list[Row]]] = {}
        for row, values in zip(self.rows, self.places, strict=True):
            name = ", ".join(f"{key} {values[key]}" for key in self.tables_by)
            tables.setdefault(name, {}).setdefault((values[self.down], values[self.across]), []).append(row)
        return tables

    def text(self) -> str:
        """The tables as text; * marks the best run, `-` a cell in which every run diverged."""
        lines = []
        for name, cells in self.tables().items():
            lines += [f"final training loss, {self.down} down, {self.across} across" + (f" ({name})" if name else "")]
            downs, acrosses = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
            if len(acrosses) > MOST:
                lines.append(f"{len(acrosses)} values across, too many to print: table.csv has them")
                continue
            lines.append(_line(["", *acrosses]))
            for down in downs:
                lines.append(_line([down, *(self._cell(cells.get((down, across), [])) for across in acrosses)]))
        best = self.best
        if best is None:
            lines.append(f"every run diverged ({len(self.rows)} runs)")
        else:
            place = ", ".join(f"{key}={value}" for key, value in best.place(self.varied).items())
            lines.append(f"best (*): {best.loss:.4g} at {place or 'the only run'};  {self.outcomes}")
        return "\n".join(lines)

    def _cell(self, runs: Sequence[Row]) -> str:
        finite = [row.loss for row in runs if math.isfinite(row.loss)]
        if not finite:
            return "-" if runs else ""
        mark = "*" if any(row is self.best for row in runs) else ""
        return f"{sum(finite) / len(finite):.3g}{mark}"

    def columns(self) -> dict[str, list[Any]]:
        """The swept keys, final loss and outcome: a value for each run."""
        columns: dict[str, list[Any]] = {key: [values[key] for values in self.places] for key in self.varied}
        return {**columns, "final/loss_train": [row.loss for row in self.rows], "outcome": [row.outcome for row in self.rows]}

    def save(self, file: Path) -> None:
        """`columns` as CSV, one line a run."""
        columns = self.columns()
        with file.open("w", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _line(cells: Sequence[Any]) -> str:
    return "".join(f"{shown(cell):>10}" for cell in cells)


def shown(value: Any) -> str:
    """A value of the config as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
