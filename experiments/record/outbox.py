"""Records that wait on disk while a tracking server does not answer."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.record.address import Unreachable, absolute, check_reachable
from experiments.run.config import TrackingConfig, UserError
from experiments.run.trust import from_record

if TYPE_CHECKING:
    from experiments.record import AnyStore
    from experiments.record.tracking import Store
    from experiments.run.stack import Trained

FOLDER, RECORD, SWEEP = "undelivered", "record.json", "sweep"
RETRY_SECONDS = 5.0


class Outbox:
    """A folder with a folder for every record that waits.

    tracking: where the records belong. folder: of the sweep or the run.
    closed: whether records wait because the server does not answer.
    """

    def __init__(self, tracking: TrackingConfig, folder: Path) -> None:
        self.tracking, self.folder = tracking, folder / FOLDER
        self.closed = False
        self.tried = time.monotonic()

    def __len__(self) -> int:
        """How many wait, a sweep's jobs' own among them."""
        return sum(1 for _ in waiting(self.folder.parent))

    @property
    def told(self) -> str:
        """What the user needs to know while records wait."""
        return f"records wait in {self.folder}; python -m experiments.deliver {self.folder.parent} delivers them"

    def close(self, error: Unreachable) -> None:
        """The server does not answer; said once."""
        if not self.closed:
            print(f"{error}; training goes on, {self.told}")
        self.closed, self.tried = True, time.monotonic()

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """What the server does not take is left out here: what is recorded then goes into the outbox."""
        try:
            yield
        except Unreachable as error:
            self.close(error)

    def put(self, name: str, tags: dict[str, str], parent: str, trained: "Trained") -> None:
        """A run that is trained."""
        from experiments.record import files

        folder = self._unfinished(tags.get("job", "0"))
        files.write(trained, folder)
        content = {
            "name": name,
            "tags": tags,
            "parent": parent,
            "outcome": trained.outcome,
            "started": trained.started,
            "ended": trained.ended,
        }
        self._whole(folder, content)

    def put_sweep(self, run_id: str, status: str, axes: dict[str, str], content: Path) -> None:
        """The end of a sweep's parent run: its status, the swept keys, and the files of `content`."""
        folder = self._unfinished(SWEEP)
        shutil.copytree(content, folder / "files")
        self._whole(folder, {"run_id": run_id, "status": status, "axes": axes})

    def _unfinished(self, name: str) -> Path:
        folder = self.folder / f".{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _whole(self, folder: Path, content: dict[str, object]) -> None:
        """The folder takes its name when it is whole: a kill on the way leaves none that is half written."""
        (folder / RECORD).write_text(json.dumps({"uri": self.tracking.uri, "experiment": self.tracking.experiment, **content}))
        folder.replace(folder.with_name(folder.name.removeprefix(".")))
        self.closed = True

    def try_again(self, store: "AnyStore | None", *, now: bool = False) -> None:
        """Deliver what waits, where the server answers again; asked every few seconds, or `now`."""
        if self.closed and (now or time.monotonic() - self.tried > RETRY_SECONDS):
            self.tried = time.monotonic()
            try:
                # Asked first: where nothing waits yet, there is nothing to deliver that would tell.
                check_reachable(absolute(self.tracking.uri))
                deliver(self.folder.parent, store)
                self.closed = False
            except Unreachable:
                pass


def waiting(folder: Path) -> Iterator[Path]:
    """The record.json of all whole records that wait under `folder`."""
    return (file for file in folder.rglob(f"{FOLDER}/*/{RECORD}") if not file.parent.name.startswith("."))


def deliver(folder: Path, store: "AnyStore | None" = None) -> int:
    """Write into their store all records that wait under `folder`, and take each away once it is there; how many.

    store: theirs, where it is open. Raises Unreachable where it still does not answer, UserError for a damaged record.
    """
    from experiments.record.tracking import Store

    # A sweep's end comes after its runs.
    records = sorted(waiting(folder), key=lambda file: file.parent.name == SWEEP)
    for file in records:
        try:
            record = json.loads(file.read_text())
            tracking = TrackingConfig(uri=record["uri"], experiment=record["experiment"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{file} is damaged: {error}") from None
        store = store or Store(tracking)
        assert isinstance(store, Store)
        if file.parent.name == SWEEP:
            parent = store.run(record["run_id"])
            parent.describe(record["axes"])
            parent.keep(file.parent / "files")
            parent.end(record["status"])
        else:
            _deliver_run(file.parent, record, store)
        shutil.rmtree(file.parent)
    return len(records)


def _deliver_run(folder: Path, record: dict, store: "Store") -> None:
    from experiments.record import files
    from experiments.run.stack import Trained

    kept = files.read(folder)
    # What was written here by a sweep of the user's own may name a loader of the user's own.
    module = str(kept.config["dataset"]["loader"].get("_target_", "")).rpartition(".")[0]
    config = from_record(kept.config, [module])
    store.points, store.blocks = config.tracking.points, config.tracking.blocks
    if record["parent"]:
        for run in store.children(record["parent"], f"tags.job = '{record['tags']['job']}'"):
            if run.info.status == "FINISHED":
                # The server took it, and its answer was lost.
                return
            if run.info.status == "RUNNING":
                store.run(run.info.run_id).end("KILLED")
    trained = Trained(
        config, kept.history, kept.parameters, record["outcome"], record["started"], record["ended"], kept.environment
    )
    store.begin(record["name"], record["tags"], record["parent"]).finish(trained)
