"""python -m experiments.train [-m] [KEY=VALUE ...]: train one network, or with -m a sweep, and record it in MLflow."""

import contextlib
import copy
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import hydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from experiments.run import config as config_schema
from experiments.run.config import Config, UserError, register, run_name, typed

# A sweep's parent run, for jobs in whatever process a launcher starts.
PARENT = "DEPTH_LABORATORY_PARENT"
CONF = str(Path(__file__).resolve().parents[1] / "conf")

register()


class Result(float):
    """What a job returns: its final training loss (inf where it diverged), for whoever optimises, with its outcome."""

    outcome: str

    @classmethod
    def of(cls, loss: float, outcome: str) -> "Result":
        """inf stands for a loss that is not finite."""
        result = cls(loss if math.isfinite(loss) else math.inf)
        result.outcome = outcome
        return result


class SweepRun:
    """A sweep around its jobs: all are checked before the first, then a parent run is open until the last has ended."""

    def __init__(self, configs: Sequence[DictConfig], folder: str) -> None:
        self.configs = [typed(cfg) for cfg in configs]
        check_all(self.configs, "hydra.sweep.dir", folder)
        self.results: list[Result] = []

    def __enter__(self) -> "SweepRun":
        tracking = self.configs[0].tracking
        self.store = None
        if tracking.enabled:
            from experiments.record.tracking import Store

            self.store = Store(tracking)
            self.parent = self.store.begin(f"sweep of {len(self.configs)} runs", {"kind": "sweep"})
            os.environ[PARENT] = self.parent
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.environ.pop(PARENT, None)
        if kind is not None:
            if self.store:
                self.store.end(self.parent, _status(error))
            return
        from experiments.pictures.figures import save_map
        from experiments.pictures.report import Row, Sweep

        rows = [Row(config, float(r), r.outcome) for config, r in zip(self.configs, self.results, strict=True)]
        sweep = Sweep(rows)
        print(f"\n{sweep.text()}")
        if self.store:
            with tempfile.TemporaryDirectory() as folder:
                sweep.save(Path(folder) / "table.csv")
                save_map(Path(folder) / "map.png", sweep)
                self.store.client.log_artifacts(self.parent, folder)
            self.store.end(self.parent)
            print(f"dashboard: {self.store.command}")


def train(cfg: DictConfig) -> Result:
    """One job: check, train, record."""
    from experiments.run.stack import train_stack

    config = typed(cfg)
    with _recorded(config) as write, _bar(config) as progress:
        trained = train_stack([config], progress)[0]
        write(trained)
    result = Result.of(trained.final("loss/train"), trained.outcome)
    if PARENT not in os.environ:
        print(f"{trained.outcome}: final training loss {float(result):.4g}")
    return result


@contextlib.contextmanager
def _recorded(config: Config) -> Iterator[Any]:
    """Within it the run is RUNNING in MLflow; what it yields writes the trained run and ends it."""
    if not config.tracking.enabled:
        yield lambda trained: None
        return
    from experiments.record.tracking import Store

    store = Store(config.tracking)
    parent = os.environ.get(PARENT)
    run_id = store.begin(run_name(config), {"kind": "run"}, parent)
    try:
        yield lambda trained: store.write(run_id, trained)
    except BaseException as error:
        store.end(run_id, _status(error))
        raise
    if parent is None:
        print(f"dashboard: {store.command}")


def _status(error: BaseException | None) -> str:
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


@contextlib.contextmanager
def _bar(config: Config) -> Iterator[Any]:
    """A progress bar over the run's steps."""
    from tqdm import tqdm

    from experiments.run.data import load

    batches = 1 if config.training.batch_size is None else -(-load(config.dataset).x.shape[-1] // config.training.batch_size)
    with tqdm(total=config.training.epochs * batches, desc=run_name(config), unit="step", leave=False, disable=None) as bar:
        yield bar.update


class CheckRun(Callback):
    """Checks a single run before Hydra makes its folder. (A sweep's jobs are checked by the sweeper.)"""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave with one line where the run cannot be made."""
        own = copy.deepcopy(config)
        with read_write(own), open_dict(own):
            del own["hydra"]
        try:
            check_all([typed(own)], "hydra.run.dir", config.hydra.run.dir)
        except (UserError, OmegaConfBaseException) as error:
            # Any other exception of a callback Hydra turns into a warning.
            sys.exit(one_line(error))


def check_all(configs: Sequence[Config], folder_key: str, folder: str) -> None:
    """Raise UserError unless every run can be made: data, loss and batch size fit, folder and store can be written to."""
    from experiments.record.address import absolute, check_reachable
    from experiments.run.data import task

    for config in configs:
        task(config)
    path = Path(folder).absolute()
    there = next(above for above in (path, *path.parents) if above.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"{folder_key} is {folder!r}, but {there} is not a folder that can be written to")
    for uri in {config.tracking.uri for config in configs if config.tracking.enabled}:
        check_reachable(absolute(uri))


def one_line(error: BaseException) -> str:
    """An error of ours, or one of Hydra's or OmegaConf's that name key, value and what is allowed over several lines."""
    lines: list[str] = []
    at: BaseException | None = error
    while at is not None:
        lines += [line.strip() for line in str(at).splitlines()]
        at = at.__cause__
    # Where Hydra looked for files, and its hint to add the unknown key with a +, help nobody here.
    dull = ("object_type=", "reference_type=", "Config search path", "provider=", "To append to your config", "See https")
    told = "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith(dull)))
    unknown = re.search(r"Key '(\w+)' not in '(\w+)'", told)
    if unknown and (schema := getattr(config_schema, unknown[2], None)):
        told += f"; allowed: {', '.join(f.name for f in fields(schema))}"
    return f"error: {told}"


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def main() -> None:
    """The command."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then hands an error on instead of printing it over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _terminated)
    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(train)()
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if full_error:
            raise
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("interrupted")


train.sweep = SweepRun  # type: ignore[attr-defined]  # what the sweeper looks for

if __name__ == "__main__":
    # Under its own name, so that what a launcher pickles can be found by another process.
    from experiments.train import main as command

    command()
