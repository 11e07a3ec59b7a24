"""MLflow's page of an experiment: its address, its saved views, and the pictures that it shows."""

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

from experiments.record.experiment import Experiment
from experiments.record.run import Run
from experiments.record.view import TAG, link, run_link, sweep_views
from experiments.run.config import Config

# An experiment with so many tags gets no further views.
MOST_TAGS = 500


class Page:
    """The page of an experiment.

    blocks: how many blocks' gradient norms have a chart at most, None is all.
    run_id, kind: of the run that the page is opened on, "" for the experiment. path: what follows the server's address.
    """

    def __init__(self, experiment: Experiment, blocks: int | None) -> None:
        self.experiment, self.blocks = experiment, blocks
        self.run_id, self.kind, self.path = "", "", link(experiment.experiment_id)

    def open_on(self, run_id: str, kind: str) -> None:
        """Set the run that the page is opened on. A sweep's page is its saved view, see `save_view`."""
        self.run_id, self.kind = run_id, kind
        if kind != "sweep":
            self.path = run_link(self.experiment.experiment_id, run_id)

    @property
    def command(self) -> str:
        """The command that opens the page."""
        uri = self.experiment.uri
        if uri.startswith("http"):
            return f"open {shlex.quote(f'{uri}/{self.path}')}"
        options = f"{self.run_id} --uri {shlex.quote(uri)}".strip()
        return f"python -m experiments.dashboard {options}   # then open http://127.0.0.1:5000/{self.path}"

    @property
    def next_steps(self) -> list[str]:
        """The commands for the next steps with the sweep, run or map that the page is opened on, one in each line."""
        uri = shlex.quote(self.experiment.uri)
        steps = [f"dashboard: {self.command}"]
        if self.kind in ("sweep", "run"):
            steps.append(f"report:    python -m experiments.report {self.run_id} --uri {uri}")
            target = f"--sweep {self.run_id}" if self.kind == "sweep" else self.run_id
            steps.append(f"reproduce: python -m experiments.reproduce {target} --uri {uri}")
        return steps

    def save_view(self, sweep: str, title: str, configs: Sequence[Config], score: str, pictures: Sequence[str] = ()) -> None:
        """Save the views of a sweep, and open the page on them.

        sweep: the id of its parent run. configs: of its runs. score: accuracy or r2.
        pictures: the keys of its images, see `log_pictures`.
        """
        if self.experiment.tag_count < MOST_TAGS:
            for key, view in sweep_views(title, sweep, configs, score, self.blocks, pictures).items():
                self.experiment.client.set_experiment_tag(self.experiment.experiment_id, TAG + key, view)
            self.path = link(self.experiment.experiment_id, sweep)

    def log_pictures(self, sweep: str, run_id: str, pictures: Sequence[Path]) -> None:
        """Log a sweep's pictures as images of one of its runs, whose charts on the page show them.

        The key of an image is the name of its file. The images are written as MLflow's `log_image` does, but replace those of an
        earlier start, also where another run had them.

        sweep: the id of the parent run. run_id: of the run that gets the images.
        """
        from PIL import Image

        client = self.experiment.client
        for other in list(self.experiment.children(sweep, f"tags.`{MLFLOW_LOGGED_IMAGES}` = 'True'")):
            if other.info.run_id != run_id:
                client.delete_tag(other.info.run_id, MLFLOW_LOGGED_IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            for file in pictures:
                path = Path(folder, f"{file.stem}+step+0+timestamp+0+{sweep}")
                shutil.copy(file, f"{path}.png")
                with Image.open(file) as picture:
                    compress_image_size(picture).save(f"{path}+compressed.webp")
            Run(self.experiment, run_id).log_artifacts(Path(folder), "images")
        client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")
