"""A sweep's report as the text that its command ends with."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.pictures.report import MOST, REPEATS, SENSITIVITY, Cell, Report, Row, with_deviation
from experiments.run.naming import format_value, short_names

# Runs of a search that are listed.
BEST = 10
# What stands for the value of a run that has none.
MISSING = {"diverged": "-", "stopped": "."}
SENSITIVITY_IS = "the mean over the rates of min(loss, initial loss), less the smallest loss (Wortsman et al. 2023)"


def text(report: Report) -> str:
    """The tables as text; * marks the best cell, `-` a cell in which every run diverged, `.` one in which one was stopped.

    Of a search, its best runs.
    """
    if report.scattered:
        return "\n".join([*_ranking(report), *_best_lines(report)])
    lines = []
    for name, cells in report.tables().items():
        lines += [f"{report.measure.title}, {report.down} down, {report.across} across" + (f" ({name})" if name else "")]
        lines += [report.averaged] if report.averaged else []
        lines += _table(report, cells)
    if report.sensitivities:
        lines.append(f"{SENSITIVITY}: {SENSITIVITY_IS}")
    return "\n".join([*lines, *_best_lines(report)])


def _table(report: Report, cells: Mapping[tuple[Any, Any], Cell]) -> list[str]:
    """One table's lines, at the end of each its sensitivity, the mean over the seeds."""
    downs, acrosses = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    if len(acrosses) > MOST:
        return [f"{len(acrosses)} values across, too many to print: table.csv has them"]
    lines = _aligned(
        [["", *map(format_value, acrosses)]]
        + [[format_value(down), *(_text(report, cells.get((down, across), Cell())) for across in acrosses)] for down in downs]
    )
    if not report.sensitivities:
        return lines
    last = [SENSITIVITY]
    for down in downs:
        mean = statistics.fmean(report.sensitivities[row.job] for (at, _), cell in cells.items() if at == down for row in cell)
        last.append(f"{mean:.3g}" if math.isfinite(mean) else MISSING["diverged"])
    return [f"{line}  {value:>{len(SENSITIVITY)}}" for line, value in zip(lines, last, strict=True)]


def _ranking(report: Report) -> list[str]:
    """The best runs first, with the values of the keys that differ."""
    best = sorted(report.rows, key=lambda row: report.measure.cost(row.value))[:BEST]
    lines = [f"{report.measure.title}, the best {len(best)} of {len(report.rows)} runs"]
    named = short_names(report.varied)
    table = [[_value(report, row), *(format_value(row.values.get(key, "")) for key in named.values())] for row in best]
    return lines + _aligned([["", *named], *table])


def _value(report: Report, row: Row) -> str:
    if not math.isfinite(row.value):
        return MISSING[Cell([row]).missing]
    return f"{row.value:.4g}{'*' * (row is report.best)}"


def _best_lines(report: Report) -> list[str]:
    best, cell = report.best, report.best_cell
    if best is None:
        return [f"every run {report.ended_early} ({len(report.rows)} runs)"]
    if report.seeds == 1 or report.scattered:
        return [f"best (*): {best.value:.4g} at {report.place(best) or 'the only run'};  {report.outcomes}"]
    lines = [f"no best cell: in each of them a seed {report.ended_early}"]
    if cell:
        place = report.place(cell[0], REPEATS) or "the only cell"
        lines = [f"best cell (*): {with_deviation(cell, 4)}, the mean of {len(cell)} seeds, at {place}"]
    return [*lines, f"best run: {best.value:.4g} at {report.place(best)};  {report.outcomes}"]


def _text(report: Report, cell: Cell) -> str:
    if not cell.survivors:
        return MISSING[cell.missing] if cell else ""
    mark = "*" if report.best_cell is not None and cell[0] is report.best_cell[0] else ""
    return f"{with_deviation(cell, 3)}{mark}  {cell.share}".rstrip()


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, their cells one below the other."""
    longest = max(len(cell) for row in rows for cell in row)
    # Two spaces part cells that have a space themselves.
    width = max(10, longest + 1 + any(" " in cell for row in rows for cell in row))
    return ["".join(f"{cell:>{width}}" for cell in row) for row in rows]
