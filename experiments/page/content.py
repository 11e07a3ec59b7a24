"""The content of a sweep's page as plain values: the runs with their curves, gradient norms and distributions, and their config.

The size of a page is limited: with more runs, or deeper ones, it has fewer steps of each.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blocks.arrays import Array
from blocks.history import History, evenly_spaced, log_spaced
from experiments.page import packed
from experiments.page.question import find_question, train_command
from experiments.pictures.distributions import Distribution, distributions
from experiments.pictures.figures import CEILING, FLOOR
from experiments.pictures.report import REPEATS, Report, Row
from experiments.pictures.signals import mean_field_variances
from experiments.record.identity import RECORD_GROUPS
from experiments.run.config import Config, UserError, printable
from experiments.run.data import load_task
from experiments.run.naming import format_value, short_names

if TYPE_CHECKING:
    from experiments.record.reading import RecordedRun

# The most and the fewest steps of a curve, and of gradient norms; the most blocks of these.
MAX_STEPS, MIN_STEPS, MAX_BLOCKS = 200, 8, 65
# About so many values of curves, and so many gradient norms, are in a page. A run has up to CURVES curves without instruments.
MAX_VALUES, CURVES = 400_000, 5
# About so many bins of distributions are in a page.
MAX_BINS = 1_500_000
# The keys of a record's environment that a page omits, since it may be given to others.
OMITTED_ENVIRONMENT = ("git.branch",)


@dataclass(frozen=True)
class Heading:
    """The heading of a page about a sweep, or about one run. picture: the .svg file of its study, None where it has no study."""

    run_id: str
    name: str
    verdict: str = ""
    picture: Path | None = None


def page_content(heading: Heading, report: Report, runs: "Mapping[int, RecordedRun]") -> dict[str, Any]:
    """Return all that the page's script draws. runs: maps the job of each of the report's rows to its record.

    A run with damaged files is omitted, and the page says so. Raises UserError where every run is damaged.
    """
    grids: list[Array] = []
    rows, run_contents, environments, errors = _read_runs(report, runs, grids)
    if not rows:
        raise UserError(errors[0])
    keys = _keys(report)
    return {
        "name": printable(heading.name),
        "question": find_question([row.config for row in report.rows]),
        "outcomes": report.outcomes,
        "damaged": errors,
        "verdict": printable(heading.verdict),
        "picture": _data_uri(heading.picture) if heading.picture else "",
        "measure": report.measure.title,
        "curve": report.measure.name,
        "isLoss": report.measure.is_loss,
        "isSearch": report.is_search,
        "averaged": report.averaging_note,
        "ceiling": CEILING * max(load_task(row.config).constant_loss for row in rows),
        "floor": FLOOR,
        "keys": keys,
        "down": report.row_key,
        "across": report.column_key,
        "seed": REPEATS,
        "runs": [
            {**run_content, "place": _value_indices(report, row, keys)}
            for row, run_content in zip(rows, run_contents, strict=True)
        ],
        "grids": [packed.pack_floats(grid) for grid in grids],
        "config": _shared_values([row.values for row in rows]),
        "environment": _shared_values(environments, OMITTED_ENVIRONMENT),
        "commands": _commands(heading, report),
    }


def _read_runs(
    report: Report, runs: "Mapping[int, RecordedRun]", grids: list[Array]
) -> tuple[list[Row], list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """Return the rows with readable files, in the order of jobs, their contents and environments, and the errors of others."""
    rows = [row for row in report.rows if row.job in runs]
    curve_steps = _count_steps(CURVES * len(rows))
    norm_steps = _count_steps(sum(min(row.config.network.depth, MAX_BLOCKS) for row in rows))
    bins_left, errors = MAX_BINS, []
    contents_by_job: dict[int, tuple[Row, dict[str, Any], dict[str, str]]] = {}
    # The best runs come first: they have distributions until the page has MAX_BINS bins.
    for row in sorted(rows, key=lambda row: report.measure.cost(row.value)):
        try:
            files = runs[row.job].files()
        except UserError as error:
            errors.append(str(error))
            continue
        history, shares = files.history, distributions(files.history) if bins_left > 0 else {}
        bins_left -= sum(distribution.shares.size for distribution in shares.values())
        run_content = {
            **_identity(row, runs[row.job], history),
            "curves": {name: _curve(*curve, grids) for name, curve in _curves(history, curve_steps).items()},
            "norms": _norms(history, norm_steps, grids),
            "distributions": {symbol: _distribution(distribution, grids) for symbol, distribution in shares.items()},
            "theory": _theory(row.config, shares.get("z")),
        }
        contents_by_job[row.job] = row, run_content, files.environment
    contents = [contents_by_job[job] for job in sorted(contents_by_job)]
    return (
        [row for row, _, _ in contents],
        [run_content for _, run_content, _ in contents],
        [environment for _, _, environment in contents],
        errors,
    )


def _identity(row: Row, run: "RecordedRun", history: History) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "name": run.name,
        "outcome": row.outcome,
        "value": row.value if math.isfinite(row.value) else None,
        "diverged": [int(history.diverged_step), int(history.diverged_block)],
    }


def _keys(report: Report) -> list[dict[str, Any]]:
    """Return for each swept key the key, a short word for it, and its values as text, numbers in ascending order."""
    keys = []
    for word, key in short_names(report.varied_keys).items():
        values = list(dict.fromkeys(values_of_run[key] for values_of_run in report.swept_values))
        if all(isinstance(value, int | float) for value in values):
            values.sort()
        keys.append({"key": key, "word": word, "values": list(dict.fromkeys(map(format_value, values)))})
    return keys


def _value_indices(report: Report, row: Row, keys: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the index of the run's value among the values of each key."""
    values = row.key_values(report.varied_keys)
    return [key["values"].index(format_value(values[key["key"]])) for key in keys]


def _curves(history: History, count: int) -> dict[str, tuple[Array, Array]]:
    """Return (steps, values) by name for a history of a single lane, at up to `count` steps."""
    batch_steps = log_spaced(history.loss.shape[-1], count)
    epoch_indices = evenly_spaced(len(history.evaluated), count)
    curves = {name: (history.evaluated[epoch_indices], values[epoch_indices]) for name, values in history.measures.items()}
    return {**curves, "loss/batch": (batch_steps, history.loss[batch_steps])}


def _curve(steps: Array, values: Array, grids: list[Array]) -> dict[str, Any]:
    return {"grid": _grid_index(steps, grids), "values": packed.pack_floats(values)}


def _grid_index(steps: Array, grids: list[Array]) -> int:
    """Return the index of those steps among the grids, and append them where they are new. Most runs share a grid."""
    for index, grid in enumerate(grids):
        if np.array_equal(grid, steps):
            return index
    grids.append(steps)
    return len(grids) - 1


def _count_steps(curves: int) -> int:
    """Return the number of steps that each of so many curves has."""
    return max(MIN_STEPS, min(MAX_STEPS, MAX_VALUES // max(curves, 1)))


def _norms(history: History, count: int, grids: list[Array]) -> dict[str, Any]:
    """Return log10 ||dW_l||, since norms may be smaller than any float32; it is -inf for a norm of 0."""
    steps = log_spaced(history.loss.shape[-1], count)
    blocks = evenly_spaced(history.grad_norm.shape[-1], MAX_BLOCKS)
    with np.errstate(divide="ignore"):
        norms = np.log10(history.grad_norm[np.ix_(steps, blocks)])
    return {"blocks": (blocks + 1).tolist(), **_curve(steps, norms, grids)}


def _distribution(distribution: Distribution, grids: list[Array]) -> dict[str, Any]:
    """Return a distribution with its heights as whole numbers; 255 is the largest height of a block and step."""
    return {
        "grid": _grid_index(distribution.steps, grids),
        "blocks": distribution.blocks.tolist(),
        "edges": packed.pack_floats(distribution.edges),
        "log": distribution.is_logarithmic,
        "heights": packed.pack_bytes(np.round(255 * distribution.heights)),
    }


def _theory(config: Config, z: Distribution | None) -> dict[str, Any] | None:
    """Return the normal heights of mean-field theory for the initial z; None where z or the theory is missing."""
    if z is None or z.steps[0] > 0 or (variances := mean_field_variances(config, load_task(config))) is None:
        return None
    return packed.pack_floats(z.normal_heights(variances))


def _shared_values(runs: Sequence[Mapping[str, Any]], omitted_keys: Sequence[str] = ()) -> dict[str, str]:
    """Return the values, as text, that all runs share, without the keys about the record, which concern nobody else."""
    keys = [key for key in runs[0] if key.partition(".")[0] not in RECORD_GROUPS and key not in omitted_keys]
    shared = {key: runs[0][key] for key in keys if all(run.get(key) == runs[0][key] for run in runs)}
    return {key: "null" if value is None else printable(format_value(value)) for key, value in shared.items()}


def _data_uri(picture: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.read_bytes()).decode()


def _commands(heading: Heading, report: Report) -> list[dict[str, str]]:
    """Return the commands of the page, each with what it does."""
    command = train_command([row.config for row in report.rows])
    sweep_option = "--sweep " if len(report.rows) > 1 else ""
    lines = [
        {"does": "Run it again", "types": command},
        {"does": "Train it again from its record, and prove it identical", "types": f"reproduce {sweep_option}{heading.run_id}"},
        {"does": "Write this page again", "types": f"report {heading.run_id}"},
    ]
    return [
        {**line, "types": line["types"] if line["types"] == command else f"python -m experiments.{line['types']}"}
        for line in lines
        if line["types"]
    ]
