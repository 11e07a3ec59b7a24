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
from experiments.run.config import printable
from experiments.run.naming import differing_keys, flatten_values
from experiments.run.repeats import band, stack_histories
from experiments.run.sensitivity import sensitivity as of_rates
from experiments.run.stack import STOPPED

RATE = "optimizer.learning_rate"

__all__ = ["band", "group_seeds", "load", "sensitivity"]


class Results(NamedTuple):
    """The result of `load`, for `frame, histories = load()`."""

    frame: pd.DataFrame
    histories: Array

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: the number of runs with each outcome, and the first and last lines of the frame."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.frame["outcome"].value_counts().items())
        return f"<p>{len(self.frame)} runs and their histories: {outcomes}</p>{self.frame.to_html(max_rows=10)}"


def load(run_id: str | None = None, uri: str | None = None) -> Results:
    """Return a frame with a line for every finished run, in the order of the jobs, and the array (n,) of their histories.

    The frame's columns are the keys that differ between the runs, `outcome`, `run_name`, `run_id`, and the last values of the
    measures, `loss/train` and so on, which are nan where a run diverged or was stopped.

    run_id: of a sweep's parent run, or of one run; None is the newest sweep or run.
    uri: MLflow's tracking URI, None is MLFLOW_TRACKING_URI or the file beside the project.
    Raises UserError where there is no such store, sweep or run, and where a file is not what was recorded.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(uri or os.environ.get("MLFLOW_TRACKING_URI"), Path(folder))
        runs = archive.finished_runs(run_id or archive.newest("sweep", "run"))
        run_files = [run.files() for run in runs]
    configs = [flatten_values(files.config) for files in run_files]
    keys = differing_keys(configs)
    rows = [
        {
            **{printable(key): _printable(config.get(key)) for key in keys},
            "outcome": run.tags["outcome"],
            "run_name": run.name,
            "run_id": run.run_id,
            **{name: files.history.final(name) for name in files.history.measures},
        }
        for run, files, config in zip(runs, run_files, configs, strict=True)
    ]
    histories = np.empty(len(run_files), dtype=object)
    histories[:] = [files.history for files in run_files]
    return Results(pd.DataFrame(rows), histories)


def group_seeds(frame: pd.DataFrame, histories: Array) -> tuple[pd.DataFrame, Array]:
    """Group the result of `load`: runs that differ only in their seed become one line, and one history with a lane for each seed.

    The frame's columns are the keys that differ, without `seed`; the numbers of `runs`, `diverged` and `stopped` ones; and the
    mean of the last value of each measure, `loss/train` and so on, and its standard deviation (over n - 1), `loss/train std`,
    both without runs that diverged or were stopped.

    `band(history.grad_norm, logarithmic=True)` returns the mean and the band over the seeds.
    """
    columns = list(frame.columns)
    keys = [key for key in columns[: columns.index("outcome")] if key != "seed"]
    measures = columns[columns.index("run_id") + 1 :]
    rows, lane_histories = [], []
    for _, runs in frame.groupby(_places(frame, keys), sort=False):
        means, deviations = runs[measures].mean(), runs[measures].std()
        summaries = {name: value for key in measures for name, value in ((key, means[key]), (f"{key} std", deviations[key]))}
        counts = {outcome: int((runs["outcome"] == outcome).sum()) for outcome in ("diverged", STOPPED)}
        rows.append({**runs.iloc[0][keys], "runs": len(runs), **counts, **summaries})
        lane_histories.append(stack_histories(histories[runs.index]))
    stacked_histories = np.empty(len(lane_histories), dtype=object)
    stacked_histories[:] = lane_histories
    return pd.DataFrame(rows), stacked_histories


def sensitivity(frame: pd.DataFrame, histories: Array, measure: str = "loss/train") -> pd.DataFrame:
    """Of what `load` gives, one line for all runs that differ in their learning rate alone, with their sensitivity to it.

    The columns: the keys that differ but for `optimizer.learning_rate`, `rates`, how many there are, and `sensitivity`, see
    `experiments.run.sensitivity`. measure: loss/train or loss/validation. A run that was stopped, see `sweep.halving`, has no
    final loss, and counts as one that diverged.
    """
    columns = list(frame.columns)
    keys = [key for key in columns[: columns.index("outcome")] if key != RATE]
    rows = []
    for _, runs in frame.groupby(_places(frame, keys), sort=False):
        initial = float(histories[runs.index[0]].measures[measure][0])
        losses = runs[measure].fillna(np.inf).tolist()
        rows.append({**runs.iloc[0][keys], "rates": len(runs), "sensitivity": of_rates(losses, initial)})
    return pd.DataFrame(rows)


def _places(frame: pd.DataFrame, keys: list[str]) -> pd.Series:
    """What runs with equal values of those keys have in common."""
    # A list has no hash.
    return frame[keys].astype(str).agg(tuple, axis=1) if keys else pd.Series("", frame.index)


def _printable(value: object) -> object:
    if isinstance(value, list):
        return [_printable(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value
