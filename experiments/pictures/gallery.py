"""What is drawn and kept once the runs are there: pictures and table of the sweep, pictures and models of its runs.

Drawing a run takes longer than training it, so by default that is done for the best alone (`tracking.pictures`,
`tracking.models`); `history.npz` has what it takes to draw any other later.
"""

import itertools
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from blocks.history import History
from experiments.pictures import figures
from experiments.pictures.report import REPEATS, ROWS, Cell, Report, with_deviation
from experiments.pictures.slices import slices
from experiments.run.config import Config
from experiments.run.data import load_task
from experiments.run.interrupts import raise_lost_interrupt
from experiments.run.naming import format_value
from experiments.run.pool import Pool, cores
from experiments.run.repeats import stack_histories
from experiments.run.stack import STOPPED
from experiments.run.tile import OUTCOMES

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from experiments.record.files import Files
    from experiments.record.reading import Archive, RecordedRun
    from experiments.record.run import Run
    from experiments.record.tracking import Store

FOLDER, REPORT = "pictures", "report.html"
# Of a run without an outcome, by MLflow's status.
FATES = {"FAILED": "failed", "KILLED": "lost"}


def keep_sweep(store: "Store", parent: "Run", report: Report, folder: Path) -> str:
    """Draw the sweep into `folder`, log its table and description, and what is asked for of its runs.

    Returns its study's verdict, "" where it has none.
    """
    from experiments.record.reading import Archive

    tracking = report.rows[0].config.tracking
    chosen = {"best": [report.best] if report.best else [], "all": report.rows, "none": []}
    # Not all of them: thousands of MLflow's runs would fill the memory.
    best_of = report.best_cells()
    of_cells = itertools.chain(*best_of.values())
    needed = {row.job for row in [*of_cells, *chosen["best"], *chosen[tracking.pictures], *chosen[tracking.models]]}
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as downloads:
        archive = Archive(store.uri, Path(downloads))
        found = store.call_concurrently(*(partial(archive.job, parent.run_id, job) for job in sorted(needed)))
        runs = {job: run for job, run in zip(sorted(needed), found, strict=True) if run}
        drawn = [row for row in chosen[tracking.pictures] if row.job in runs]
        items = [(row.config, runs[row.job].files(), Path(name, str(row.job))) for row in drawn]
        # Other processes draw the runs meanwhile.
        with Pool(draw_run, items, cores()) as pool:
            _draw_sweep(report, best_of, runs, folder)
            verdict = _tell_sweep(report, archive, parent.run_id, folder)
            parent.log_table(report.columns())
            parent.log_summary({}, _results(report, runs))
            parent.set_description(description(report, store.experiment_id, parent.run_id, runs, verdict, folder))
            if report.best and report.best.job in runs:
                # MLflow's page of charts has no other place for them: of the runs that it shows, this one is always there.
                store.page.log_pictures(parent.run_id, runs[report.best.job].run_id, pictures_of(folder))
            for row in chosen[tracking.models]:
                if row.job in runs:
                    name_of_best = tracking.register if row is report.best else None
                    keep_model(store, runs[row.job].run_id, row.config, runs[row.job].files(), name_of_best)
            for number, error in pool.results(raise_lost_interrupt, 1.0):
                if error is not None:
                    raise error
                store.run(runs[drawn[number].job].run_id).log_artifacts(items[number][-1])
    return verdict


def describe_failure(store: "Store", parent: "Run", count: int) -> None:
    """The description of a sweep of `count` runs that ends without a table: what became of them, and why."""
    from experiments.record.claims import REASON

    newest: dict[str, MlflowRun] = {}
    for run in store.children(parent.run_id, "tags.kind = 'run'"):
        newest.setdefault(run.data.tags.get("job", ""), run)
    fates = {job: run.data.tags.get("outcome") or FATES.get(run.info.status, "failed") for job, run in newest.items()}
    counts = Counter(fates.values()) + Counter({"not begun": count - len(newest)})
    outcomes = ", ".join(f"{counts[fate]} {fate}" for fate in (*OUTCOMES, STOPPED, *FATES.values(), "not begun") if counts[fate])
    lines = [f"**{count} run{'s' * (count > 1)}: {outcomes}**", ""]
    # In the order in which they were begun.
    for job, run in reversed(newest.items()):
        if REASON in run.data.tags:
            lines.append(f"- {fates[job]}: job {job} ({run.info.run_name}): {run.data.tags[REASON]}")
    parent.set_description("\n".join(lines))


def pictures_of(folder: Path) -> list[Path]:
    """The pictures that are drawn into the folder, a sweep's map or a run's losses first."""
    return sorted(folder.glob("*.png"), key=lambda file: (file.stem not in ("map", "loss"), file.name))


def _draw_sweep(report: Report, best_of: dict[tuple[Any, str], Cell], runs: dict[int, "RecordedRun"], folder: Path) -> None:
    figures.save(folder, map=slices(report) if report.is_search else figures.sweep_map(report))
    if report.rows[0].config.tracking.pictures == "none":
        return

    def recorded(cell: Cell) -> list[History]:
        """Of those of its runs that have not diverged, as the table's means are; of all where all have."""
        return [runs[row.job].files().history for row in cell.survivors or cell if row.job in runs]

    histories = {place: stack_histories(seeds) for place, cell in best_of.items() if (seeds := recorded(cell))}
    drawn = {"best_curves": figures.best_curves(report, histories)}
    if report.down == ROWS and len({depth for depth, _ in histories}) > 1:
        drawn["norm_ratios"] = figures.norm_ratios(report, histories)
    if (cell := report.best_cell) and len(seeds := recorded(cell)) > 1:
        best, place = stack_histories(seeds), report.place(cell[0], REPEATS)
        drawn["grad_norm_by_block"] = figures.norm_profile(best, place)
        drawn["grad_norm_by_step"] = figures.norm_curves(best, place)
    figures.save(folder, **drawn)


def _tell_sweep(report: Report, archive: "Archive", parent: str, folder: Path) -> str:
    """What needs every run of the sweep: its study's picture and its page, into `folder`. The study's verdict."""
    asked = report.rows[0].config.sweep
    if asked.study is None and not asked.report:
        return ""
    runs = archive.sweep(parent)
    verdict = draw_study(report, runs, folder)
    if asked.report:
        from experiments.page.content import Heading, content
        from experiments.page.html import page

        picture = folder / f"{asked.study}.svg" if asked.study else None
        heading = Heading(parent, str(archive.get_run(parent).info.run_name), verdict, picture)
        recorded = {int(run.tags["job"]): run for run in runs}
        (folder / REPORT).write_text(page(content(heading, report, recorded)), encoding="utf-8")
    return verdict


def draw_study(report: Report, runs: "Sequence[RecordedRun]", folder: Path) -> str:
    """The picture of the sweep's study into `folder`, as NAME.png and NAME.svg; its verdict, "" where it has none.

    runs: the records of the report's rows, in any order.
    """
    name = report.rows[0].config.sweep.study
    if name is None:
        return ""
    from experiments.pictures.studies import STUDIES, Observed

    recorded = {int(run.tags["job"]): run for run in runs}
    observed = [Observed(row.config, row.outcome, recorded[row.job]) for row in report.rows if row.job in recorded]
    figure, verdict = STUDIES[name].draw(observed)
    figures.save(folder, **{name: figure})
    return str(verdict)


def draw_run(config: Config, kept: "Files", folder: Path) -> None:
    """Loss curves, and gradient norms by block and step, of one run, into the folder `pictures` in `folder`; and what is drawn of
    its instruments.
    """
    history = kept.history
    drawn = {"loss": figures.loss_curves(history), "grad_norm_map": figures.norm_map(history)}
    figures.save(folder / FOLDER, **drawn, grad_norm_by_block=figures.norm_profile(stack_histories([history])))
    figures.save(folder / FOLDER, **_of_instruments(config, kept))


def _of_instruments(config: Config, kept: "Files") -> dict[str, Figure]:
    """Name -> picture of what the run's instruments have measured."""
    from experiments.pictures import landscape, signals

    history, task, drawn = kept.history, load_task(config), {}
    if signals.NAME in history.quantities:
        for name, symbol in (("activations", "a"), ("gradients", "da"), ("weight_gradients", "dW")):
            word = "dead" if config.network.activation == "relu" else "saturated"
            drawn[name] = signals.distribution(history, symbol, word)
        drawn["update_to_data"] = signals.update_to_data(history)
        drawn["pre_activations"] = signals.ridge(history, signals.mean_field_variances(config, task))
        drawn["saturation"] = landscape.saturation_map(config, task, kept.parameters)
    if landscape.NAME in history.quantities and landscape.has_regions(task):
        drawn["decisions"] = landscape.decision_regions(config, task, history)
    if "sharpness" in history.quantities and history.diverged_step < 0:
        drawn["loss_slice"] = landscape.loss_slice(config, task, kept.parameters)
    return drawn


def keep_run(run: "Run", config: Config, kept: "Files", folder: Path) -> None:
    """Draw a run that is alone into `folder`, and show the pictures in its description."""
    draw_run(config, kept, folder)
    run.log_artifacts(folder)
    names = [f"{FOLDER}/{file.name}" for file in pictures_of(folder / FOLDER)]
    links, images = linked(run.experiment.experiment_id, run.run_id, names)
    run.set_description(f"Pictures: {links}.\n\n{images}")


def keep_model(store: "Store", run_id: str, config: Config, kept: "Files", register: str | None = None) -> None:
    """One run's network as an MLflow model."""
    from experiments.record.model import log_model

    log_model(store, run_id, config, kept, load_task(config), register)


def description(
    report: Report, experiment_id: str, parent: str, runs: dict[int, "RecordedRun"], verdict: str, folder: Path
) -> str:
    """The sweep in words, links and pictures, as markdown: what was swept, what came of it, how to have it again."""
    # MLflow's page folds all but the first lines.
    links, images = linked(experiment_id, parent, [file.name for file in pictures_of(folder)])
    lines = [
        f"**{len(report.rows) + len(report.untrained)} runs: {report.outcomes}**",
        "",
        f"{views(report, experiment_id, parent)} Pictures: {links}.",
        *([""] if report.untrained else []),
        *(f"- {fate}: {name}: {reason}" for fate, name, reason in report.untrained),
    ]
    lines.append("")
    for key in report.varied:
        values = list(dict.fromkeys(format_value(place[key]) for place in report.places))
        lines.append(f"- `{key}`: {', '.join(values[:24])}" + (", ..." if len(values) > 24 else ""))
    best, cell = report.best, report.best_cell
    if cell and len(cell) > 1:
        of = f"the mean {report.measure.title} of {len(cell)} seeds"
        lines += ["", f"Best cell: **{with_deviation(cell, 4)}** at {report.place(cell[0], REPEATS)}, {of}"]
    if best and best.job in runs:
        run = f"run `{runs[best.job].run_id}`"
        place = report.place(best) or "the only run"
        lines += ["", f"Best run: {report.measure.title} **{best.value:.4g}** at {place} ({run}); the metrics here are its own"]
    if verdict:
        lines += ["", f"{report.rows[0].config.sweep.study}: {verdict}"]
    lines += ["", "Train it again and prove it identical:", "", f"    python -m experiments.reproduce --sweep {parent}"]
    return "\n".join([*lines, "", images])


def linked(experiment_id: str, run_id: str, names: Sequence[str]) -> tuple[str, str]:
    """A run's pictures among its artifacts, as markdown: links to their pages, and the pictures themselves."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts"
    links = [f"[{Path(name).stem}]({page}/{name}?workflowType=machine_learning)" for name in names]
    return ", ".join(links), "\n\n".join(f"![{name}](get-artifact?path={name}&run_uuid={run_id})" for name in names)


def views(report: Report, experiment_id: str, parent: str) -> str:
    """Links to the dashboard's views of the sweep, as markdown."""
    from experiments.record.view import PAGE, link, outcomes_with_view, view_key

    if len(report.rows) <= PAGE:
        every = f"[Curves of all runs]({link(experiment_id, view_key(parent, 'runs') if report.seeds > 1 else parent)})."
        return f"[Means over seeds]({link(experiment_id, parent)}). {every}" if report.seeds > 1 else every
    apart = {outcome: f"the {outcome}" for outcome in outcomes_with_view(report.rows[0].config)}
    names = {"": f"the {PAGE} runs of {report.measure.best_title}", **apart}
    links = [f"[{name}]({link(experiment_id, view_key(parent, outcome))})" for outcome, name in names.items()]
    rest = f"MLflow's page lists {PAGE} runs, `Load more` below them fetches the next; table.json among the artifacts has all"
    return f"Curves of {', '.join(links)}: {rest}."


def _results(report: Report, runs: dict[int, "RecordedRun"]) -> dict[str, float]:
    """The sweep's own metrics: how many runs ended how, and the final and best numbers of its best run."""
    from experiments.record.metrics import summary

    counts = {f"runs/{outcome}": float(count) for outcome, count in report.counts.items()}
    best = runs.get(report.best.job) if report.best else None
    return counts | (summary(best.files().history) if best else {})
