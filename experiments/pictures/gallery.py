"""What is drawn and logged after training: the pictures and the table of the sweep, the pictures and the models of its runs.

Drawing a run takes longer than training it. By default only the best run is drawn and has a model (`tracking.pictures`,
`tracking.models`). `history.npz` has all that is needed to draw any other run later.
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
# The outcome, by MLflow's status, of a run that has no tag with its outcome.
STATUS_OUTCOMES = {"FAILED": "failed", "KILLED": "lost"}


def log_sweep(store: "Store", parent: "Run", report: Report, folder: Path) -> str:
    """Draw the sweep into `folder`, and log its table, its description, and the pictures and models of the chosen runs.

    Returns the verdict of the sweep's study, "" where it has no study.
    """
    from experiments.record.reading import Archive

    tracking = report.rows[0].config.tracking
    rows_by_choice = {"best": [report.best_run] if report.best_run else [], "all": report.rows, "none": []}
    # Only the needed records are read: thousands of MLflow's runs would fill the memory.
    best_cells = report.best_cells()
    cell_rows = itertools.chain(*best_cells.values())
    jobs = {
        row.job
        for row in [*cell_rows, *rows_by_choice["best"], *rows_by_choice[tracking.pictures], *rows_by_choice[tracking.models]]
    }
    with tempfile.TemporaryDirectory() as pictures_folder, tempfile.TemporaryDirectory() as downloads:
        archive = Archive(store.uri, Path(downloads))
        records = store.call_concurrently(*(partial(archive.job, parent.run_id, job) for job in sorted(jobs)))
        records_by_job = {job: run for job, run in zip(sorted(jobs), records, strict=True) if run}
        drawn_rows = [row for row in rows_by_choice[tracking.pictures] if row.job in records_by_job]
        items = [(row.config, records_by_job[row.job].files(), Path(pictures_folder, str(row.job))) for row in drawn_rows]
        # Other processes draw the runs at the same time.
        with Pool(draw_run, items, cores()) as pool:
            _draw_sweep(report, best_cells, records_by_job, folder)
            verdict = _draw_study_and_page(report, archive, parent.run_id, folder)
            parent.log_table(report.columns())
            parent.log_summary({}, _sweep_metrics(report, records_by_job))
            parent.set_description(description(report, store.experiment_id, parent.run_id, records_by_job, verdict, folder))
            if report.best_run and report.best_run.job in records_by_job:
                # MLflow's page of charts shows pictures of runs only, and the best run is always among the runs that it shows.
                store.page.log_pictures(parent.run_id, records_by_job[report.best_run.job].run_id, list_pictures(folder))
            for row in rows_by_choice[tracking.models]:
                if row.job in records_by_job:
                    name_of_best = tracking.register if row is report.best_run else None
                    log_network(store, records_by_job[row.job].run_id, row.config, records_by_job[row.job].files(), name_of_best)
            for number, error in pool.results(raise_lost_interrupt, 1.0):
                if error is not None:
                    raise error
                store.run(records_by_job[drawn_rows[number].job].run_id).log_artifacts(items[number][-1])
    return verdict


def describe_failure(store: "Store", parent: "Run", count: int) -> None:
    """Describe a sweep of `count` runs that ends without a table: the outcomes of its runs, and the reasons."""
    from experiments.record.claims import REASON

    newest_runs: dict[str, MlflowRun] = {}
    for run in store.children(parent.run_id, "tags.kind = 'run'"):
        newest_runs.setdefault(run.data.tags.get("job", ""), run)
    outcome_by_job = {
        job: run.data.tags.get("outcome") or STATUS_OUTCOMES.get(run.info.status, "failed") for job, run in newest_runs.items()
    }
    counts = Counter(outcome_by_job.values()) + Counter({"not begun": count - len(newest_runs)})
    outcomes = ", ".join(
        f"{counts[outcome]} {outcome}"
        for outcome in (*OUTCOMES, STOPPED, *STATUS_OUTCOMES.values(), "not begun")
        if counts[outcome]
    )
    lines = [f"**{count} run{'s' * (count > 1)}: {outcomes}**", ""]
    # The runs are listed in the order in which they started.
    for job, run in reversed(newest_runs.items()):
        if REASON in run.data.tags:
            lines.append(f"- {outcome_by_job[job]}: job {job} ({run.info.run_name}): {run.data.tags[REASON]}")
    parent.set_description("\n".join(lines))


def list_pictures(folder: Path) -> list[Path]:
    """Return the folder's .png files; the map of a sweep or the losses of a run come first."""
    return sorted(folder.glob("*.png"), key=lambda file: (file.stem not in ("map", "loss"), file.name))


def _draw_sweep(report: Report, best_cells: dict[tuple[Any, str], Cell], records: dict[int, "RecordedRun"], folder: Path) -> None:
    figures.save(folder, map=slices(report) if report.is_search else figures.sweep_map(report))
    if report.rows[0].config.tracking.pictures == "none":
        return

    def read_histories(cell: Cell) -> list[History]:
        """Read the histories of the cell's finite rows, as in the table's means; of all rows where none is finite."""
        return [records[row.job].files().history for row in cell.finite_rows or cell if row.job in records]

    histories = {line: stack_histories(seeds) for line, cell in best_cells.items() if (seeds := read_histories(cell))}
    figures_by_name = {"best_curves": figures.best_curves(report, histories)}
    if report.row_key == ROWS and len({depth for depth, _ in histories}) > 1:
        figures_by_name["norm_ratios"] = figures.norm_ratios(report, histories)
    if (cell := report.best_cell) and len(seeds := read_histories(cell)) > 1:
        history, cell_label = stack_histories(seeds), report.label(cell[0], REPEATS)
        figures_by_name["grad_norm_by_block"] = figures.norm_profile(history, cell_label)
        figures_by_name["grad_norm_by_step"] = figures.norm_curves(history, cell_label)
    figures.save(folder, **figures_by_name)


def _draw_study_and_page(report: Report, archive: "Archive", parent: str, folder: Path) -> str:
    """Draw the study and write the page into `folder`; both need every run of the sweep. Returns the study's verdict."""
    sweep = report.rows[0].config.sweep
    if sweep.study is None and not sweep.report:
        return ""
    runs = archive.sweep(parent)
    verdict = draw_study(report, runs, folder)
    if sweep.report:
        from experiments.page.content import Heading, page_content
        from experiments.page.html import render_page

        picture = folder / f"{sweep.study}.svg" if sweep.study else None
        heading = Heading(parent, str(archive.get_run(parent).info.run_name), verdict, picture)
        records_by_job = {int(run.tags["job"]): run for run in runs}
        (folder / REPORT).write_text(render_page(page_content(heading, report, records_by_job)), encoding="utf-8")
    return verdict


def draw_study(report: Report, runs: "Sequence[RecordedRun]", folder: Path) -> str:
    """Draw the sweep's study into `folder`, as NAME.png and NAME.svg, and return its verdict; "" where there is no study.

    runs: the records of the report's rows, in any order.
    """
    name = report.rows[0].config.sweep.study
    if name is None:
        return ""
    from experiments.pictures.studies import STUDIES, ObservedRun

    records_by_job = {int(run.tags["job"]): run for run in runs}
    observed_runs = [
        ObservedRun(row.config, row.outcome, records_by_job[row.job]) for row in report.rows if row.job in records_by_job
    ]
    figure, verdict = STUDIES[name].draw(observed_runs)
    figures.save(folder, **{name: figure})
    return str(verdict)


def draw_run(config: Config, files: "Files", folder: Path) -> None:
    """Draw one run into the folder `pictures` in `folder`: its losses, its gradient norms, and what its instruments measured."""
    history = files.history
    figures_by_name = {"loss": figures.loss_curves(history), "grad_norm_map": figures.norm_map(history)}
    figures.save(folder / FOLDER, **figures_by_name, grad_norm_by_block=figures.norm_profile(stack_histories([history])))
    figures.save(folder / FOLDER, **_instrument_figures(config, files))


def _instrument_figures(config: Config, files: "Files") -> dict[str, Figure]:
    """Return the figures, by name, of what the run's instruments have measured."""
    from experiments.pictures import landscape, signals

    history, data, figures_by_name = files.history, load_task(config), {}
    if signals.NAME in history.quantities:
        for name, symbol in (("activations", "a"), ("gradients", "da"), ("weight_gradients", "dW")):
            word = "dead" if config.network.activation == "relu" else "saturated"
            figures_by_name[name] = signals.distribution(history, symbol, word)
        figures_by_name["update_to_data"] = signals.update_to_data(history)
        figures_by_name["pre_activations"] = signals.ridge(history, signals.mean_field_variances(config, data))
        figures_by_name["saturation"] = landscape.saturation_map(config, data, files.parameters)
    if landscape.NAME in history.quantities and landscape.has_regions(data):
        figures_by_name["decisions"] = landscape.decision_regions(config, data, history)
    if "sharpness" in history.quantities and history.diverged_step < 0:
        figures_by_name["loss_slice"] = landscape.loss_slice(config, data, files.parameters)
    return figures_by_name


def log_run(run: "Run", config: Config, files: "Files", folder: Path) -> None:
    """Draw a run that belongs to no sweep, log the pictures, and show them in the run's description."""
    draw_run(config, files, folder)
    run.log_artifacts(folder)
    names = [f"{FOLDER}/{file.name}" for file in list_pictures(folder / FOLDER)]
    links, images = picture_links(run.experiment.experiment_id, run.run_id, names)
    run.set_description(f"Pictures: {links}.\n\n{images}")


def log_network(store: "Store", run_id: str, config: Config, files: "Files", register: str | None = None) -> None:
    """Log the network of a run as an MLflow model. register: the model's name in the registry, None for no entry."""
    from experiments.record.model import log_model

    log_model(store, run_id, config, files, load_task(config), register)


def description(
    report: Report, experiment_id: str, parent: str, records: dict[int, "RecordedRun"], verdict: str, folder: Path
) -> str:
    """Return the sweep's description in markdown: its keys and values, its results, its pictures, and how to reproduce it."""
    # MLflow's page hides all lines but the first ones: the most important ones come first.
    links, images = picture_links(experiment_id, parent, [file.name for file in list_pictures(folder)])
    lines = [
        f"**{len(report.rows) + len(report.untrained)} runs: {report.outcomes}**",
        "",
        f"{view_links(report, experiment_id, parent)} Pictures: {links}.",
        *([""] if report.untrained else []),
        *(f"- {outcome}: {name}: {reason}" for outcome, name, reason in report.untrained),
    ]
    lines.append("")
    for key in report.varied_keys:
        values = list(dict.fromkeys(format_value(run_values[key]) for run_values in report.swept_values))
        lines.append(f"- `{key}`: {', '.join(values[:24])}" + (", ..." if len(values) > 24 else ""))
    best_run, cell = report.best_run, report.best_cell
    if cell and len(cell) > 1:
        mean_note = f"the mean {report.measure.title} of {len(cell)} seeds"
        lines += ["", f"Best cell: **{with_deviation(cell, 4)}** at {report.label(cell[0], REPEATS)}, {mean_note}"]
    if best_run and best_run.job in records:
        run_note = f"run `{records[best_run.job].run_id}`"
        run_label = report.label(best_run) or "the only run"
        lines += [
            "",
            f"Best run: {report.measure.title} **{best_run.value:.4g}** at {run_label} ({run_note}); "
            "the metrics here are its own",
        ]
    if verdict:
        lines += ["", f"{report.rows[0].config.sweep.study}: {verdict}"]
    lines += ["", "Train it again and prove it identical:", "", f"    python -m experiments.reproduce --sweep {parent}"]
    return "\n".join([*lines, "", images])


def picture_links(experiment_id: str, run_id: str, names: Sequence[str]) -> tuple[str, str]:
    """Return markdown for pictures among a run's artifacts: the links to their pages, and the pictures themselves."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts"
    links = [f"[{Path(name).stem}]({page}/{name}?workflowType=machine_learning)" for name in names]
    return ", ".join(links), "\n\n".join(f"![{name}](get-artifact?path={name}&run_uuid={run_id})" for name in names)


def view_links(report: Report, experiment_id: str, parent: str) -> str:
    """Return links to the dashboard's views of the sweep, in markdown."""
    from experiments.record.view import PAGE, link, outcomes_with_view, view_key

    if len(report.rows) <= PAGE:
        all_runs = f"[Curves of all runs]({link(experiment_id, view_key(parent, 'runs') if report.seeds > 1 else parent)})."
        return f"[Means over seeds]({link(experiment_id, parent)}). {all_runs}" if report.seeds > 1 else all_runs
    view_names = {outcome: f"the {outcome}" for outcome in outcomes_with_view(report.rows[0].config)}
    names = {"": f"the {PAGE} runs of {report.measure.best_title}", **view_names}
    links = [f"[{name}]({link(experiment_id, view_key(parent, outcome))})" for outcome, name in names.items()]
    limit_note = (
        f"MLflow's page lists {PAGE} runs, `Load more` below them fetches the next; table.json among the artifacts has all"
    )
    return f"Curves of {', '.join(links)}: {limit_note}."


def _sweep_metrics(report: Report, records: dict[int, "RecordedRun"]) -> dict[str, float]:
    """Return the metrics of the sweep: the number of runs of each outcome, and the final and best numbers of its best run."""
    from experiments.record.metrics import summary

    counts = {f"runs/{outcome}": float(count) for outcome, count in report.counts.items()}
    best_record = records.get(report.best_run.job) if report.best_run else None
    return counts | (summary(best_record.files().history) if best_record else {})
