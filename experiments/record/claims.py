"""The ownership of an experiment's runs: this process's own runs, and runs that dead processes have left RUNNING."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from mlflow.entities import Run as MlflowRun
from mlflow.entities import RunTag
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from experiments.record.client import Client
from experiments.record.ownership import (
    HEARTBEAT,
    HEARTBEAT_SECONDS,
    OWNER,
    PROCESS,
    VARIABLE,
    Owner,
    TakenOver,
    Watch,
    boot_clock,
)
from experiments.record.reading import search
from experiments.run.config import SweepConfig, UserError, printable

PARENT_TAG, REASON = "mlflow.parentRunId", "reason"
# The values of the tag `kind` of this package's runs. Any other run is the user's, and is not touched.
KINDS = ("run", "sweep", "map", "verify")
# The seconds between two looks at a run while it is unknown whether its owner lives.
POLL_SECONDS = 1.0


class Claims:
    """What this process owns in an experiment.

    lock_file: is locked for a moment by each process that begins a sweep; the owners' own lock files lie beside it.
    """

    def __init__(self, client: Client, experiment_id: str, lock_file: Path) -> None:
        self.client, self.experiment_id, self.lock_file = client, experiment_id, lock_file
        self.owner = Owner(lock_file, os.environ.get(VARIABLE, ""))
        self.watch: Watch | None = None

    def tags(self) -> dict[str, str]:
        """Return the tags that mark a new run as this process's."""
        self.owner.acquire_lock()
        return self.owner.tags()

    def close(self, status: str, reason: str) -> None:
        """End all RUNNING runs of this process with that status and reason, and release the owner's lock."""
        if self.owner.is_active:
            for run in self._search(f"attributes.status = 'RUNNING' and tags.{OWNER} = '{self.owner.token}'"):
                self.end(run.info.run_id, status, reason)
            self.owner.release()

    def end(self, run_id: str, status: str, reason: str) -> None:
        """End a run that was cut off: the tag `reason` says what ended it."""
        self.client.set_tag(run_id, REASON, printable(" ".join(reason.split()))[:MAX_TAG_VAL_LENGTH])
        self.client.set_terminated(run_id, status)

    def take_over(self, kind: str, fingerprint: str, config: SweepConfig, create: Callable[[], str]) -> str:
        """Return the id of a RUNNING run for that sweep or map: an earlier run, which is taken over, or a new one.

        An earlier run is taken over where it has ended or its owner is dead. Where that is unknown, its heartbeats are awaited.
        Raises UserError where the owner lives.

        kind: of the run, `sweep` or `map`. fingerprint: of the sweep or map. create: creates a new run and returns its id.
        """
        watch = self.watch = Watch(self.lock_file, config.stale)
        has_waited = False
        while True:
            with FileLock(self.lock_file):
                self._end_dead_runs(watch)
                runs = self._search(f"tags.kind = '{kind}' and tags.fingerprint = '{fingerprint}'") if config.resume else []
                if not runs:
                    return create()
                run, run_id = runs[0], runs[0].info.run_id
                is_alive = run.info.status == "RUNNING" and watch.is_alive(run_id, run.data.tags, _heartbeat_of(run, run))
                process = f"process {run.data.tags.get(PROCESS, 'of an unknown name')}"
                if is_alive:
                    raise UserError(
                        f"this {kind} is being trained by another process, {process} (run {run_id}): "
                        "wait for it, or train it anew with sweep.resume=false"
                    )
                if is_alive is False:
                    self._tag(run_id, self.tags())
                    if REASON in run.data.tags:
                        self.client.delete_tag(run_id, REASON)
                    self.client.update_run(run_id, status="RUNNING")
                    break
            if not has_waited:
                print(f"run {run_id} of {process} is RUNNING: its signs of life are waited for, {config.stale:g} s", flush=True)
            has_waited = True
            time.sleep(POLL_SECONDS)
        if has_waited:
            # Another process may have waited as long, and have taken the run over at the same time.
            time.sleep(HEARTBEAT_SECONDS)
            self.check(run_id)
        return run_id

    def act_for(self, token: str, sweep: str) -> None:
        """Act as the owner of that token from now on, or as the one that has ended the sweep since. sweep: a run id or ""."""
        if sweep:
            run = self.client.get_run(sweep)
            token = token if run.info.status == "RUNNING" else run.data.tags.get(OWNER, token)
        self.owner = Owner(self.lock_file, token)

    def check(self, sweep: str) -> None:
        """Raise TakenOver where another process has taken over the sweep of that parent run."""
        if self.owner.takeover_message:
            raise TakenOver(self.owner.takeover_message)
        # Nobody takes over a sweep that sends heartbeats, and each heartbeat has confirmed the owner.
        if boot_clock() - self.owner.confirmed_at > 3 * HEARTBEAT_SECONDS:
            self._confirm(sweep)

    def send_heartbeat(self, run_id: str) -> None:
        """Write a heartbeat into the run's tags; raises TakenOver where another process has taken the run over."""
        run = self._confirm(run_id)
        self._tag(run_id, self.owner.heartbeat() if OWNER in run.data.tags else self.owner.tags())

    def _confirm(self, run_id: str) -> MlflowRun:
        read_at = boot_clock()
        run = self.client.get_run(run_id)
        self.owner.check(run_id, run.info.status, run.data.tags, read_at)
        return run

    def end_silent_runs(self) -> None:
        """End runs as KILLED that have sent no heartbeat for too long. It does nothing until that time has passed."""
        if self.watch and self.watch.is_due():
            with FileLock(self.lock_file):
                self._end_dead_runs(self.watch)

    def _end_dead_runs(self, watch: Watch) -> None:
        """End as KILLED every RUNNING run of this package whose owner is dead."""
        watch.last_look = time.monotonic()
        running = {run.info.run_id: run for run in self._search("attributes.status = 'RUNNING'")}
        dead_tokens = set()
        for run_id, run in running.items():
            tags = run.data.tags
            is_ours = tags.get("kind") in KINDS and (OWNER in tags or HEARTBEAT in tags)
            heartbeat = _heartbeat_of(run, running.get(tags.get(PARENT_TAG, ""), run))
            if is_ours and tags.get(OWNER) != self.owner.token and watch.is_alive(run_id, tags, heartbeat) is False:
                # The run may have ended since the search.
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.end(run_id, "KILLED", f"its process, {tags.get(PROCESS, 'of an unknown name')}, is gone")
                dead_tokens.add(tags.get(OWNER, ""))
        for token in dead_tokens:
            watch.remove_lock(token)

    def _tag(self, run_id: str, tags: dict[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _search(self, filter_string: str) -> list[MlflowRun]:
        return list(search(self.client, [self.experiment_id], filter_string))


def _heartbeat_of(run: MlflowRun, parent: MlflowRun) -> str:
    """Return the heartbeat of a run and its parent: a sweep's parent run sends heartbeats for the runs of its jobs."""
    return f"{run.data.tags.get(HEARTBEAT)} {parent.data.tags.get(HEARTBEAT)}"
