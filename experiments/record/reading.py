"""Runs read back from a tracking store, checked against the hash they were recorded with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from experiments.record import files
from experiments.record.address import absolute, check_reachable, is_new
from experiments.record.files import Files
from experiments.record.identity import trajectory_hash
from experiments.record.view import TAG, link
from experiments.run.config import UserError, printable

PAGE = 1000

logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


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


def search(client: MlflowClient, experiments: Sequence[str], which: str) -> list[MlflowRun]:
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
        check_reachable(self.uri)
        if self.uri.startswith("sqlite") and is_new(Path(self.uri.removeprefix("sqlite:///"))):
            raise UserError(f"tracking.uri is {self.uri!r}, but that file is not there")
        self.client = MlflowClient(self.uri)

    def run(self, run_id: str) -> Recorded:
        """The finished run of that id; raises UserError where there is none."""
        run = self._get(run_id, "run")
        if run.data.tags.get("kind") != "run":
            raise UserError(f"run {run_id} is no training, it must be a run with the tag kind=run: --sweep takes a sweep's")
        if run.info.status != "FINISHED":
            raise UserError(f"run {run_id} is {run.info.status}, it must be FINISHED")
        return self._recorded(run)

    def sweep(self, parent: str) -> list[Recorded]:
        """The finished runs of a sweep, in the order of its jobs."""
        experiment = self._get(parent, "sweep").info.experiment_id
        found = self._finished([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
        return sorted(found, key=lambda run: int(run.tags["job"]))

    def job(self, parent: str, job: int) -> Recorded | None:
        """The finished run of one job of a sweep, None where there is none."""
        experiment = self._get(parent, "sweep").info.experiment_id
        found = self._finished([experiment], f"tags.`mlflow.parentRunId` = '{parent}' and tags.job = '{job}'")
        return found[0] if found else None

    def page(self, parent: str | None) -> tuple[str, str]:
        """The dashboard's page for a sweep, the newest one where none is named, and what to call it."""
        sweep = self._get(parent or self.newest_sweep(), "sweep")
        view = sweep.info.run_id if self._has_view(sweep) else ""
        return link(sweep.info.experiment_id, view), printable(sweep.info.run_name)

    def newest_sweep(self) -> str:
        """Its parent run's id; raises UserError where there is no sweep."""
        experiments = [found.experiment_id for found in self.client.search_experiments()]
        newest = self.client.search_runs(
            experiments, "tags.kind = 'sweep'", max_results=1, order_by=["attributes.start_time DESC"]
        )
        if not newest:
            raise UserError(f"{self.uri} has no sweep yet: python -m experiments.train -m makes one")
        return newest[0].info.run_id

    def _has_view(self, sweep: MlflowRun) -> bool:
        return TAG + sweep.info.run_id in self.client.get_experiment(sweep.info.experiment_id).tags

    def _get(self, run_id: str, kind: str) -> MlflowRun:
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            raise UserError(f"{kind} {run_id!r}: {str(error).splitlines()[0]} (in {self.uri})") from None

    def experiment(self, name: str) -> list[Recorded]:
        """All finished runs of an experiment."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            names = ", ".join(repr(found.name) for found in self.client.search_experiments())
            raise UserError(f"experiment {name!r} is not in {self.uri}, which has {names}")
        return self._finished([experiment.experiment_id], "tags.kind = 'run'")

    def _finished(self, experiments: Sequence[str], which: str) -> list[Recorded]:
        found = search(self.client, experiments, f"attributes.status = 'FINISHED' and {which}")
        return [self._recorded(run) for run in found]

    def _recorded(self, run: MlflowRun) -> Recorded:
        address = urlsplit(run.info.artifact_uri)
        if address.scheme in ("", "file"):
            folder = Path(unquote(address.path))
        else:
            folder = self.downloads / run.info.run_id
            folder.mkdir(exist_ok=True)
            for found in self.client.list_artifacts(run.info.run_id):
                if found.path in files.NAMES:
                    self.client.download_artifacts(run.info.run_id, found.path, str(folder))
        tags = {key: printable(value) for key, value in run.data.tags.items()}
        return Recorded(run.info.run_id, printable(run.info.run_name), tags, folder)
