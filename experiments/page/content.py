"""What a sweep's page shows, as plain values: its runs with their curves, gradient norms and distributions, and their config.

What a page may take is shared out among the runs: of more runs, or deeper ones, it has fewer steps.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blocks.arrays import Array
from blocks.history import History, evenly_spaced, log_spaced
from experiments.page import packed
from experiments.page.question import command, question
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

# Steps of a curve, and of gradient norms; blocks that have one; gradient norms in a page, of all runs.
POINTS, FEWEST, BLOCKS, NORMS = 200, 8, 65, 400_000
# Bins of distributions in a page, of all runs.
BINS_OF_ALL = 1_500_000
# Of these a record says what it must, and a page that is handed on need not.
PRIVATE = ("git.branch",)


@dataclass(frozen=True)
class Heading:
    """What a page says of its sweep, or of its one run. picture: its study's, as .svg."""

    run_id: str
    name: str
    verdict: str = ""
    picture: Path | None = None


def content(heading: Heading, report: Report, runs: "Mapping[int, RecordedRun]") -> dict[str, Any]:
    """All that the page's script draws. runs: job -> its record, of the report's rows.

    A run whose files are not what was recorded is left out, and the page says so; raises UserError where none is left.
    """
    grids: list[Array] = []
    rows, drawn, environments, damaged = _drawn(report, runs, grids)
    if not rows:
        raise UserError(damaged[0])
    keys = _keys(report)
    return {
        "name": printable(heading.name),
        "question": question([row.config for row in report.rows]),
        "outcomes": report.outcomes,
        "damaged": damaged,
        "verdict": printable(heading.verdict),
        "picture": _data_uri(heading.picture) if heading.picture else "",
        "measure": report.measure.title,
        "curve": report.measure.name,
        "isLoss": report.measure.is_loss,
        "isSearch": report.is_search,
        "averaged": report.averaged,
        "ceiling": CEILING * max(load_task(row.config).constant_loss for row in rows),
        "floor": FLOOR,
        "keys": keys,
        "down": report.down,
        "across": report.across,
        "seed": REPEATS,
        "runs": [{**one, "place": _place(report, row, keys)} for row, one in zip(rows, drawn, strict=True)],
        "grids": [packed.floats(grid) for grid in grids],
        "config": _common([row.values for row in rows]),
        "environment": _common(environments, PRIVATE),
        "commands": _commands(heading, report),
    }


def _drawn(
    report: Report, runs: "Mapping[int, RecordedRun]", grids: list[Array]
) -> tuple[list[Row], list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """The rows that can be read in the order of the jobs, what is drawn of each, their environments; what cannot be read."""
    rows = [row for row in report.rows if row.job in runs]
    steps, room, damaged = _steps_of_norms(rows), BINS_OF_ALL, []
    found: dict[int, tuple[Row, dict[str, Any], dict[str, str]]] = {}
    # The best first: they have distributions while there is room.
    for row in sorted(rows, key=lambda row: report.measure.cost(row.value)):
        try:
            files = runs[row.job].files()
        except UserError as error:
            damaged.append(str(error))
            continue
        history, shares = files.history, distributions(files.history) if room > 0 else {}
        room -= sum(distribution.shares.size for distribution in shares.values())
        one = {
            **_named(row, runs[row.job], history),
            "curves": {name: _curve(*curve, grids) for name, curve in _curves(history).items()},
            "norms": _norms(history, steps, grids),
            "distributions": {symbol: _distribution(distribution, grids) for symbol, distribution in shares.items()},
            "theory": _theory(row.config, shares.get("z")),
        }
        found[row.job] = row, one, files.environment
    ordered = [found[job] for job in sorted(found)]
    return [row for row, _, _ in ordered], [one for _, one, _ in ordered], [own for _, _, own in ordered], damaged


def _named(row: Row, run: "RecordedRun", history: History) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "name": run.name,
        "outcome": row.outcome,
        "value": row.value if math.isfinite(row.value) else None,
        "diverged": [int(history.diverged_step), int(history.diverged_block)],
    }


def _keys(report: Report) -> list[dict[str, Any]]:
    """What is swept: the key, a short word for it, its values as people write them, numbers in ascending order."""
    keys = []
    for word, key in short_names(report.varied).items():
        values = list(dict.fromkeys(place[key] for place in report.places))
        if all(isinstance(value, int | float) for value in values):
            values.sort()
        keys.append({"key": key, "word": word, "values": list(dict.fromkeys(map(format_value, values)))})
    return keys


def _place(report: Report, row: Row, keys: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which of the values of each key the run has."""
    values = row.place(report.varied)
    return [key["values"].index(format_value(values[key["key"]])) for key in keys]


def _curves(history: History) -> dict[str, tuple[Array, Array]]:
    """name -> (steps, values) of a single lane."""
    batches = log_spaced(history.loss.shape[-1], POINTS)
    whole = evenly_spaced(len(history.evaluated), POINTS)
    curves = {name: (history.evaluated[whole], values[whole]) for name, values in history.measures.items()}
    return {**curves, "loss/batch": (batches, history.loss[batches])}


def _curve(steps: Array, values: Array, grids: list[Array]) -> dict[str, Any]:
    return {"grid": _number(steps, grids), "values": packed.floats(values)}


def _number(steps: Array, grids: list[Array]) -> int:
    """Where those steps stand among the grids, to which they are added: most runs share them."""
    for number, grid in enumerate(grids):
        if np.array_equal(grid, steps):
            return number
    grids.append(steps)
    return len(grids) - 1


def _steps_of_norms(rows: Iterable[Row]) -> int:
    """At how many steps a run's gradient norms are in the page."""
    blocks = sum(min(row.config.network.depth, BLOCKS) for row in rows)
    return max(FEWEST, min(POINTS, NORMS // max(blocks, 1)))


def _norms(history: History, count: int, grids: list[Array]) -> dict[str, Any]:
    """log10 ||dW_l|| of blocks 1..L, -inf for a norm of 0: norms may be smaller than any float32."""
    steps = log_spaced(history.loss.shape[-1], count)
    blocks = evenly_spaced(history.grad_norm.shape[-1], BLOCKS)
    with np.errstate(divide="ignore"):
        norms = np.log10(history.grad_norm[np.ix_(steps, blocks)])
    return {"blocks": (blocks + 1).tolist(), **_curve(steps, norms, grids)}


def _distribution(found: Distribution, grids: list[Array]) -> dict[str, Any]:
    """heights: 255 is the highest."""
    return {
        "grid": _number(found.at, grids),
        "blocks": found.blocks.tolist(),
        "edges": packed.floats(found.edges),
        "log": found.is_logarithmic,
        "heights": packed.bytes_of(np.round(255 * found.heights)),
    }


def _theory(config: Config, z: Distribution | None) -> dict[str, Any] | None:
    """The heights of mean-field theory's normal densities over those of z in the initial network, where there are both."""
    if z is None or z.at[0] > 0 or (variances := mean_field_variances(config, load_task(config))) is None:
        return None
    return packed.floats(z.normal_heights(variances))


def _common(runs: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> dict[str, str]:
    """The values that all runs share, as text; those of where a record goes are no one else's concern."""
    keys = [key for key in runs[0] if key.partition(".")[0] not in RECORD_GROUPS and key not in without]
    shared = {key: runs[0][key] for key in keys if all(run.get(key) == runs[0][key] for run in runs)}
    return {key: "null" if value is None else printable(format_value(value)) for key, value in shared.items()}


def _data_uri(picture: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.read_bytes()).decode()


def _commands(heading: Heading, report: Report) -> list[dict[str, str]]:
    """What is typed for what."""
    again = command([row.config for row in report.rows])
    whole = "--sweep " if len(report.rows) > 1 else ""
    lines = [
        {"does": "Run it again", "types": again},
        {"does": "Train it again from its record, and prove it identical", "types": f"reproduce {whole}{heading.run_id}"},
        {"does": "Write this page again", "types": f"report {heading.run_id}"},
    ]
    return [
        {**line, "types": line["types"] if line["types"] == again else f"python -m experiments.{line['types']}"}
        for line in lines
        if line["types"]
    ]
