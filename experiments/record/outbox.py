"""Records that wait on disk while a tracking server does not answer."""

import contextlib
import errno
import itertools
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.record.address import Unreachable, absolute, check_reachable, masked
from experiments.record.ownership import VARIABLE
from experiments.record.untracked import Untracked
from experiments.run.config import TrackingConfig, UserError
from experiments.run.folder import lock_folder
from experiments.run.interrupts import defer_interrupts
from experiments.run.trust import from_record

if TYPE_CHECKING:
    from experiments.record import AnyStore
    from experiments.record.tracking import Store
    from experiments.record.undelivered import RunRecord, SweepRecord
    from experiments.run.stack import Trained

FOLDER, RECORD, SWEEP, FILES = "undelivered", "record.json", "sweep", "files"
RETRY_SECONDS = 5.0
# NumPy's error for an array of which a part alone could be written has no number.
FULL = (errno.ENOSPC, errno.EDQUOT, None)


class InUse(UserError):
    """Another process delivers these records."""


class Outbox:
    """A folder with a folder for every record that waits.

    tracking: where the records belong. folder: of the sweep or the run.
    allow: the loaders of its runs that a record may not name by itself, see `run.trust.from_record`.
    closed: whether records wait because the server does not answer.
    """

    def __init__(self, tracking: TrackingConfig, folder: Path, allow: Sequence[str] = ()) -> None:
        self.tracking, self.folder, self.allow = tracking, folder / FOLDER, allow
        self.closed = False
        self.tried = time.monotonic()
        # The owner of the sweep that the records are of.
        self.owner = os.environ.get(VARIABLE, "")

    def __len__(self) -> int:
        """How many wait, a sweep's jobs' own among them."""
        return sum(1 for _ in waiting(self.folder.parent))

    @property
    def instructions(self) -> str:
        """What the user needs to know while records wait."""
        options = [word for loader in self.allow for word in ("--allow", loader)]
        if self.tracking.uri != os.environ.get("MLFLOW_TRACKING_URI"):
            options += ["--uri", absolute(self.tracking.uri)]
        command = shlex.join(["python", "-m", "experiments.deliver", str(self.folder.parent), *options])
        return f"records wait in {self.folder}; {command} delivers them"

    def close(self, error: Unreachable) -> None:
        """The server does not answer; said once."""
        if not self.closed:
            print(f"{error}; training goes on, {self.instructions}")
        self.closed, self.tried = True, time.monotonic()

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """What the server does not take is left out here: what is recorded then goes into the outbox."""
        try:
            yield
        except Unreachable as error:
            self.close(error)

    @property
    def _address(self) -> dict[str, str | None]:
        return {"uri": self.tracking.uri, "experiment": self.tracking.experiment, "owner": self.owner}

    def put(self, name: str, tags: dict[str, str], parent: str, trained: "Trained") -> None:
        """A run that is trained; raises UserError where the disk does not take it."""
        from experiments.record import files
        from experiments.record.undelivered import RunRecord

        about = {"name": name, "tags": tags, "parent": parent, "outcome": trained.outcome, "rung": trained.rung}
        record = RunRecord.model_validate({**self._address, **about, "started": trained.started, "ended": trained.ended})
        with self._whole(tags["job"], record) as folder:
            files.write(trained, folder)

    def put_sweep(self, run_id: str, status: str, reason: str, axes: dict[str, str], content: Path) -> None:
        """The end of a sweep's parent run; raises as `put`.

        reason: what ended it, "" where it is FINISHED. axes: the swept keys. content: its files.
        """
        from experiments.record.undelivered import SweepRecord

        about = {"run_id": run_id, "status": status, "reason": reason, "axes": axes}
        record = SweepRecord.model_validate({**self._address, **about})
        with self._whole(SWEEP, record) as folder:
            shutil.copytree(content, folder / FILES)

    @contextlib.contextmanager
    def _whole(self, name: str, record: "RunRecord | SweepRecord") -> Iterator[Path]:
        """A folder for a record, which takes its name when it is whole: a kill on the way, or a full disk, leaves no half."""
        unfinished = self.folder / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            (unfinished / RECORD).write_text(record.model_dump_json())
            # Another training in the same folder may have left one of that name.
            names = (f"{name}_{number}" if number else name for number in itertools.count())
            unfinished.replace(next(self.folder / free for free in names if not (self.folder / free).exists()))
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = "no space is left there" if error.errno in FULL else error.strerror or str(error)
            others = f"; {len(self)} {self.instructions}" if len(self) else ""
            lost = f"so the record of {name} is lost, which the same command trains again"
            raise UserError(f"{self.folder}: {reason}, {lost}{others}") from None
        self.closed = True

    def try_again(self, store: "AnyStore | None", *, now: bool = False) -> None:
        """Deliver what waits, where the server answers again; asked every few seconds, or `now`."""
        if self.closed and (now or time.monotonic() - self.tried > RETRY_SECONDS):
            self.tried = time.monotonic()
            try:
                # Asked first: where nothing waits yet, there is nothing to deliver that would tell.
                check_reachable(absolute(self.tracking.uri), pauses=())
                deliver(self.folder.parent, store, self.allow, self.tracking.uri)
                self.closed = False
            except (Unreachable, InUse):
                pass


def waiting(folder: Path) -> Iterator[Path]:
    """The folders of all whole records that wait under `folder`. A link, which leads to somebody else's, is none."""
    within = folder.parent if folder.name == FOLDER else folder
    try:
        files = sorted(within.rglob(f"{FOLDER}/*/{RECORD}"))
    except RecursionError:
        raise UserError(f"{folder} has too many folders within each other") from None
    for file in files:
        record = file.parent
        if not (record.name.startswith(".") or record.is_symlink() or record.parent.is_symlink()):
            yield record


def deliver(folder: Path, store: "AnyStore | None" = None, allow: Sequence[str] = (), uri: str | None = None) -> int:
    """Write into their store all records that wait under `folder`, and take each away once it is there; how many.

    store: theirs, where it is open. uri: theirs, where it is not; a record that belongs elsewhere is refused, since it would
    take the user's name and password there. allow: see `run.trust.from_record`. Raises Unreachable where it does not answer,
    InUse where another process delivers them, and, once all others are delivered, UserError for a record that is damaged, or
    that the store does not take.
    """
    count, refused = 0, []
    with contextlib.ExitStack() as around:
        for outbox in dict.fromkeys(record.parent for record in waiting(folder)):
            in_use = InUse(f"{outbox} is being delivered by another process: wait for it")
            around.enter_context(lock_folder(outbox, in_use))
        stores = _Stores(uri)
        around.callback(stores.close)
        # A sweep's end comes after its runs.
        for record in sorted(waiting(folder), key=_is_of_sweep):
            try:
                # What is being written when an interrupt comes is written first.
                with defer_interrupts():
                    _deliver(record, store or stores, allow)
                    shutil.rmtree(record)
                count += 1
            except Unreachable:
                raise
            except UserError as error:
                refused.append(str(error) if str(record) in str(error) else f"{record}: {error}")
    if refused:
        raise UserError(f"{refused[0]}; {count} records are delivered, {len(refused)} wait still")
    return count


class _Stores:
    """The experiments of the store at that address, each opened when the first record that belongs there is delivered."""

    def __init__(self, uri: str | None) -> None:
        self.uri = absolute(uri)
        self.opened: dict[str, Store] = {}

    def store_for(self, record: "RunRecord | SweepRecord", sweep: str) -> "Store":
        """The record's experiment, which is written to for the owner of that sweep; UserError where it belongs elsewhere."""
        from experiments.record.tracking import Store

        # It is compared as it is written: to read a stranger's address would take a name and a password from it.
        place = record.uri or absolute(None)
        if place != self.uri:
            raise UserError(f"it belongs to {masked(place)}, not to {self.uri}: --uri says to which store")
        if record.experiment not in self.opened:
            self.opened[record.experiment] = Store(TrackingConfig(uri=self.uri, experiment=record.experiment))
        store = self.opened[record.experiment]
        store.act_for(record.owner, sweep)
        return store

    def close(self) -> None:
        """Nothing that was begun here is RUNNING any more."""
        for store in self.opened.values():
            with contextlib.suppress(UserError):
                store.close()


def _is_of_sweep(record: Path) -> bool:
    return record.name.partition("_")[0] == SWEEP


def _deliver(folder: Path, stores: "AnyStore | _Stores", allow: Sequence[str]) -> None:
    from experiments.record.undelivered import SweepRecord, read

    try:
        record = read(folder / RECORD, _is_of_sweep(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD} is damaged: {error}") from None
    sweep = record.run_id if isinstance(record, SweepRecord) else record.parent
    store = stores.store_for(record, sweep) if isinstance(stores, _Stores) else stores
    assert not isinstance(store, Untracked)
    if isinstance(record, SweepRecord):
        _deliver_sweep(folder, record, store)
    else:
        _deliver_run(folder, record, store, allow)


def _deliver_sweep(folder: Path, record: "SweepRecord", store: "Store") -> None:
    content = folder / FILES
    for path in (content, *content.rglob("*")):
        # What a link leads to is not the sweep's, and a FIFO has no end.
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is damaged: it is no plain file or folder")
    if record.owner not in ("", store.token):
        # Another process has taken the sweep over, and ended it since.
        return
    parent = store.run(record.run_id)
    parent.check_owner()
    parent.describe(record.axes)
    parent.keep(content)
    # The sweep is over: what it had begun and could not keep does not go on.
    for run in store.children(record.run_id, "attributes.status = 'RUNNING'"):
        store.run(run.info.run_id).fail("its sweep ended while the store did not answer", "KILLED")
    if record.status == "FINISHED":
        parent.end()
    else:
        parent.fail(record.reason, record.status)


def _deliver_run(folder: Path, record: "RunRecord", store: "Store", allow: Sequence[str]) -> None:
    from experiments.record import files
    from experiments.run.stack import Trained

    kept = files.read(folder)
    config = from_record(kept.config, allow)
    store.points, store.blocks = config.tracking.points, config.tracking.blocks
    if record.parent:
        found = store.children(record.parent, f"tags.job = '{record.tags.job}'")
        if any(run.info.status == "FINISHED" for run in found):
            # The server took it, and its answer was lost.
            return
        store.check_owner(record.parent)
        for run in found:
            if run.info.status == "RUNNING":
                store.run(run.info.run_id).fail("its record was delivered later, as another run", "KILLED")
    times = record.started, record.ended
    trained = Trained(config, kept.history, kept.parameters, record.outcome, *times, kept.environment, record.rung)
    store.begin(record.name, record.tags.model_dump(), record.parent, config).finish(trained)
