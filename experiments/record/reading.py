"""Runs read back from a tracking store, checked against the hash they were recorded with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from experiments.record import files
from experiments.record.address import StoreError, absolute, check_reachable, is_new, sqlite_file
from experiments.record.client import Client, in_one_line
from experiments.record.files import Files
from experiments.record.identity import trajectory_hash
from experiments.record.moved import beside, local
from experiments.record.view import TAG, link, run_link
from experiments.run.config import UserError, printable
from experiments.run.stack import STOPPED
from experiments.run.tile import OUTCOMES

PAGE = 1000
KINDS = ("sweep", "run", "map")


@dataclass(frozen=True, eq=False)
class Recorded:
    """A finished run of the store. folder: its artifacts, on this machine."""

    run_id: str
    name: str
    tags: dict[str, str]
    folder: Path

    def files(self) -> Files:
        """Its config, history and final parameters; raises UserError where they are not what was recorded."""
        kept = files.read(self.folder)
        if trajectory_hash(kept.history, kept.parameters) != self.tags.get("trajectory"):
            raise UserError(
                f"run {self.run_id}: {files.HISTORY} or {files.PARAMETERS} is not what was recorded, its trajectory hash differs"
            )
        return kept


def is_job(tags: Mapping[str, str]) -> bool:
    """Whether a run with those tags is a sweep's job's: not so one of the user's own, or whose tags somebody has changed."""
    return tags.get("kind") == "run" and tags.get("outcome") in (*OUTCOMES, STOPPED) and tags.get("job", "").isdecimal()


def search(client: Client, experiments: Sequence[str], which: str) -> list[MlflowRun]:
    """All runs that MLflow's filter `which` takes, newest first."""
    found: list[MlflowRun] = []
    token = None
    while token != "":
        order = ["attributes.start_time DESC"]
        page = client.search_runs(list(experiments), which, max_results=PAGE, order_by=order, page_token=token)
        found += page
        token = page.token or ""
    return found


class Archive:
    """A tracking store, read and never made.

    uri: MLflow's, None is the file beside the project. downloads: where a server's artifacts are put.
    """

    def __init__(self, uri: str | None, downloads: Path) -> None:
        self.uri, self.downloads = absolute(uri), downloads
        self.file = sqlite_file(self.uri)
        if self.file and is_new(self.file):
            raise UserError(f"tracking.uri is {self.uri!r}, but that file is not there")
        check_reachable(self.uri)
        self.client = Client(self.uri)
        # Of sweeps that were asked for.
        self.experiments: dict[str, str] = {}

    def run(self, run_id: str) -> Recorded:
        """The finished run of that id; raises UserError where there is none."""
        run = self.get(run_id, "run")
        if run.data.tags.get("kind") != "run":
            raise UserError(f"run {run_id} is no training, it must be a run with the tag kind=run, as those of a sweep are")
        if run.info.status != "FINISHED":
            raise UserError(f"run {run_id} is {run.info.status}, it must be FINISHED")
        return self._recorded(run)

    def sweep(self, parent: str) -> list[Recorded]:
        """The finished runs of a sweep, in the order of its jobs."""
        return sorted(self._jobs(parent), key=lambda run: int(run.tags["job"]))

    def job(self, parent: str, job: int) -> Recorded | None:
        """The finished run of one job of a sweep, None where there is none."""
        return next(iter(self._jobs(parent, f" and tags.job = '{job}'")), None)

    def _jobs(self, parent: str, which: str = "") -> list[Recorded]:
        """The finished runs of a sweep's jobs; of any other run nothing is asked, it need not have artifacts."""
        under = f"attributes.status = 'FINISHED' and tags.`mlflow.parentRunId` = '{parent}'{which}"
        found = search(self.client, [self._experiment(parent)], under)
        return [self._recorded(run) for run in found if is_job(run.data.tags)]

    def recorded(self, run_id: str) -> list[Recorded]:
        """The finished runs of a sweep, or the one finished run, of that id; raises UserError where there is neither."""
        kind = self.kind(run_id)
        if kind not in ("sweep", "run"):
            raise UserError(f"run {run_id} is neither a training nor a sweep: it has the tag kind={kind or '(none)'}")
        return self.sweep(run_id) if kind == "sweep" else [self.run(run_id)]

    def kind(self, run_id: str) -> str:
        """`sweep`, `run` or `map`, "" for a run that is none of this package's."""
        return str(self.get(run_id, "run").data.tags.get("kind", ""))

    def page(self, run_id: str | None) -> tuple[str, str]:
        """The dashboard's page for a sweep or a run, the newest one where none is named, and what to call it."""
        run = self.get(run_id or self.newest(), "run")
        experiment, name = run.info.experiment_id, printable(run.info.run_name)
        if run.data.tags.get("kind") != "sweep":
            return run_link(experiment, run.info.run_id), name
        return link(experiment, run.info.run_id if self._has_view(run) else ""), name

    def newest(self, *kinds: str) -> str:
        """The id of the sweep, run or map that was begun last, a sweep for a run of it; raises UserError where there is none.

        kinds: those that are looked for; none stands for all.
        """
        experiments = [found.experiment_id for found in self.client.search_experiments()]
        order, found = ["attributes.start_time DESC"], []
        for kind in kinds or KINDS:
            found += self.client.search_runs(experiments, f"tags.kind = '{kind}'", max_results=1, order_by=order)
        if not found:
            none = " or ".join(kinds) or "sweep, run or map"
            raise UserError(f"{self.uri} has no {none} yet: python -m experiments.train makes one")
        run = max(found, key=lambda run: run.info.start_time)
        return str(run.data.tags.get(MLFLOW_PARENT_RUN_ID, run.info.run_id))

    def _experiment(self, sweep: str) -> str:
        if sweep not in self.experiments:
            self.experiments[sweep] = self.get(sweep, "sweep").info.experiment_id
        return self.experiments[sweep]

    def _has_view(self, sweep: MlflowRun) -> bool:
        return TAG + sweep.info.run_id in self.client.get_experiment(sweep.info.experiment_id).tags

    def get(self, run_id: str, kind: str = "run") -> MlflowRun:
        """The run of that id as MLflow has it; raises UserError, in which it is called a `kind`, where there is none."""
        try:
            found: MlflowRun = self.client.get_run(run_id)
        except StoreError as error:
            raise UserError(f"{kind} {run_id!r}: {error}") from None
        if found.info.lifecycle_stage == "deleted":
            raise UserError(f"{kind} {run_id!r} was deleted: mlflow runs restore --run-id {run_id} restores it")
        return found

    def experiment(self, name: str) -> list[Recorded]:
        """All finished runs of an experiment."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            names = ", ".join(repr(found.name) for found in self.client.search_experiments())
            raise UserError(f"experiment {name!r} is not in {self.uri}, which has {names}")
        return [self._recorded(run) for run in self._finished([experiment.experiment_id], "tags.kind = 'run'")]

    def _finished(self, experiments: Sequence[str], which: str) -> list[MlflowRun]:
        return search(self.client, experiments, f"attributes.status = 'FINISHED' and {which}")

    def _recorded(self, run: MlflowRun) -> Recorded:
        folder = local(run.info.artifact_uri)
        if folder is None:
            folder = self.downloads / run.info.run_id
            folder.mkdir(exist_ok=True)
            with in_one_line(self.uri):
                artifacts = get_artifact_repository(run.info.artifact_uri, self.uri)
                for found in artifacts.list_artifacts():
                    if found.path in files.NAMES:
                        artifacts.download_artifacts(found.path, str(folder))
        elif not folder.is_dir():
            # The store's folder may have been moved.
            moved = beside(self.file, folder) if self.file else None
            if moved is None:
                near = f", nor beside {self.file}" if self.file else ""
                raise UserError(f"run {run.info.run_id}: its artifacts are not in {folder}{near}")
            folder = moved
        tags = {key: printable(value) for key, value in run.data.tags.items()}
        return Recorded(run.info.run_id, printable(run.info.run_name), tags, folder)
