"""What is drawn and kept once the runs are there: pictures and table of the sweep, pictures and models of its runs.

Drawing a run takes longer than training it, so by default that is done for the best alone (`tracking.pictures`,
`tracking.models`); `history.npz` has what it takes to draw any other later.
"""

import math
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.history import History
from experiments.pictures import figures
from experiments.pictures.report import ROWS, Report, Row, shown
from experiments.run.config import Config
from experiments.run.data import task
from experiments.run.interrupts import raise_lost_interrupt
from experiments.run.pool import Pool, cores

if TYPE_CHECKING:
    from experiments.record.files import Files
    from experiments.record.reading import Archive, Recorded
    from experiments.record.tracking import Run, Store

FOLDER = "pictures"


def keep_sweep(store: "Store", parent: "Run", report: Report, folder: Path) -> str:
    """Draw the sweep into `folder`, log its table and description, and what is asked for of its runs.

    Returns its study's verdict, "" where it has none.
    """
    from experiments.record.reading import Archive

    tracking = report.rows[0].config.tracking
    chosen = {"best": [report.best] if report.best else [], "all": report.rows, "none": []}
    # Not all of them: thousands of MLflow's runs would fill the memory.
    best_of = best_by(report.rows, report.down)
    needed = {row.job for row in [*best_of.values(), *chosen["best"], *chosen[tracking.pictures], *chosen[tracking.models]]}
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as downloads:
        archive = Archive(store.uri, Path(downloads))
        found = store.at_once(*(partial(archive.job, parent.run_id, job) for job in sorted(needed)))
        runs = {job: run for job, run in zip(sorted(needed), found, strict=True) if run}
        drawn = [row for row in chosen[tracking.pictures] if row.job in runs]
        items = [(runs[row.job].files().history, Path(name, str(row.job))) for row in drawn]
        # Other processes draw the runs meanwhile.
        with Pool(draw_run, items, cores()) as pool:
            _draw_sweep(report, best_of, runs, folder)
            verdict = _draw_study(report, archive, parent.run_id, folder)
            parent.tabulate(report.columns())
            parent.note(description(report, parent.run_id, runs, verdict))
            for row in chosen[tracking.models]:
                if row.job in runs:
                    name_of_best = tracking.register if row is report.best else None
                    keep_model(store, runs[row.job].run_id, row.config, runs[row.job].files(), name_of_best)
            for number, error in pool.results(raise_lost_interrupt, 1.0):
                if error is not None:
                    raise error
                store.run(runs[drawn[number].job].run_id).keep(items[number][1])
    return verdict


def _draw_sweep(report: Report, best_of: dict[Any, Row], runs: dict[int, "Recorded"], folder: Path) -> None:
    figures.save(folder, map=figures.sweep_map(report))
    if report.rows[0].config.tracking.pictures == "none":
        return
    histories = {value: runs[row.job].files().history for value, row in best_of.items() if row.job in runs}
    name = "depth" if report.down == ROWS else report.down
    drawn = {"best_curves": figures.best_curves({f"{name} {shown(value)}": history for value, history in histories.items()})}
    if report.down == ROWS and len(histories) > 1:
        drawn["norm_ratios"] = figures.norm_ratios(histories)
    figures.save(folder, **drawn)


def _draw_study(report: Report, archive: "Archive", parent: str, folder: Path) -> str:
    """The study's picture into `folder`; its verdict."""
    name = report.rows[0].config.sweep.study
    if name is None:
        return ""
    from experiments.pictures.studies import STUDIES, Observed

    recorded = {int(run.tags["job"]): run for run in archive.sweep(parent)}
    observed = [Observed(row.config, row.outcome, recorded[row.job]) for row in report.rows if row.job in recorded]
    figure, verdict = STUDIES[name].draw(observed)
    figures.save(folder, **{name: figure})
    return str(verdict)


def draw_run(history: History, folder: Path) -> None:
    """Loss curves, and gradient norms by block and step, of one run, into the folder `pictures` in `folder`."""
    drawn = {"loss": figures.loss_curves(history), "grad_norm_map": figures.norm_map(history)}
    figures.save(folder / FOLDER, **drawn, grad_norm_by_block=figures.norm_profile(history))


def keep_model(store: "Store", run_id: str, config: Config, kept: "Files", register: str | None = None) -> None:
    """One run's network as an MLflow model."""
    from experiments.record.model import log_model

    log_model(store, run_id, config, kept, task(config), register)


def best_by(rows: Iterable[Row], key: str) -> dict[Any, Row]:
    """Each value of that key -> its run with the smallest final loss; numbers in their order, then whatever else there is."""
    best: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: row.loss):
        best.setdefault(row.place([key])[key], row)
    numbers = sorted(value for value in best if isinstance(value, int | float))
    others = sorted((value for value in best if not isinstance(value, int | float)), key=str)
    return {value: best[value] for value in [*numbers, *others]}


def description(report: Report, parent: str, runs: dict[int, "Recorded"], verdict: str) -> str:
    """The sweep in words, as markdown: what was swept, what came of it, how to have it again."""
    lines = [f"**{len(report.rows) + len(report.lost)} runs: {report.outcomes}**", ""]
    lines += [f"- lost: {name}: {reason}" for name, reason in report.lost.items()]
    for key in report.varied:
        values = list(dict.fromkeys(shown(place[key]) for place in report.places))
        lines.append(f"- `{key}`: {', '.join(values[:24])}" + (", ..." if len(values) > 24 else ""))
    best = report.best
    if best and math.isfinite(best.loss) and best.job in runs:
        place = ", ".join(f"`{key}={shown(value)}`" for key, value in best.place(report.varied).items())
        lines += ["", f"Best final training loss: **{best.loss:.4g}** at {place} (run `{runs[best.job].run_id}`)"]
    if verdict:
        lines += ["", f"{report.rows[0].config.sweep.study}: {verdict}"]
    return "\n".join(
        [*lines, "", "Train it again and prove it identical:", "", f"    python -m experiments.reproduce --sweep {parent}"]
    )
