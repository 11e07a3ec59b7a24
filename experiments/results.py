"""For notebooks: a sweep as a frame of its runs, and their histories.

from experiments import results

frame, histories = results.load("SWEEP_ID")
for row, history in zip(frame.itertuples(), histories):
    plt.semilogy(history.grad_norm[0], label=row.run_name)
"""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from blocks.arrays import Array
from experiments.record.reading import Archive
from experiments.run.config import flat_values, printable, varied


class Results(NamedTuple):
    """What `load` gives: `frame, histories = load()`."""

    frame: pd.DataFrame
    histories: Array

    def _repr_html_(self) -> str:
        """For notebooks: how many runs ended how, and the first and the last lines of the frame."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.frame["outcome"].value_counts().items())
        return f"<p>{len(self.frame)} runs and their histories: {outcomes}</p>{self.frame.to_html(max_rows=10)}"


def load(run_id: str | None = None, uri: str | None = None) -> Results:
    """A frame with a line for every finished run, in the order of the jobs, and their histories, an array of as many objects.

    The frame's columns: the keys that differ between the runs, `outcome`, `run_name`, `run_id`, and the last values of what
    was measured, `loss/train` and so on; nan where a run diverged.

    run_id: of a sweep's parent run, or of a run alone; None is the newest of either.
    uri: MLflow's tracking URI, None is MLFLOW_TRACKING_URI or the file beside the project.
    Raises UserError where there is no such store, sweep or run, and where a file is not what was recorded.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(uri or os.environ.get("MLFLOW_TRACKING_URI"), Path(folder))
        runs = archive.recorded(run_id or archive.newest("sweep", "run"))
        kept = [run.files() for run in runs]
    configs = [flat_values(files.config) for files in kept]
    keys = varied(configs)
    rows = [
        {
            **{printable(key): _printable(config.get(key)) for key in keys},
            "outcome": run.tags["outcome"],
            "run_name": run.name,
            "run_id": run.run_id,
            **{name: files.history.final(name) for name in files.history.measures},
        }
        for run, files, config in zip(runs, kept, configs, strict=True)
    ]
    histories = np.empty(len(kept), dtype=object)
    histories[:] = [files.history for files in kept]
    return Results(pd.DataFrame(rows), histories)


def _printable(value: object) -> object:
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value
