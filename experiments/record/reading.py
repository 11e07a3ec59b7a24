"""Reading runs from a tracking store. Their files are checked against the hash that was recorded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from experiments.record import files
from experiments.record.address import StoreError, absolute_uri, check_reachable, is_new, sqlite_file
from experiments.record.client import Client, errors_in_one_line
from experiments.record.files import Files
from experiments.record.identity import trajectory_hash
from experiments.record.relocation import folder_beside, local_folder
from experiments.record.view import TAG, link, run_link
from experiments.run.config import UserError, printable
from experiments.run.stack import STOPPED
from experiments.run.tile import OUTCOMES

# At once: of 1000 of them, MLflow and SQLAlchemy make objects of 75 MiB.
MAX_RESULTS = 200
KINDS = ("sweep", "run", "map")


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A finished run of the store. folder: the folder of its artifacts on this machine."""

    run_id: str
    name: str
    tags: dict[str, str]
    folder: Path

    def files(self) -> Files:
        """Read the run's config, history and final parameters. Raises UserError where they are not what was recorded."""
        run_files = files.read(self.folder)
        if trajectory_hash(run_files.history, run_files.parameters) != self.tags.get("trajectory"):
            raise UserError(
                f"run {self.run_id}: {files.HISTORY} or {files.PARAMETERS} is not what was recorded, its trajectory hash differs"
            )
        return run_files


def is_job(tags: Mapping[str, str]) -> bool:
    """Return whether a run with those tags is a job of a sweep. A user's own run, or one with changed tags, is none."""
    return tags.get("kind") == "run" and tags.get("outcome") in (*OUTCOMES, STOPPED) and tags.get("job", "").isdecimal()


def search(client: Client, experiments: Sequence[str], filter_string: str) -> Iterator[MlflowRun]:
    """Yield all runs that match MLflow's filter string, newest first. experiments: their ids.

    They are read a page at a time, since thousands of them would fill the memory. A caller that changes runs, so that others
    match, makes a list first.
    """
    token: str | None = None
    run_ids: set[str] = set()
    while token != "":
        order_by = ["attributes.start_time DESC"]
        page = client.search_runs(list(experiments), filter_string, max_results=MAX_RESULTS, order_by=order_by, page_token=token)
        # A page begins behind a number of runs: where more have come to match meanwhile, it has some of the page before.
        new_runs = [run for run in page if run.info.run_id not in run_ids]
        run_ids.update(run.info.run_id for run in new_runs)
        yield from new_runs
        token = page.token or ""


class Archive:
    """A tracking store that exists, for reading.

    uri: MLflow's tracking URI, None is the file beside the project. downloads: the folder for artifacts of a server.
    Raises UserError where there is no such store.
    """

    def __init__(self, uri: str | None, downloads: Path) -> None:
        self.uri, self.downloads = absolute_uri(uri), downloads
        self.file = sqlite_file(self.uri)
        if self.file and is_new(self.file):
            raise UserError(f"tracking.uri is {self.uri!r}, but that file is not there")
        check_reachable(self.uri)
        self.client = Client(self.uri)
        # A sweep's run id -> its experiment's id.
        self.experiments: dict[str, str] = {}

    def run(self, run_id: str) -> RecordedRun:
        """Return the finished run of that id; raises UserError where there is none."""
        run = self.get_run(run_id, "run")
        if run.data.tags.get("kind") != "run":
            kind = run.data.tags.get("kind", "run of another program")
            raise UserError(f"run {run_id} is a {kind}, it must be a run that trains, such as one of a sweep's runs")
        if run.info.status != "FINISHED":
            raise UserError(f"run {run_id} is {run.info.status}, it must be FINISHED")
        return self._to_recorded_run(run)

    def sweep(self, parent: str) -> list[RecordedRun]:
        """Return the finished runs of a sweep in the order of its jobs. parent: the id of its parent run."""
        return sorted(self._job_runs(parent), key=lambda run: int(run.tags["job"]))

    def job(self, parent: str, job: int) -> RecordedRun | None:
        """Return the finished run of a sweep's job, None where there is none."""
        return next(iter(self._job_runs(parent, f" and tags.job = '{job}'")), None)

    def _job_runs(self, parent: str, filter_string: str = "") -> list[RecordedRun]:
        """Return the finished runs of a sweep's jobs. Other runs below the parent, which may lack artifacts, are left out."""
        runs = self._search_finished(self._experiment(parent), f"tags.`mlflow.parentRunId` = '{parent}'{filter_string}")
        return [self._to_recorded_run(run) for run in runs if is_job(run.data.tags)]

    def finished_runs(self, run_id: str) -> list[RecordedRun]:
        """Return the finished runs of a sweep, or the one finished run of that id; raises UserError where there is neither."""
        kind = self.kind(run_id)
        if kind not in ("sweep", "run"):
            raise UserError(f"run {run_id} is neither a training nor a sweep: it has the tag kind={kind or '(none)'}")
        return self.sweep(run_id) if kind == "sweep" else [self.run(run_id)]

    def kind(self, run_id: str) -> str:
        """Return the run's kind, `sweep`, `run`, `map` or `verify`; "" for a run that is none of this package's."""
        return str(self.get_run(run_id, "run").data.tags.get("kind", ""))

    def page(self, run_id: str | None) -> tuple[str, str]:
        """Return the path of the dashboard's page for a run, and the run's name. run_id: None is the newest sweep, run or map."""
        run = self.get_run(run_id or self.newest(), "run")
        experiment, name = run.info.experiment_id, printable(run.info.run_name)
        if run.data.tags.get("kind") != "sweep":
            return run_link(experiment, run.info.run_id), name
        return link(experiment, run.info.run_id if self._has_view(run) else ""), name

    def newest(self, *kinds: str) -> str:
        """Return the id of the newest sweep, run or map; for a run of a sweep that of the sweep.

        kinds: those to look for, all where none is given. Raises UserError where there is none.
        """
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        order_by, runs = ["attributes.start_time DESC"], []
        for kind in kinds or KINDS:
            runs += self.client.search_runs(experiments, f"tags.kind = '{kind}'", max_results=1, order_by=order_by)
        if not runs:
            kind_names = " or ".join(kinds) or "sweep, run or map"
            raise UserError(f"{self.uri} has no {kind_names} yet: python -m experiments.train makes one")
        run = max(runs, key=lambda run: run.info.start_time)
        return str(run.data.tags.get(MLFLOW_PARENT_RUN_ID, run.info.run_id))

    def _experiment(self, sweep: str) -> str:
        if sweep not in self.experiments:
            self.experiments[sweep] = self.get_run(sweep, "sweep").info.experiment_id
        return self.experiments[sweep]

    def _has_view(self, sweep: MlflowRun) -> bool:
        return TAG + sweep.info.run_id in self.client.get_experiment(sweep.info.experiment_id).tags

    def get_run(self, run_id: str, kind: str = "run") -> MlflowRun:
        """Return MLflow's run of that id. Raises UserError where there is none. kind: what the error calls it."""
        try:
            run: MlflowRun = self.client.get_run(run_id)
        except StoreError as error:
            raise UserError(f"{kind} {run_id!r}: {error}") from None
        if run.info.lifecycle_stage == "deleted":
            raise UserError(f"{kind} {run_id!r} was deleted: mlflow runs restore --run-id {run_id} restores it")
        return run

    def experiment(self, name: str) -> list[RecordedRun]:
        """Return all finished runs of an experiment; raises UserError where there is no such experiment."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            names = ", ".join(repr(other.name) for other in self.client.search_experiments())
            raise UserError(f"experiment {name!r} is not in {self.uri}, which has {names}")
        return [self._to_recorded_run(run) for run in self._search_finished(experiment.experiment_id, "tags.kind = 'run'")]

    def _search_finished(self, experiment: str, filter_string: str) -> Iterator[MlflowRun]:
        return search(self.client, [experiment], f"attributes.status = 'FINISHED' and {filter_string}")

    def _to_recorded_run(self, run: MlflowRun) -> RecordedRun:
        folder = local_folder(run.info.artifact_uri)
        if folder is None:
            folder = self.downloads / run.info.run_id
            folder.mkdir(exist_ok=True)
            with errors_in_one_line(self.uri):
                artifacts = get_artifact_repository(run.info.artifact_uri, self.uri)
                for artifact in artifacts.list_artifacts():
                    if artifact.path in files.FILE_NAMES:
                        artifacts.download_artifacts(artifact.path, str(folder))
        elif not folder.is_dir():
            # The store's folder may have been moved.
            moved_folder = folder_beside(self.file, folder) if self.file else None
            if moved_folder is None:
                other_place = f", nor beside {self.file}" if self.file else ""
                raise UserError(f"run {run.info.run_id}: its artifacts are not in {folder}{other_place}")
            folder = moved_folder
        tags = {key: printable(value) for key, value in run.data.tags.items()}
        return RecordedRun(run.info.run_id, printable(run.info.run_name), tags, folder)
