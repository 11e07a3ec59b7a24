"""The owner of a RUNNING run, and whether it lives. Neither the clocks of other processes nor process numbers are used.

An owner holds a file lock, which the operating system releases when its process ends. A process on another machine, which cannot
see that lock, watches the owner's heartbeat, a tag that changes every few seconds, by its own clock.
"""

import os
import platform
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.run.config import UserError

OWNER, PROCESS, HEARTBEAT = "owner", "process", "heartbeat"
# The seconds between two heartbeats; `sweep.stale` is at least three times as long.
HEARTBEAT_SECONDS = 5.0
# The environment variable with the token of a sweep's owner, for whom jobs in processes of their own act.
VARIABLE = "DEPTH_LABORATORY_OWNER"


class TakenOver(UserError):
    """Another process has taken the sweep over: it does not belong to this process any more."""


def boot_clock() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _owner_lock(lock_file: Path, token: str) -> FileLock:
    # filelock's soft lock, its fallback where a file system has no locks, would stay after its owner's death.
    return FileLock(lock_file.with_suffix(f".{token}{lock_file.suffix}"), timeout=0, fallback_to_soft=False)


class Owner:
    """The owner of what this process records in a store.

    lock_file: the store's, beside which the owner's own lock file lies.
    token: of the owner that this process acts for, "" where the process is an owner itself.
    """

    def __init__(self, lock_file: Path, token: str = "") -> None:
        self.acts_for = token
        self.token = token or uuid.uuid4().hex
        self.lock = _owner_lock(lock_file, self.token)
        # Whether anything belongs to this owner.
        self.is_active = False
        # Who has taken over the owner's run, in words, and when the run last was known to be the owner's.
        self.takeover_message = ""
        self.confirmed_at = float("-inf")

    def acquire_lock(self) -> None:
        """Acquire the lock, until `release` or the end of this process. Without locks there are heartbeats alone."""
        if not self.acts_for and not self.is_active:
            self.is_active = True
            try:
                self.lock.acquire()
            except OSError:
                Path(self.lock.lock_file).unlink(missing_ok=True)

    def release(self) -> None:
        """Release the lock, when everything of this owner's has ended."""
        self.is_active = False
        if self.lock.is_locked:
            Path(self.lock.lock_file).unlink(missing_ok=True)
            self.lock.release()

    def tags(self) -> dict[str, str]:
        """Return the tags that mark a run as this owner's. The tag `process`, HOST:PID, is for people."""
        return {OWNER: self.token, PROCESS: f"{platform.node()}:{os.getpid()}", **self.heartbeat()}

    @staticmethod
    def heartbeat() -> dict[str, str]:
        """Return the tag of a heartbeat, which differs from the one before."""
        return {HEARTBEAT: f"{time.time():.1f}"}

    def check(self, run_id: str, status: str, tags: Mapping[str, str], read_at: float) -> None:
        """Raise TakenOver where another process has taken over or ended the run, as its status and tags at `read_at` say."""
        if tags.get(OWNER, self.token) != self.token:
            self.takeover_message = f"was taken over by another process, {tags.get(PROCESS, '')}, which trains what is left of it"
        elif status != "RUNNING" and not self.acts_for:
            self.takeover_message = f"was ended as {status} by another process: the same command trains what is left of it"
        if self.takeover_message:
            self.takeover_message = f"run {run_id} gave no sign of life and {self.takeover_message}"
            raise TakenOver(self.takeover_message)
        self.confirmed_at = read_at


class Watch:
    """What this process knows of whether other owners live.

    lock_file: the store's, beside which the owners' lock files lie.
    stale_seconds: the time without a heartbeat after which an owner counts as dead.
    """

    def __init__(self, lock_file: Path, stale_seconds: float) -> None:
        self.lock_file, self.stale_seconds = lock_file, stale_seconds
        # A run's id -> its last heartbeat, and when that was first seen. The runs whose heartbeat was seen to change.
        self.last_heartbeats: dict[str, tuple[str, float]] = {}
        self.living_runs: set[str] = set()
        self.last_look = time.monotonic()

    def is_alive(self, run_id: str, tags: Mapping[str, str], heartbeat: str) -> bool | None:
        """Return whether the owner of a run with those tags lives; None where that is not known yet."""
        if (is_locked := self._is_locked(tags.get(OWNER, ""))) is not None:
            return is_locked
        now = time.monotonic()
        previous_heartbeat, first_seen = self.last_heartbeats.setdefault(run_id, (heartbeat, now))
        if heartbeat != previous_heartbeat:
            self.living_runs.add(run_id)
            self.last_heartbeats[run_id] = heartbeat, now
        elif now - first_seen >= self.stale_seconds:
            return False
        return True if run_id in self.living_runs else None

    def _is_locked(self, token: str) -> bool | None:
        """Return whether an owner's lock is held; None where this process cannot see the lock."""
        if not re.fullmatch("[0-9a-f]{32}", token):
            return None
        lock = _owner_lock(self.lock_file, token)
        if not Path(lock.lock_file).exists():
            return None
        try:
            with lock:
                return False
        except Timeout:
            return True
        except OSError:
            return None

    def remove_lock(self, token: str) -> None:
        """Remove the lock file of a dead owner."""
        if self._is_locked(token) is False:
            Path(_owner_lock(self.lock_file, token).lock_file).unlink(missing_ok=True)

    def is_due(self) -> bool:
        """Return whether it is time to look again at the owners of whom it is not known whether they live."""
        return bool(self.last_heartbeats) and time.monotonic() - self.last_look >= self.stale_seconds
