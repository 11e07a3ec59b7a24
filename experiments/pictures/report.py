"""The report of a sweep: the table of its measure by depth and learning rate, the best run, and the outcomes."""

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

# So many cells side by side can still be read.
MAX_CELLS = 24
ROWS, COLUMNS, REPEATS = "network.depth", "optimizer.learning_rate", SEED
SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class Row:
    """One run of a sweep.

    value: the last value of the sweep's measure; inf or -inf where the run diverged or was stopped. job: its number in the sweep.
    """

    config: Config
    value: float
    outcome: str
    job: int = 0

    @cached_property
    def values(self) -> dict[str, Any]:
        """The config as flat keys and values. A list becomes text, so that every value can be a dictionary's key."""
        return {key: str(value) if isinstance(value, list) else value for key, value in flatten(self.config).items()}

    def key_values(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of those keys; "" for a key that this run lacks, as an argument of another data set's loader."""
        values = self.values
        return {key: values.get(key, "") for key in keys}


class Cell(list[Row]):
    """The runs of one cell of a table: one for each seed."""

    @property
    def trained_count(self) -> int:
        """The number of runs that have trained."""
        return sum(row.outcome == "trained" for row in self)

    @property
    def all_trained(self) -> bool:
        """Whether every run has trained."""
        return self.trained_count == len(self)

    @property
    def missing_reason(self) -> str:
        """Why the cell has no value: `stopped` where one of its runs was stopped, `diverged` otherwise."""
        return "stopped" if any(row.outcome == "stopped" for row in self) else "diverged"

    @property
    def finite_rows(self) -> list[Row]:
        """The runs that have neither diverged nor been stopped."""
        return [row for row in self if math.isfinite(row.value)]

    @property
    def mean(self) -> float:
        """The mean value of the finite rows; nan where there are none."""
        return statistics.fmean(row.value for row in self.finite_rows) if self.finite_rows else math.nan

    @property
    def deviation(self) -> float | None:
        """The standard deviation (over n - 1) of the finite rows' values; None for fewer than two."""
        return statistics.stdev(row.value for row in self.finite_rows) if len(self.finite_rows) > 1 else None

    @property
    def has_diverged(self) -> bool:
        """Whether at least one run has no finite value."""
        return len(self.finite_rows) < len(self)

    @property
    def trained_share(self) -> str:
        """`2/3` where two of three runs have trained; "" where all have trained, and where there is only one run."""
        return "" if self.all_trained or len(self) == 1 else f"{self.trained_count}/{len(self)}"


def with_deviation(cell: Cell, digits: int) -> str:
    """Return a cell's value as text: `0.0312 +- 0.004`, or only the mean where it has no standard deviation."""
    deviation = "" if cell.deviation is None else f" +- {cell.deviation:.1g}"
    return f"{cell.mean:.{digits}g}{deviation}"


def axis_values(cells: Mapping[tuple[Any, Any], Cell], axis: int) -> list[Any]:
    """Return the values of a table's rows (axis 0) or columns (axis 1): numbers ascending, others in the order of the jobs."""
    values = list(dict.fromkeys(key[axis] for key in cells))
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def outcome_of_error(error: Exception) -> str:
    """Return the outcome of a run that was not trained: `lost` where its process ended, `failed` otherwise."""
    return "lost" if isinstance(error, WorkerLost) else "failed"


class Report:
    """The runs of a sweep as tables, with the depth down and the learning rate across.

    There is one table for each value of the other swept keys. Where the depth or the rate is not swept, another swept key takes
    its place. A cell has the runs of all seeds. untrained: maps the name of a run that was not trained to its error.
    """

    def __init__(self, rows: Sequence[Row], untrained: Mapping[str, Exception] | None = None) -> None:
        self.rows = list(rows)
        self.measure = MEASURES[self.rows[0].config.sweep.measure]
        self.untrained = [(outcome_of_error(error), name, str(error)) for name, error in (untrained or {}).items()]
        self.varied_keys = differing_keys([row.values for row in self.rows])
        self.swept_values = [row.key_values([*self.varied_keys, ROWS, COLUMNS, REPEATS]) for row in self.rows]
        other_keys = [key for key in self.varied_keys if key not in (ROWS, COLUMNS, REPEATS)]
        self.row_key = ROWS if ROWS in self.varied_keys or not other_keys else other_keys.pop(0)
        self.column_key = COLUMNS if COLUMNS in self.varied_keys or not other_keys else other_keys.pop(0)
        self.tables_by = other_keys

    @cached_property
    def best_run(self) -> Row | None:
        """The run with the best value; None where all runs diverged."""
        finite = [row for row in self.rows if math.isfinite(row.value)]
        return min(finite, key=lambda row: self.measure.cost(row.value), default=None)

    @cached_property
    def best_cell(self) -> Cell | None:
        """The cell with the best mean over all its seeds. It is None where every cell has a seed that diverged."""
        finite_cells = [cell for cells in self.tables().values() for cell in cells.values() if not cell.has_diverged]
        return min(finite_cells, key=lambda cell: self.measure.cost(cell.mean), default=None)

    @cached_property
    def lines_by(self) -> list[str]:
        """The keys for lines in a picture of the best runs: `tables_by`, and `column_key` where it has no numbers."""
        column_values = [values[self.column_key] for values in self.swept_values]
        numbers = all(isinstance(value, int | float) for value in column_values)
        return self.tables_by if numbers or self.column_key == COLUMNS else [self.column_key, *self.tables_by]

    def best_cells(self) -> dict[tuple[Any, str], Cell]:
        """Return the best cell for each pair (value of `row_key`, values of `lines_by`).

        The best cell has the fewest runs that diverged or were stopped, and among those the best mean. The pairs are in ascending
        order where the values of `row_key` are numbers.
        """

        def cost(cell: Cell) -> tuple[int, float]:
            return len(cell) - len(cell.finite_rows), self.measure.cost(cell.mean) if cell.finite_rows else math.inf

        best: dict[tuple[Any, str], Cell] = {}
        for cell in [cell for cells in self.tables().values() for cell in cells.values()]:
            values = cell[0].key_values([self.row_key, *self.lines_by])
            line = values[self.row_key], ", ".join(format_value(values[key]) for key in self.lines_by)
            if line not in best or cost(cell) < cost(best[line]):
                best[line] = cell
        numbers = all(isinstance(row_value, int | float) for row_value, _ in best)
        return dict(sorted(best.items(), key=lambda item: item[0][0])) if numbers else best

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({values[REPEATS] for values in self.swept_values})

    @property
    def outcomes(self) -> str:
        """The number of runs of each outcome as text, like `40 trained, 3 stuck, 5 diverged`."""
        counts = {**self.counts, **Counter(outcome for outcome, _, _ in self.untrained)}
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)

    @property
    def counts(self) -> dict[str, int]:
        """The number of trained, stuck, diverged and, where there are any, stopped runs."""
        counts = Counter(row.outcome for row in self.rows)
        stopped_outcome = ["stopped"] if counts["stopped"] else []
        return {outcome: counts[outcome] for outcome in ("trained", "stuck", "diverged", *stopped_outcome)}

    @property
    def early_outcomes(self) -> str:
        """The outcomes, as text, of runs that have no final loss."""
        return "diverged or stopped" if "stopped" in self.counts else "diverged"

    def tables(self) -> dict[str, dict[tuple[Any, Any], Cell]]:
        """Return the tables by name. Each maps (value of `row_key`, value of `column_key`) to a cell."""
        tables: dict[str, dict[tuple[Any, Any], Cell]] = {}
        for row, values in zip(self.rows, self.swept_values, strict=True):
            name = ", ".join(f"{key} {values[key]}" for key in self.tables_by)
            tables.setdefault(name, {}).setdefault((values[self.row_key], values[self.column_key]), Cell()).append(row)
        return tables

    @property
    def averaging_note(self) -> str:
        """The line that says what the numbers of a table are the mean of; "" where a cell has one run."""
        if self.seeds == 1:
            return ""
        note = f"mean +- standard deviation of {self.seeds} seeds"
        return f"{note} without those that {self.early_outcomes}; 1/{self.seeds}: one of them has trained"

    @cached_property
    def sensitivities(self) -> dict[int, float]:
        """The learning-rate sensitivity for each job, see `run.sensitivity`, over the runs that differ from it only in the rate.

        It is empty where no grid has several rates, where the measure is not a loss, and where a run was stopped.
        """
        is_grid = COLUMNS in self.varied_keys and not self.is_search
        if not (is_grid and self.measure.is_loss) or any(row.outcome == "stopped" for row in self.rows):
            return {}
        rows_without_rate: dict[str, list[Row]] = {}
        for row in self.rows:
            rows_without_rate.setdefault(self.label(row, COLUMNS), []).append(row)
        return {
            row.job: value
            for rows in rows_without_rate.values()
            for value in [sensitivity([row.value for row in rows], initial_loss(rows[0].config, self.measure.part))]
            for row in rows
        }

    @cached_property
    def is_search(self) -> bool:
        """Whether the runs are those of a search, and not of a grid: most cells have no run, or most tables have one cell."""
        tables = self.tables().values()
        cells = sum(map(len, tables))
        grid_cells = sum(
            len({row_value for row_value, _ in table}) * len({column_value for _, column_value in table}) for table in tables
        )
        return grid_cells >= 2 * cells or (len(tables) > 1 and cells < 2 * len(tables))

    @property
    def prefers_ranking(self) -> bool:
        """Whether a list of the best runs says more than tables: after a search, and where the one row is too long to be read."""
        cells = next(iter(self.tables().values()))
        rows = {row_value for row_value, _ in cells}
        return self.is_search or (len(self.tables()) == 1 and len(cells) > MAX_CELLS and len(rows) == 1)

    def label(self, row: Row, *excluded_keys: str) -> str:
        """Return a run's values of the swept keys, like `network.depth=5, seed=1`."""
        return ", ".join(f"{key}={value}" for key, value in row.key_values(self.varied_keys).items() if key not in excluded_keys)

    def columns(self) -> dict[str, list[Any]]:
        """Return columns with a value for each run: the swept keys, the sensitivity, the measure and the outcome."""
        columns: dict[str, list[Any]] = {key: [values[key] for values in self.swept_values] for key in self.varied_keys}
        values, outcomes = [row.value for row in self.rows], [row.outcome for row in self.rows]
        if self.sensitivities:
            columns[SENSITIVITY] = [self.sensitivities[row.job] for row in self.rows]
        return {**columns, self.measure.metric: values, "outcome": outcomes}

    def save(self, file: Path) -> None:
        """Write `columns` as a CSV file with a line for each run."""
        columns = self.columns()
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
