"""The report of a sweep as the text that its command prints at the end."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.pictures.report import MAX_CELLS, REPEATS, SENSITIVITY, Cell, Report, Row, axis_values, with_deviation
from experiments.run.naming import format_value, short_names

# The best runs of a search are listed, so many of them.
LISTED_RUNS = 10
# The text in place of a value that a run does not have.
PLACEHOLDERS = {"diverged": "-", "stopped": "."}
SENSITIVITY_NOTE = "the mean over the rates of min(loss, initial loss), less the smallest loss (Wortsman et al. 2023)"


def report_text(report: Report) -> str:
    """Return the tables as text, or the list of the best runs where the report prefers it.

    `*` marks the best cell, `-` a cell in which every run diverged, `.` a cell without values in which a run was stopped.
    """
    if report.prefers_ranking:
        return "\n".join([*_ranking_lines(report), *_best_lines(report)])
    lines = []
    for name, cells in report.tables().items():
        lines += [f"{report.measure.title}, {report.row_key} down, {report.column_key} across" + (f" ({name})" if name else "")]
        lines += [report.averaging_note] if report.averaging_note else []
        lines += _table_lines(report, cells)
    if report.sensitivities:
        lines.append(f"{SENSITIVITY}: {SENSITIVITY_NOTE}")
    return "\n".join([*lines, *_best_lines(report)])


def _table_lines(report: Report, cells: Mapping[tuple[Any, Any], Cell]) -> list[str]:
    """Return the lines of one table. The last column has each row's sensitivity, the mean over its runs."""
    row_values, column_values = axis_values(cells, 0), axis_values(cells, 1)
    if len(column_values) > MAX_CELLS:
        return [f"{len(column_values)} values across, too many to print: table.csv has them"]
    lines = _align(
        [["", *map(format_value, column_values)]]
        + [
            [
                format_value(row_value),
                *(_cell_text(report, cells.get((row_value, column_value), Cell())) for column_value in column_values),
            ]
            for row_value in row_values
        ]
    )
    if not report.sensitivities:
        return lines
    sensitivity_column = [SENSITIVITY]
    for row_value in row_values:
        rows = [row for (value, _), cell in cells.items() if value == row_value for row in cell]
        mean = statistics.fmean(report.sensitivities[row.job] for row in rows)
        sensitivity_column.append(f"{mean:.3g}" if math.isfinite(mean) else PLACEHOLDERS["diverged"])
    return [f"{line}  {value:>{len(SENSITIVITY)}}" for line, value in zip(lines, sensitivity_column, strict=True)]


def _ranking_lines(report: Report) -> list[str]:
    """Return the lines of the best runs, the best first, with their values of the swept keys."""
    best_rows = sorted(report.rows, key=lambda row: report.measure.cost(row.value))[:LISTED_RUNS]
    lines = [f"{report.measure.title}, the best {len(best_rows)} of {len(report.rows)} runs"]
    keys_by_name = short_names(report.varied_keys)
    keys = keys_by_name.values()
    table = [[_value_text(report, row), *(format_value(row.values.get(key, "")) for key in keys)] for row in best_rows]
    return lines + _align([["", *keys_by_name], *table])


def _value_text(report: Report, row: Row) -> str:
    if not math.isfinite(row.value):
        return PLACEHOLDERS[Cell([row]).missing_reason]
    return f"{row.value:.4g}{'*' * (row is report.best_run)}"


def _best_lines(report: Report) -> list[str]:
    best_run, cell = report.best_run, report.best_cell
    if best_run is None:
        return [f"every run {report.early_outcomes} ({len(report.rows)} runs)"]
    if report.seeds == 1 or report.prefers_ranking:
        return [f"best (*): {best_run.value:.4g} at {report.label(best_run) or 'the only run'};  {report.outcomes}"]
    lines = [f"no best cell: in each of them a seed {report.early_outcomes}"]
    if cell:
        cell_label = report.label(cell[0], REPEATS) or "the only cell"
        lines = [f"best cell (*): {with_deviation(cell, 4)}, the mean of {len(cell)} seeds, at {cell_label}"]
    return [*lines, f"best run: {best_run.value:.4g} at {report.label(best_run)};  {report.outcomes}"]


def _cell_text(report: Report, cell: Cell) -> str:
    if not cell.finite_rows:
        return PLACEHOLDERS[cell.missing_reason] if cell else ""
    mark = "*" if report.best_cell is not None and cell[0] is report.best_cell[0] else ""
    return f"{with_deviation(cell, 3)}{mark}  {cell.trained_share}".rstrip()


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with aligned columns."""
    max_length = max(len(cell) for row in rows for cell in row)
    # Cells that contain a space are separated by two spaces.
    width = max(10, max_length + 1 + any(" " in cell for row in rows for cell in row))
    return ["".join(f"{cell:>{width}}" for cell in row) for row in rows]
