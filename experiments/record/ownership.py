"""Whose a RUNNING run is, and whether that owner lives. No clock of another process is asked, and no process number.

An owner holds a lock, which the operating system lets go with its process. Who cannot see that lock, on another machine,
watches the owner's sign of life, a tag that changes every few seconds, by a clock of his own.
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
# Seconds between two signs of life; `sweep.stale` is at least three of them.
BEAT_SECONDS = 5.0
# A sweep's jobs that run in processes of their own act for its owner.
VARIABLE = "DEPTH_LABORATORY_OWNER"


class TakenOver(UserError):
    """Another process has taken the sweep over: it is no longer this one's."""


def clock() -> float:
    """Seconds that pass while the machine sleeps, too, where the system counts these."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _lock(beside: Path, token: str) -> FileLock:
    # Another kind of lock would outlive its owner: where the file system has no such lock, there is none.
    return FileLock(beside.with_suffix(f".{token}{beside.suffix}"), timeout=0, fallback_to_soft=False)


class Owner:
    """The owner of what this process records in a store.

    beside: the file that locks lie beside. token: of the owner that this process acts for, "" where it is one itself.
    """

    def __init__(self, beside: Path, token: str = "") -> None:
        self.acts_for = token
        self.token = token or uuid.uuid4().hex
        self.lock = _lock(beside, self.token)
        # Whether there is anything that is this owner's.
        self.holds = False
        # Who has taken over what was this owner's, in words, and when it was known to be this owner's.
        self.successor = ""
        self.confirmed = float("-inf")

    def hold(self) -> None:
        """Take the lock, until `release` or the end of this process; where there are no locks, signs of life must do."""
        if not self.acts_for and not self.holds:
            self.holds = True
            try:
                self.lock.acquire()
            except OSError:
                Path(self.lock.lock_file).unlink(missing_ok=True)

    def release(self) -> None:
        """Let go: all that was this owner's has ended."""
        self.holds = False
        if self.lock.is_locked:
            Path(self.lock.lock_file).unlink(missing_ok=True)
            self.lock.release()

    def tags(self) -> dict[str, str]:
        """What marks a run as this owner's. The process, `HOST:PID`, is for people to read."""
        return {OWNER: self.token, PROCESS: f"{platform.node()}:{os.getpid()}", **self.sign()}

    @staticmethod
    def sign() -> dict[str, str]:
        """The sign of life; it differs from the one before."""
        return {HEARTBEAT: f"{time.time():.1f}"}

    def check(self, run_id: str, status: str, tags: Mapping[str, str], since: float) -> None:
        """Raise TakenOver where that run, as it was at `since`, was taken over or ended by another process."""
        if tags.get(OWNER, self.token) != self.token:
            self.successor = f"was taken over by another process, {tags.get(PROCESS, '')}, which trains what is left of it"
        elif status != "RUNNING" and not self.acts_for:
            self.successor = f"was ended as {status} by another process: the same command trains what is left of it"
        if self.successor:
            self.successor = f"run {run_id} gave no sign of life and {self.successor}"
            raise TakenOver(self.successor)
        self.confirmed = since


class Watch:
    """Who of other owners lives, as far as is known here.

    beside: the file that locks lie beside. seconds: without a sign of life, after which an owner counts as dead.
    """

    def __init__(self, beside: Path, seconds: float) -> None:
        self.beside, self.seconds = beside, seconds
        # A run's id -> its sign of life, and when it was first seen here; and the runs whose sign was seen to change.
        self.seen: dict[str, tuple[str, float]] = {}
        self.changing: set[str] = set()
        self.looked = time.monotonic()

    def lives(self, run_id: str, tags: Mapping[str, str], sign: str) -> bool | None:
        """Whether the owner of a run with those tags lives; None is not known yet."""
        if (locked := self._locked(tags.get(OWNER, ""))) is not None:
            return locked
        now = time.monotonic()
        before, since = self.seen.setdefault(run_id, (sign, now))
        if sign != before:
            self.changing.add(run_id)
            self.seen[run_id] = sign, now
        elif now - since >= self.seconds:
            return False
        return True if run_id in self.changing else None

    def _locked(self, token: str) -> bool | None:
        """Whether an owner's lock is held; None where it is not to be seen from here."""
        if not re.fullmatch("[0-9a-f]{32}", token):
            return None
        lock = _lock(self.beside, token)
        if not Path(lock.lock_file).exists():
            return None
        try:
            with lock:
                return False
        except Timeout:
            return True
        except OSError:
            return None

    def forget(self, token: str) -> None:
        """Take the lock of a dead owner away, of whom no run is left."""
        if self._locked(token) is False:
            Path(_lock(self.beside, token).lock_file).unlink(missing_ok=True)

    def is_due(self) -> bool:
        """Whether it is time to look again at those of whom is not known whether they live."""
        return bool(self.seen) and time.monotonic() - self.looked >= self.seconds
