"""What a sweep ends with: the depth x learning-rate table of its measure, the best run, the outcomes."""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.run.config import Config
from experiments.run.measure import MEASURES
from experiments.run.naming import SEED, differing_keys, flatten, format_value
from experiments.run.pool import WorkerLost
from experiments.run.sensitivity import sensitivity
from experiments.run.stack import initial_loss

# Cells side by side that can still be read.
MOST = 24
ROWS, COLUMNS, REPEATS = "network.depth", "optimizer.learning_rate", SEED
SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class Row:
    """One run of a sweep. value: of its measure, inf or -inf where it diverged or was stopped. job: its number in the sweep."""

    config: Config
    value: float
    outcome: str
    job: int = 0

    @cached_property
    def values(self) -> dict[str, Any]:
        """The config, flat; lists as text, so that any value can be the name of a row."""
        return {key: str(value) if isinstance(value, list) else value for key, value in flatten(self.config).items()}

    def place(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those keys. Another data set's loader may have arguments that this run's has not: they are empty."""
        values = self.values
        return {key: values.get(key, "") for key in keys}


class Cell(list[Row]):
    """The runs of one place of a table, one a seed."""

    @property
    def trained(self) -> int:
        """How many of them have trained."""
        return sum(row.outcome == "trained" for row in self)

    @property
    def all_trained(self) -> bool:
        """Whether every seed has."""
        return self.trained == len(self)

    @property
    def missing(self) -> str:
        """Why it has no value: its runs were stopped, or diverged."""
        return "stopped" if any(row.outcome == "stopped" for row in self) else "diverged"

    @property
    def survivors(self) -> list[Row]:
        """Those that have not diverged, and were not stopped."""
        return [row for row in self if math.isfinite(row.value)]

    @property
    def mean(self) -> float:
        """Of the survivors' values, nan where there are none."""
        return statistics.fmean(row.value for row in self.survivors) if self.survivors else math.nan

    @property
    def deviation(self) -> float | None:
        """The standard deviation (over n - 1) of the survivors' values, None of fewer than two."""
        return statistics.stdev(row.value for row in self.survivors) if len(self.survivors) > 1 else None

    @property
    def has_diverged(self) -> bool:
        """Whether a seed has."""
        return len(self.survivors) < len(self)

    @property
    def share(self) -> str:
        """`2/3` where two of three seeds have trained; "" where all have, and where there is one alone."""
        return "" if self.all_trained or len(self) == 1 else f"{self.trained}/{len(self)}"


def with_deviation(cell: Cell, digits: int) -> str:
    """`0.0312 +- 0.004`, or the mean alone where one run has not diverged."""
    spread = "" if cell.deviation is None else f" +- {cell.deviation:.1g}"
    return f"{cell.mean:.{digits}g}{spread}"


def fate(error: Exception) -> str:
    """What became of a run that was not trained: `lost` with its process, or `failed`."""
    return "lost" if isinstance(error, WorkerLost) else "failed"


class Report:
    """The runs of a sweep as tables: depth down, learning rate across, another for each value of the other swept keys.

    Where one of the two is not swept, another swept key takes its place; seeds are averaged.

    untrained: the name of each run that was not trained -> what kept it from that.
    """

    def __init__(self, rows: Sequence[Row], untrained: Mapping[str, Exception] | None = None) -> None:
        self.rows = list(rows)
        self.measure = MEASURES[self.rows[0].config.sweep.measure]
        self.untrained = [(fate(error), name, str(error)) for name, error in (untrained or {}).items()]
        self.varied = differing_keys([row.values for row in self.rows])
        self.places = [row.place([*self.varied, ROWS, COLUMNS, REPEATS]) for row in self.rows]
        others = [key for key in self.varied if key not in (ROWS, COLUMNS, REPEATS)]
        self.down = ROWS if ROWS in self.varied or not others else others.pop(0)
        self.across = COLUMNS if COLUMNS in self.varied or not others else others.pop(0)
        self.tables_by = others

    @cached_property
    def best(self) -> Row | None:
        """The run with the best value, None where all diverged."""
        finite = [row for row in self.rows if math.isfinite(row.value)]
        return min(finite, key=lambda row: self.measure.cost(row.value), default=None)

    @cached_property
    def best_cell(self) -> Cell | None:
        """The cell with the best mean over all its seeds, None where one has diverged in every cell."""
        whole = [cell for cells in self.tables().values() for cell in cells.values() if not cell.has_diverged]
        return min(whole, key=lambda cell: self.measure.cost(cell.mean), default=None)

    @cached_property
    def lines_by(self) -> list[str]:
        """The keys beside the one down whose values have lines of their own in a picture of the best runs.

        All that set tables apart, and the one across where its values are no numbers.
        """
        across = [values[self.across] for values in self.places]
        numbers = all(isinstance(value, int | float) for value in across)
        return self.tables_by if numbers or self.across == COLUMNS else [self.across, *self.tables_by]

    def best_cells(self) -> dict[tuple[Any, str], Cell]:
        """(value down, values of `lines_by`) -> its runs that differ in seed alone, of which the fewest diverged, then with the
        best mean; numbers down in ascending order.
        """

        def cost(cell: Cell) -> tuple[int, float]:
            return len(cell) - len(cell.survivors), self.measure.cost(cell.mean) if cell.survivors else math.inf

        best: dict[tuple[Any, str], Cell] = {}
        for cell in [cell for cells in self.tables().values() for cell in cells.values()]:
            values = cell[0].place([self.down, *self.lines_by])
            place = values[self.down], ", ".join(format_value(values[key]) for key in self.lines_by)
            if place not in best or cost(cell) < cost(best[place]):
                best[place] = cell
        numbers = all(isinstance(down, int | float) for down, _ in best)
        return dict(sorted(best.items(), key=lambda item: item[0][0])) if numbers else best

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len({values[REPEATS] for values in self.places})

    @property
    def outcomes(self) -> str:
        """`40 trained, 3 stuck, 5 diverged`"""
        counts = {**self.counts, **Counter(fate for fate, _, _ in self.untrained)}
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)

    @property
    def counts(self) -> dict[str, int]:
        """outcome -> its runs."""
        counts = Counter(row.outcome for row in self.rows)
        stopped = ["stopped"] if counts["stopped"] else []
        return {outcome: counts[outcome] for outcome in ("trained", "stuck", "diverged", *stopped)}

    @property
    def ended_early(self) -> str:
        """What a run has done that has no final loss."""
        return "diverged or stopped" if "stopped" in self.counts else "diverged"

    def tables(self) -> dict[str, dict[tuple[Any, Any], Cell]]:
        """What sets a table apart -> (value down, value across) -> the runs of that cell."""
        tables: dict[str, dict[tuple[Any, Any], Cell]] = {}
        for row, values in zip(self.rows, self.places, strict=True):
            name = ", ".join(f"{key} {values[key]}" for key in self.tables_by)
            tables.setdefault(name, {}).setdefault((values[self.down], values[self.across]), Cell()).append(row)
        return tables

    @property
    def averaged(self) -> str:
        """What a table's numbers are the mean of, "" where a cell has one run."""
        if self.seeds == 1:
            return ""
        what = f"mean +- standard deviation of {self.seeds} seeds"
        return f"{what} without those that {self.ended_early}; 1/{self.seeds}: one of them has trained"

    @cached_property
    def sensitivities(self) -> dict[int, float]:
        """Job -> the learning-rate sensitivity of the runs that differ from it in the rate alone, see `run.sensitivity`.

        Empty where no grid has several rates, and where runs are judged by no loss, or were stopped.
        """
        is_grid = COLUMNS in self.varied and not self.is_search
        if not (is_grid and self.measure.is_loss) or any(row.outcome == "stopped" for row in self.rows):
            return {}
        alike: dict[str, list[Row]] = {}
        for row in self.rows:
            alike.setdefault(self.place(row, COLUMNS), []).append(row)
        return {
            row.job: value
            for rows in alike.values()
            for value in [sensitivity([row.value for row in rows], initial_loss(rows[0].config, self.measure.part))]
            for row in rows
        }

    @cached_property
    def is_search(self) -> bool:
        """Whether values were drawn and span no grid: most cells of the tables have no run, or most tables have one cell."""
        tables = self.tables().values()
        cells = sum(map(len, tables))
        places = sum(len({down for down, _ in table}) * len({across for _, across in table}) for table in tables)
        return places >= 2 * cells or (len(tables) > 1 and cells < 2 * len(tables))

    @property
    def scattered(self) -> bool:
        """Whether its best runs say more than its tables: of a search, and of a single line too long to be read."""
        cells = next(iter(self.tables().values()))
        return self.is_search or (len(self.tables()) == 1 and len(cells) > MOST and len({down for down, _ in cells}) == 1)

    def place(self, row: Row, *without: str) -> str:
        """`network.depth=5, seed=1`: the swept keys' values of a run."""
        return ", ".join(f"{key}={value}" for key, value in row.place(self.varied).items() if key not in without)

    def columns(self) -> dict[str, list[Any]]:
        """The swept keys, the sensitivity where there is one, the measure and the outcome: a value for each run."""
        columns: dict[str, list[Any]] = {key: [values[key] for values in self.places] for key in self.varied}
        values, outcomes = [row.value for row in self.rows], [row.outcome for row in self.rows]
        if self.sensitivities:
            columns[SENSITIVITY] = [self.sensitivities[row.job] for row in self.rows]
        return {**columns, self.measure.metric: values, "outcome": outcomes}

    def save(self, file: Path) -> None:
        """`columns` as CSV, one line a run."""
        columns = self.columns()
        with file.open("w", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
