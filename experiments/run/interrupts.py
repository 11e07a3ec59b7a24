"""SIGINT, SIGTERM and SIGHUP: the first one ends a command in order, and further ones do not break that ending off."""

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A command that has not ended by then is broken off by the next signal.
ENDING_SECONDS = 30.0


class _Interrupt:
    """The signal that ends this command. signum: None before one came. came: its time. deferrals: how many are entered."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.came = 0.0
        self.deferrals = 0
        self.deferred = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt or SystemExit, unless the command is ending already."""
        patient = True
        if self.signum is None:
            self.signum, self.came = signum, time.monotonic()
            if signum != signal.SIGINT:
                _leave_terminal()
        else:
            patient = time.monotonic() - self.came < ENDING_SECONDS
            if patient:
                return
        if self.deferrals and patient:
            self.deferred = True
        else:
            self.throw()

    def throw(self) -> None:
        """Raise what the signal is in Python."""
        if self.signum is not None:
            raise KeyboardInterrupt if self.signum == signal.SIGINT else SystemExit(128 + self.signum)


_interrupt = _Interrupt()


def _leave_terminal() -> None:
    """Print nothing more to a terminal: one that is closed would make every line an error."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


@contextlib.contextmanager
def end_in_order(hint: str = "") -> Iterator[None]:
    """Around a whole command: a signal raises KeyboardInterrupt or SystemExit in it, once.

    The command then leaves with 128 and the signal's number, after SIGINT with 1 and "interrupted". A signal that is ignored,
    as SIGHUP is under nohup, stays ignored. hint: what the user may do after SIGINT.
    """
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, _interrupt.handle)
    try:
        yield
    except BaseException:
        # Whatever the signal has become on its way: libraries change it, and what it cuts short may fail in other words.
        if _interrupt.signum == signal.SIGINT:
            sys.exit("interrupted" + (f": {hint}" if hint else ""))
        if _interrupt.signum is not None:
            sys.exit(128 + _interrupt.signum)
        raise
    finally:
        # A command that was interrupted goes on to ignore signals until its process has ended.
        if _interrupt.signum is None:
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """An interrupt waits until what is being written is written."""
    _interrupt.deferrals += 1
    try:
        yield
    finally:
        _interrupt.deferrals -= 1
        came = _interrupt.deferred and not _interrupt.deferrals
        _interrupt.deferred = _interrupt.deferred and not came
    if came:
        _interrupt.throw()


def raise_lost_interrupt() -> None:
    """For a loop: raise once more, in its next turn, an interrupt that was lost on its way.

    One may come where exceptions end: in a finalizer or in a library's except clause.
    """
    if not _interrupt.deferrals:
        _interrupt.throw()
