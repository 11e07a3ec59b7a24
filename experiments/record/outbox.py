"""The outbox: records that wait on disk while a tracking server does not answer, and their delivery."""

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

from experiments.record.address import Unreachable, absolute_uri, check_reachable, mask_password
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
    from experiments.run.stack import TrainedRun

OUTBOX_FOLDER, RECORD_NAME, SWEEP_NAME, FILES_FOLDER = "undelivered", "record.json", "sweep", "files"
RETRY_SECONDS = 5.0
# NumPy's error for an array that was written only in part has no number.
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, None)


class InUse(UserError):
    """Another process delivers these records."""


class Outbox:
    """A folder with one subfolder for every record that waits.

    tracking: the store that the records belong to. folder: the folder of the sweep or the run.
    allow: the loaders of the runs that must be allowed by name when the records are delivered, see `run.trust.from_record`.
    is_closed: whether nothing is written to the store, since the server does not answer. Records then go into the outbox.
    """

    def __init__(self, tracking: TrackingConfig, folder: Path, allow: Sequence[str] = ()) -> None:
        self.tracking, self.folder, self.allow = tracking, folder / OUTBOX_FOLDER, allow
        self.is_closed = False
        self.last_attempt = time.monotonic()
        # The owner of the sweep.
        self.owner = os.environ.get(VARIABLE, "")

    def __len__(self) -> int:
        """Return the number of records that wait, including those in the folders of a sweep's jobs."""
        return sum(1 for _ in waiting_records(self.folder.parent))

    @property
    def instructions(self) -> str:
        """A text for the user while records wait, with their folder and the command that delivers them."""
        options = [word for loader in self.allow for word in ("--allow", loader)]
        if self.tracking.uri != os.environ.get("MLFLOW_TRACKING_URI"):
            options += ["--uri", absolute_uri(self.tracking.uri)]
        command = shlex.join(["python", "-m", "experiments.deliver", str(self.folder.parent), *options])
        return f"records wait in {self.folder}; {command} delivers them"

    def close(self, error: Unreachable) -> None:
        """Write to the outbox from now on, since the server does not answer. Print this once."""
        if not self.is_closed:
            print(f"{error}; training goes on, {self.instructions}")
        self.is_closed, self.last_attempt = True, time.monotonic()

    @contextlib.contextmanager
    def catching_unreachable(self) -> Iterator[None]:
        """Catch Unreachable within the context and call `close`. The caller then uses the outbox."""
        try:
            yield
        except Unreachable as error:
            self.close(error)

    @property
    def _address(self) -> dict[str, str | None]:
        return {"uri": self.tracking.uri, "experiment": self.tracking.experiment, "owner": self.owner}

    def put(self, name: str, tags: dict[str, str], parent: str, trained: "TrainedRun") -> None:
        """Write the record of a trained run. Raises UserError where it cannot be written, such as on a full disk.

        name, tags: of its MLflow run. parent: the id of its sweep's run, "" where it has none.
        """
        from experiments.record import files
        from experiments.record.undelivered import RunRecord

        fields = {"name": name, "tags": tags, "parent": parent, "outcome": trained.outcome, "rung": trained.rung}
        record = RunRecord.model_validate({**self._address, **fields, "started": trained.start_time, "ended": trained.end_time})
        with self._new_record_folder(tags["job"], record) as folder:
            files.write(trained, folder)

    def put_sweep(self, run_id: str, status: str, reason: str, axes: dict[str, str], files: Path) -> None:
        """Write the record of the end of a sweep's parent run. Raises UserError as `put` does.

        reason: why it was ended, "" where it is FINISHED. axes: the swept keys and their values. files: the folder of its files.
        """
        from experiments.record.undelivered import SweepRecord

        fields = {"run_id": run_id, "status": status, "reason": reason, "axes": axes}
        record = SweepRecord.model_validate({**self._address, **fields})
        with self._new_record_folder(SWEEP_NAME, record) as folder:
            shutil.copytree(files, folder / FILES_FOLDER)

    @contextlib.contextmanager
    def _new_record_folder(self, name: str, record: "RunRecord | SweepRecord") -> Iterator[Path]:
        """Create a folder for a record. It gets its name when the record is complete, so that no record is half written."""
        unfinished_folder = self.folder / f".{name}"
        shutil.rmtree(unfinished_folder, ignore_errors=True)
        try:
            unfinished_folder.mkdir(parents=True)
            yield unfinished_folder
            (unfinished_folder / RECORD_NAME).write_text(record.model_dump_json())
            # Another training in the same folder may have left a record of that name.
            names = (f"{name}_{number}" if number else name for number in itertools.count())
            unfinished_folder.replace(
                next(self.folder / candidate for candidate in names if not (self.folder / candidate).exists())
            )
        except OSError as error:
            shutil.rmtree(unfinished_folder, ignore_errors=True)
            reason = "no space is left there" if error.errno in FULL_DISK_ERRORS else error.strerror or str(error)
            others_text = f"; {len(self)} {self.instructions}" if len(self) else ""
            loss = f"so the record of {name} is lost, which the same command trains again"
            raise UserError(f"{self.folder}: {reason}, {loss}{others_text}") from None
        self.is_closed = True

    def try_again(self, store: "AnyStore | None", *, now: bool = False) -> None:
        """Deliver the records that wait, if the server answers again. It is asked every few seconds, or at once with `now`."""
        if self.is_closed and (now or time.monotonic() - self.last_attempt > RETRY_SECONDS):
            self.last_attempt = time.monotonic()
            try:
                # While nothing waits yet, `deliver` would not find out whether the server answers.
                check_reachable(absolute_uri(self.tracking.uri), pauses=())
                deliver(self.folder.parent, store, self.allow, self.tracking.uri)
                self.is_closed = False
            except (Unreachable, InUse):
                pass


def waiting_records(folder: Path) -> Iterator[Path]:
    """Yield the folders of all complete records under `folder`. Links are left out, since they may lead to other users' files.

    Raises UserError where folders are nested too deeply.
    """
    root = folder.parent if folder.name == OUTBOX_FOLDER else folder
    try:
        files = sorted(root.rglob(f"{OUTBOX_FOLDER}/*/{RECORD_NAME}"))
    except RecursionError:
        raise UserError(f"{folder} has too many folders within each other") from None
    for file in files:
        record = file.parent
        if not (record.name.startswith(".") or record.is_symlink() or record.parent.is_symlink()):
            yield record


def deliver(folder: Path, store: "AnyStore | None" = None, allow: Sequence[str] = (), uri: str | None = None) -> int:
    """Write all records that wait under `folder` into their store, remove each one from the disk, and return their number.

    store: the records' store, where it is open. uri: of their store, where it is not. allow: see `run.trust.from_record`.
    A record that belongs to another store is refused, since the user's name and password would be sent there.

    Raises Unreachable where the store does not answer, and InUse where another process delivers the records. After all other
    records are delivered it raises UserError for one that is damaged or that the store refuses.
    """
    count, refusals = 0, []
    with contextlib.ExitStack() as exit_stack:
        for outbox in dict.fromkeys(record.parent for record in waiting_records(folder)):
            in_use = InUse(f"{outbox} is being delivered by another process: wait for it")
            exit_stack.enter_context(lock_folder(outbox, in_use))
        stores = _Stores(uri)
        exit_stack.callback(stores.close)
        # The end of a sweep is delivered after its runs.
        for record in sorted(waiting_records(folder), key=_is_sweep_record):
            try:
                # An interrupt waits until a record is complete in the store.
                with defer_interrupts():
                    _deliver_record(record, store or stores, allow)
                    shutil.rmtree(record)
                count += 1
            except Unreachable:
                raise
            except UserError as error:
                refusals.append(str(error) if str(record) in str(error) else f"{record}: {error}")
    if refusals:
        raise UserError(f"{refusals[0]}; {count} records are delivered, {len(refusals)} wait still")
    return count


class _Stores:
    """The experiments of the store at a URI. Each is opened when the first record that belongs to it is delivered."""

    def __init__(self, uri: str | None) -> None:
        self.uri = absolute_uri(uri)
        self.stores: dict[str, Store] = {}

    def store_for(self, record: "RunRecord | SweepRecord", sweep: str) -> "Store":
        """Return the record's experiment, opened to act for the owner of its sweep.

        sweep: the id of the sweep's run, "" for a run alone. Raises UserError where the record belongs to another store.
        """
        from experiments.record.tracking import Store

        # The record's URI is only compared as text: if it were parsed, its user and password would come into the environment.
        uri = record.uri or absolute_uri(None)
        if uri != self.uri:
            raise UserError(f"it belongs to {mask_password(uri)}, not to {self.uri}: --uri says to which store")
        if record.experiment not in self.stores:
            self.stores[record.experiment] = Store(TrackingConfig(uri=self.uri, experiment=record.experiment))
        store = self.stores[record.experiment]
        store.act_for(record.owner, sweep)
        return store

    def close(self) -> None:
        """Close all experiments, so that no run that was begun in them stays RUNNING."""
        for store in self.stores.values():
            with contextlib.suppress(UserError):
                store.close()


def _is_sweep_record(record: Path) -> bool:
    return record.name.partition("_")[0] == SWEEP_NAME


def _deliver_record(folder: Path, stores: "AnyStore | _Stores", allow: Sequence[str]) -> None:
    from experiments.record.undelivered import SweepRecord, read

    try:
        record = read(folder / RECORD_NAME, _is_sweep_record(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD_NAME} is damaged: {error}") from None
    sweep = record.run_id if isinstance(record, SweepRecord) else record.parent
    store = stores.store_for(record, sweep) if isinstance(stores, _Stores) else stores
    assert not isinstance(store, Untracked)
    if isinstance(record, SweepRecord):
        _deliver_sweep(folder, record, store)
    else:
        _deliver_run(folder, record, store, allow)


def _deliver_sweep(folder: Path, record: "SweepRecord", store: "Store") -> None:
    folder_of_files = folder / FILES_FOLDER
    for path in (folder_of_files, *folder_of_files.rglob("*")):
        # A link may lead to files that are not the sweep's, and a FIFO has no end.
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is damaged: it is no plain file or folder")
    if record.owner not in ("", store.token):
        # Another process has taken the sweep over and has ended it.
        return
    parent = store.run(record.run_id)
    parent.check_owner()
    parent.log_summary(record.axes)
    parent.log_artifacts(folder_of_files)
    # The sweep is over: its runs that are still RUNNING could not be recorded, and do not go on.
    for run in list(store.children(record.run_id, "attributes.status = 'RUNNING'")):
        store.run(run.info.run_id).fail("its sweep ended while the store did not answer", "KILLED")
    if record.status == "FINISHED":
        parent.end()
    else:
        parent.fail(record.reason, record.status)


def _deliver_run(folder: Path, record: "RunRecord", store: "Store", allow: Sequence[str]) -> None:
    from experiments.record import files
    from experiments.run.stack import TrainedRun

    record_files = files.read(folder)
    config = from_record(record_files.config, allow)
    store.points, store.blocks = config.tracking.points, config.tracking.blocks
    if record.parent:
        runs = list(store.children(record.parent, f"tags.job = '{record.tags.job}'"))
        if any(run.info.status == "FINISHED" for run in runs):
            # The server has written this run before, but its answer was lost.
            return
        store.check_owner(record.parent)
        for run in runs:
            if run.info.status == "RUNNING":
                store.run(run.info.run_id).fail("its record was delivered later, as another run", "KILLED")
    times = record.started, record.ended
    trained = TrainedRun(
        config, record_files.history, record_files.parameters, record.outcome, *times, record_files.environment, record.rung
    )
    store.finish([(store.begin(record.name, record.tags.model_dump(), record.parent, config), trained)])
