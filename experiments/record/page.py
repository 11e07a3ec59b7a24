"""MLflow's page of an experiment: what it is opened on, its saved views, and the pictures that it shows."""

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

from experiments.record.view import TAG, link, run_link, sweep_views
from experiments.run.config import Config

if TYPE_CHECKING:
    from experiments.record.tracking import Store

# An experiment with more sweeps than that keeps the views that it has.
MOST_TAGS = 500


class Page:
    """The page of a store's experiment.

    run_id, kind: of what it is opened on, "" for the experiment. path: what follows the server's address.
    tags: how many the experiment had.
    """

    def __init__(self, store: "Store", tags: int) -> None:
        self.store, self.tags = store, tags
        self.run_id, self.kind, self.path = "", "", link(store.experiment_id)

    def open_on(self, run_id: str, kind: str) -> None:
        """Open it on that run; a sweep's page is its saved view, see `save_view`."""
        self.run_id, self.kind = run_id, kind
        if kind != "sweep":
            self.path = run_link(self.store.experiment_id, run_id)

    @property
    def command(self) -> str:
        """What opens it."""
        uri = self.store.uri
        if uri.startswith("http"):
            return f"open {shlex.quote(f'{uri}/{self.path}')}"
        options = f"{self.run_id} --uri {shlex.quote(uri)}".strip()
        return f"python -m experiments.dashboard {options}   # opens http://127.0.0.1:5000/{self.path}"

    @property
    def next_steps(self) -> list[str]:
        """What is done next with the sweep, the run or the map that it is opened on, a command a line."""
        uri = shlex.quote(self.store.uri)
        steps = [f"dashboard: {self.command}"]
        if self.kind in ("sweep", "run"):
            steps.append(f"report:    python -m experiments.report {self.run_id} --uri {uri}")
            which = f"--sweep {self.run_id}" if self.kind == "sweep" else self.run_id
            steps.append(f"reproduce: python -m experiments.reproduce {which} --uri {uri}")
        return steps

    def save_view(self, sweep: str, title: str, configs: Sequence[Config], score: str, pictures: Sequence[str] = ()) -> None:
        """Save the views of the sweep of those configs, and open the page on them.

        sweep: the id of its own run. score: accuracy or r2. pictures: the keys of its images, see `show`.
        """
        if self.tags < MOST_TAGS:
            for key, view in sweep_views(title, sweep, configs, score, self.store.blocks, pictures).items():
                self.store.client.set_experiment_tag(self.store.experiment_id, TAG + key, view)
            self.path = link(self.store.experiment_id, sweep)

    def show(self, sweep: str, run_id: str, pictures: Sequence[Path]) -> None:
        """Show a sweep's pictures as images of that run of it, which the page's charts show where they show the run.

        The key of each is its file's name. As MLflow's `log_image` writes them, which adds to those of an earlier start; another
        run that had them then has them no longer.
        """
        from PIL import Image

        client = self.store.client
        for other in self.store.children(sweep, f"tags.`{MLFLOW_LOGGED_IMAGES}` = 'True'"):
            if other.info.run_id != run_id:
                client.delete_tag(other.info.run_id, MLFLOW_LOGGED_IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            for file in pictures:
                place = Path(folder, f"{file.stem}+step+0+timestamp+0+{sweep}")
                shutil.copy(file, f"{place}.png")
                with Image.open(file) as picture:
                    compress_image_size(picture).save(f"{place}+compressed.webp")
            self.store.run(run_id).keep(Path(folder), "images")
        client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")
