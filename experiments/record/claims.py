"""Which runs of an experiment are this process's, and what becomes of those that dead processes have left RUNNING."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from mlflow.entities import Run as MlflowRun
from mlflow.entities import RunTag
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from experiments.record.client import Client
from experiments.record.ownership import BEAT_SECONDS, HEARTBEAT, OWNER, PROCESS, VARIABLE, Owner, TakenOver, Watch, clock
from experiments.record.reading import search
from experiments.run.config import SweepConfig, UserError, printable

PARENT_TAG, REASON = "mlflow.parentRunId", "reason"
# What this package's own runs are tagged as; any other run is the user's, and left alone.
KINDS = ("run", "sweep", "map", "verify")
# Seconds between two looks at a run of whose owner it is not known whether it lives.
LOOK_SECONDS = 1.0


class Claims:
    """An owner of runs in an experiment. lock_file: held for a moment by whoever begins a sweep; owners' locks lie beside it."""

    def __init__(self, client: Client, experiment_id: str, lock_file: Path) -> None:
        self.client, self.experiment_id, self.lock_file = client, experiment_id, lock_file
        self.owner = Owner(lock_file, os.environ.get(VARIABLE, ""))
        self.watch: Watch | None = None

    def tags(self) -> dict[str, str]:
        """What marks a new run as this process's."""
        self.owner.hold()
        return self.owner.tags()

    def close(self, status: str, reason: str) -> None:
        """End with that status, for that reason, what is RUNNING of this process, and let others take it over."""
        if self.owner.holds:
            for run in self._search(f"attributes.status = 'RUNNING' and tags.{OWNER} = '{self.owner.token}'"):
                self.end(run.info.run_id, status, reason)
            self.owner.release()

    def end(self, run_id: str, status: str, reason: str) -> None:
        """End a run that did not come to its end by itself: the tag `reason` says what ended it."""
        self.client.set_tag(run_id, REASON, printable(" ".join(reason.split()))[:MAX_TAG_VAL_LENGTH])
        self.client.set_terminated(run_id, status)

    def take_over(self, kind: str, fingerprint: str, config: SweepConfig, create: Callable[[], str]) -> str:
        """The id of the RUNNING run of that sweep or map: an earlier one, whose owner has ended it or is dead, or a new one.

        create: makes a new one. Raises UserError where the owner lives.
        """
        watch = self.watch = Watch(self.lock_file, config.stale)
        waited = False
        while True:
            with FileLock(self.lock_file):
                self._bury(watch)
                found = self._search(f"tags.kind = '{kind}' and tags.fingerprint = '{fingerprint}'") if config.resume else []
                if not found:
                    return create()
                run, run_id = found[0], found[0].info.run_id
                lives = run.info.status == "RUNNING" and watch.lives(run_id, run.data.tags, _sign(run, run))
                process = f"process {run.data.tags.get(PROCESS, 'of an unknown name')}"
                if lives:
                    raise UserError(
                        f"this {kind} is being trained by another process, {process} (run {run_id}): "
                        "wait for it, or train it anew with sweep.resume=false"
                    )
                if lives is False:
                    self._tag(run_id, self.tags())
                    if REASON in run.data.tags:
                        self.client.delete_tag(run_id, REASON)
                    self.client.update_run(run_id, status="RUNNING")
                    break
            if not waited:
                print(f"run {run_id} of {process} is RUNNING: its signs of life are waited for, {config.stale:g} s", flush=True)
            waited = True
            time.sleep(LOOK_SECONDS)
        if waited:
            # Another process may have waited as long.
            time.sleep(BEAT_SECONDS)
            self.check(run_id)
        return run_id

    def act_for(self, token: str, sweep: str) -> None:
        """Be that owner from now on, and where the sweep was ended by another one since, that one."""
        if sweep:
            run = self.client.get_run(sweep)
            token = token if run.info.status == "RUNNING" else run.data.tags.get(OWNER, token)
        self.owner = Owner(self.lock_file, token)

    def check(self, sweep: str) -> None:
        """Raise TakenOver where the sweep of that parent run is another process's by now."""
        if self.owner.successor:
            raise TakenOver(self.owner.successor)
        # A sweep that gives signs of life is not taken over, and whose it is was read with each of them.
        if clock() - self.owner.confirmed > 3 * BEAT_SECONDS:
            self._confirm(sweep)

    def beat(self, run_id: str) -> None:
        """Give a sign of life; raises TakenOver where the run is another process's by now."""
        run = self._confirm(run_id)
        self._tag(run_id, self.owner.sign() if OWNER in run.data.tags else self.owner.tags())

    def _confirm(self, run_id: str) -> MlflowRun:
        now = clock()
        run = self.client.get_run(run_id)
        self.owner.check(run_id, run.info.status, run.data.tags, now)
        return run

    def bury_silent(self) -> None:
        """End as KILLED what has given no sign of life since `take_over`; looked for as seldom as that takes."""
        if self.watch and self.watch.is_due():
            with FileLock(self.lock_file):
                self._bury(self.watch)

    def _bury(self, watch: Watch) -> None:
        """End as KILLED every RUNNING run of this package whose owner is dead."""
        watch.looked = time.monotonic()
        running = {run.info.run_id: run for run in self._search("attributes.status = 'RUNNING'")}
        dead = set()
        for run_id, run in running.items():
            tags = run.data.tags
            known = tags.get("kind") in KINDS and (OWNER in tags or HEARTBEAT in tags)
            sign = _sign(run, running.get(tags.get(PARENT_TAG, ""), run))
            if known and tags.get(OWNER) != self.owner.token and watch.lives(run_id, tags, sign) is False:
                # It may have ended since.
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.end(run_id, "KILLED", f"its process, {tags.get(PROCESS, 'of an unknown name')}, is gone")
                dead.add(tags.get(OWNER, ""))
        for token in dead:
            watch.forget(token)

    def _tag(self, run_id: str, tags: dict[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _search(self, which: str) -> list[MlflowRun]:
        return search(self.client, [self.experiment_id], which)


def _sign(run: MlflowRun, parent: MlflowRun) -> str:
    """Of life: a sweep's own run gives it for its jobs' runs."""
    return f"{run.data.tags.get(HEARTBEAT)} {parent.data.tags.get(HEARTBEAT)}"
