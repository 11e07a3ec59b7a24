"""A sweep taken out of a tracking store as a whole, which MLflow does run by run."""

import shlex
import tempfile
from pathlib import Path

from experiments.record.reading import Archive, search
from experiments.run.config import UserError


def delete(run_id: str, uri: str | None) -> str:
    """Delete a sweep's own run, its jobs' runs and their models, or a run or a map alone; what was done, in a line.

    As MLflow deletes: what is deleted is hidden, and stays in the store until `mlflow gc`. A model that is registered stays.
    Raises UserError, with nothing deleted, where there is no such run, or one of them is RUNNING.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(uri, Path(folder))
    client, parent = archive.client, archive.get(run_id)
    jobs = search(client, [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    # The parent last: where this is cut off on the way, the same command finds the rest by it.
    runs = [*jobs, parent]
    for run in runs:
        if run.info.status == "RUNNING":
            raise UserError(f"run {run.info.run_id} is RUNNING, nothing is deleted: end it first")
    models = {output.model_id: run.info.run_id for run in runs for output in (run.outputs.model_outputs if run.outputs else [])}
    registered = {
        model_id
        for model_id, source in models.items()
        for version in client.search_model_versions(f"run_id = '{source}'")
        if model_id in f"{version.source} {version.model_id}"
    }
    for model_id in models.keys() - registered:
        client.delete_logged_model(model_id)
    for run in runs:
        client.delete_run(run.info.run_id)
    stays = f" (the registered {', '.join(sorted(registered))} stays)" if registered else ""
    where = "on its server" if archive.uri.startswith("http") else f"--backend-store-uri {shlex.quote(archive.uri)}"
    return (
        f"{len(runs)} runs and {len(models) - len(registered)} models are deleted{stays}; "
        f"mlflow runs restore --run-id ID brings a run back, mlflow gc {where} removes for good "
        "what is deleted"
    )
