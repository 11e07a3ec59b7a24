"""Whether the process that a RUNNING run belongs to is still there."""

import os
import platform
import time
from collections.abc import Mapping
from functools import cache

import psutil

PROCESS, HEARTBEAT = "process", "heartbeat"
BEAT_SECONDS = 5.0


@cache
def _own() -> str:
    return f"{platform.node()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def tags() -> dict[str, str]:
    """What marks a run as this process's: `HOST:PID:START`, and the time, both in seconds since 1970."""
    return {PROCESS: _own(), HEARTBEAT: f"{time.time():.1f}"}


def alive(tags: Mapping[str, str], stale_seconds: float) -> bool:
    """Whether the process with those tags runs: on this host it is looked up, on another its heartbeat must be recent."""
    host, _, process = tags.get(PROCESS, "").partition(":")
    if host != platform.node():
        return time.time() - float(tags.get(HEARTBEAT, 0)) < stale_seconds
    pid, _, start = process.partition(":")
    try:
        found = psutil.Process(int(pid))
        # Another process may have been given the number since.
        return abs(found.create_time() - float(start)) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
