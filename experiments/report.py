"""python -m experiments.report [SWEEP] [-o FILE]: a sweep, or a run alone, as one HTML file that opens anywhere.

The file needs no network and no server; a browser shows it, and MLflow's page of artifacts does.

    python -m experiments.report --movie RUN [-o FILE]     # its norms and distributions by block, step after step, as a GIF
"""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

from experiments.run.config import MEASURE, UserError
from experiments.run.folder import check_folder
from experiments.run.interrupts import end_in_order
from experiments.run.measure import MEASURES
from experiments.run.trust import ALLOW_HELP, from_record


def report(run_id: str | None, file: Path, uri: str | None, allow: list[str]) -> None:
    """Write the page of a sweep or a run into a file.

    run_id: None takes the newest sweep or run. uri: MLflow's tracking URI. allow: see `run.trust`.
    Raises UserError where there is no such sweep or run, and where it has no finished run.
    """
    from experiments.page.content import Heading, page_content
    from experiments.page.html import render_page
    from experiments.pictures.gallery import draw_study
    from experiments.pictures.report import Report, Row
    from experiments.record.reading import Archive

    with tempfile.TemporaryDirectory() as downloads, tempfile.TemporaryDirectory() as folder:
        archive = Archive(uri, Path(downloads))
        run_id = run_id or archive.newest("sweep", "run")
        runs = {int(run.tags.get("job", 0)): run for run in archive.finished_runs(run_id)}
        if not runs:
            raise UserError(f"sweep {run_id} has no finished run")
        rows, measure_name = [], archive.get_run(run_id).data.tags.get(MEASURE)
        for job, run in runs.items():
            files = run.files()
            config = from_record(files.config, allow)
            # All rows have the measure of the sweep's tag, which may have changed since the run was trained.
            config.sweep.measure = measure_name if measure_name in MEASURES else config.sweep.measure
            measure = MEASURES[config.sweep.measure]
            value = files.history.final(measure.name)
            rows.append(Row(config, value if math.isfinite(value) else measure.worst, run.tags["outcome"], job))
        sweep_report = Report(rows)
        verdict = draw_study(sweep_report, list(runs.values()), Path(folder))
        pictures = sorted(Path(folder).glob("*.svg"))
        heading = Heading(run_id, str(archive.get_run(run_id).info.run_name), verdict, *pictures)
        html = render_page(page_content(heading, sweep_report, runs))
    file.write_text(html, encoding="utf-8")


def movie(run_id: str, file: Path, uri: str | None) -> None:
    """Write the animation of a run into a file. Raises UserError where there is no such finished run."""
    from experiments.pictures.movie import write_movie
    from experiments.record.reading import Archive

    with tempfile.TemporaryDirectory() as downloads:
        run = Archive(uri, Path(downloads)).run(run_id)
        write_movie(run.files().history, run.name, file)


def _check_file(file: Path) -> None:
    """Raise UserError unless the file can be written."""
    check_folder("--output", str(file.parent))
    if not file.parent.is_dir() or (file.exists() and not (file.is_file() and os.access(file, os.W_OK))):
        raise UserError(f"--output is {str(file)!r}, which is no file that can be written")


@end_in_order()
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run_id", metavar="SWEEP", nargs="?", help="a sweep's parent run, or a run; the newest where none is named"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="report.html by default, movie.gif with --movie")
    parser.add_argument("--movie", action="store_true", help="animate the run of that id")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    parser.add_argument("--allow", metavar="NAME", action="append", default=[], help=ALLOW_HELP)
    arguments = parser.parse_args()
    if arguments.movie and not arguments.run_id:
        parser.error("--movie takes the id of a run")
    file = arguments.output or Path("movie.gif" if arguments.movie else "report.html")
    try:
        _check_file(file)
        if arguments.movie:
            movie(arguments.run_id, file, arguments.uri)
        else:
            report(arguments.run_id, file, arguments.uri, arguments.allow)
        print(f"{file} ({file.stat().st_size / 2**20:.1f} MB)")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
