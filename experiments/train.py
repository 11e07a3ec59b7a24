"""python -m experiments.train [-m] [KEY=VALUE ...]: train one network, or with -m a sweep, and record it in MLflow."""

import contextlib
import copy
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from experiments.record import AnyRun, AnyStore, Untracked, open_store
from experiments.record.address import Unreachable
from experiments.record.identity import fingerprint
from experiments.record.outbox import Outbox
from experiments.run import config as schema
from experiments.run import grid
from experiments.run.config import CONF, Config, UserError, register, run_name, typed
from experiments.run.loaders import needing_allowance
from experiments.run.pool import Lost
from experiments.sweep import PARENT, Result, Sweep, check_all, status_of, tags_of_run

if TYPE_CHECKING:
    from blocks.history import History

# What a command ends with in one line.
EXPECTED = (UserError, Lost, HydraException, OmegaConfBaseException, OSError)

register()


def train(cfg: DictConfig) -> Result:
    """One job: check, train, record. One that its sweep has in the record already is not trained again."""
    from tqdm import tqdm

    from experiments.run.data import task
    from experiments.run.stack import every_few_seconds, steps_of, train_stack

    config = typed(cfg)
    of = task(config)
    steps = steps_of(config, of)
    hydra_config = HydraConfig.get()
    outbox = Outbox(config.tracking, Path(hydra_config.runtime.output_dir), needing_allowance([config.dataset.loader]))
    parent = os.environ.get(PARENT, "")
    job = hydra_config.job.num if parent else 0
    store = _opened(config, parent, outbox)
    if parent:
        with outbox.instead():
            if done := store.finished(parent, job):
                return Result.made(*done)
    tags = tags_of_run(fingerprint(config, of.dataset.digest), job)
    with (
        _recorded(store, config, tags, parent, outbox) as run,
        tqdm(total=steps, desc=run_name(config), unit="step", leave=False, disable=None) as bar,
    ):
        report = every_few_seconds(lambda history: run.progress(history.lane(0), steps))

        def watch(step: int, history: "Callable[[], History]") -> None:
            bar.update(step - bar.n)
            with outbox.instead():
                report(step, history)

        (trained,) = train_stack([config], of, watch)
        with outbox.instead():
            run.finish(trained)
    if not parent and not outbox.closed:
        with outbox.instead():
            _show(store, run, config)
    result = Result.of(trained)
    if not parent:
        print(result)
    if outbox.closed:
        outbox.put(run_name(config), tags, parent, trained)
        if not parent:
            sys.exit(1)
    elif store.command and not parent:
        print(f"dashboard: {store.command}")
    return result


def _show(store: AnyStore, run: AnyRun, config: Config) -> None:
    """A single run is the best of its own."""
    if isinstance(store, Untracked) or isinstance(run, Untracked):
        return
    from experiments.pictures.gallery import draw_run, keep_model
    from experiments.record.reading import Archive

    with tempfile.TemporaryDirectory() as downloads, tempfile.TemporaryDirectory() as folder:
        kept = Archive(store.uri, Path(downloads)).run(run.run_id).files()
        if config.tracking.pictures != "none":
            draw_run(kept.history, Path(folder))
            run.keep(Path(folder))
        if config.tracking.models != "none":
            keep_model(store, run.run_id, config, kept, config.tracking.register)


def _opened(config: Config, parent: str, outbox: Outbox) -> AnyStore:
    try:
        return open_store(config.tracking)
    except Unreachable as error:
        if not parent:
            raise
        outbox.close(error)
        return Untracked()


@contextlib.contextmanager
def _recorded(store: AnyStore, config: Config, tags: dict[str, str], parent: str, outbox: Outbox) -> Iterator[AnyRun]:
    """A RUNNING run in the store; an error on the way ends it as FAILED or KILLED."""
    run: AnyRun = Untracked()
    with outbox.instead():
        run = store.begin(run_name(config), tags, parent)
    try:
        with run.beating():
            yield run
    except BaseException as error:
        with contextlib.suppress(UserError):
            run.end(status_of(error))
        raise


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
    if unknown and (known := getattr(schema, unknown[2], None) or getattr(grid, unknown[2], None)):
        told += f"; allowed: {', '.join(f.name for f in fields(known))}"
    return f"error: {told}"


def terminated(signum: int, frame: FrameType | None) -> None:
    """What ends a command in order: a handler of signals."""
    raise SystemExit(128 + signum)


def main() -> None:
    """The command."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then hands an error on instead of printing it over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, terminated)
    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(train)()
    except EXPECTED as error:
        if full_error:
            raise
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("interrupted")


train.sweep = Sweep  # type: ignore[attr-defined]  # what the sweeper looks for

if __name__ == "__main__":
    # Under its own name, so that what a launcher pickles can be found by another process.
    from experiments.train import main as command

    command()
