"""The removal of a sweep from a tracking store with all of its runs and models, which MLflow removes one by one."""

import shlex
import tempfile
from pathlib import Path

from experiments.record.reading import Archive, search
from experiments.run.config import UserError


def delete(run_id: str, uri: str | None) -> str:
    """Delete a sweep's parent run, the runs of its jobs and their models, or one run or map; return a line for the user.

    As usual in MLflow, what is deleted is hidden and stays in the store until `mlflow gc`. A registered model is not deleted.
    Raises UserError, before anything is deleted, where there is no such run or where one of the runs is RUNNING.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(uri, Path(folder))
    client, parent = archive.client, archive.get_run(run_id)
    jobs = list(search(client, [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"))
    # The parent run is deleted last: after an interruption the same command finds the remaining runs by it.
    runs = [*jobs, parent]
    for run in runs:
        if run.info.status == "RUNNING":
            raise UserError(f"run {run.info.run_id} is RUNNING, nothing is deleted: end it first")
    models = {output.model_id: run.info.run_id for run in runs for output in (run.outputs.model_outputs if run.outputs else [])}
    registered_models = {
        model_id
        for model_id, source in models.items()
        for version in client.search_model_versions(f"run_id = '{source}'")
        if model_id in f"{version.source} {version.model_id}"
    }
    for model_id in models.keys() - registered_models:
        client.delete_logged_model(model_id)
    for run in runs:
        client.delete_run(run.info.run_id)
    registered_note = f" (the registered {', '.join(sorted(registered_models))} stays)" if registered_models else ""
    gc_option = "on its server" if archive.uri.startswith("http") else f"--backend-store-uri {shlex.quote(archive.uri)}"
    return (
        f"{_count(len(runs), 'run')} and {_count(len(models) - len(registered_models), 'model')} deleted{registered_note}; "
        f"mlflow runs restore --run-id ID brings a run back, mlflow gc {gc_option} removes for good "
        "what is deleted"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
