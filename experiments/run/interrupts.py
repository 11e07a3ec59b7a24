"""The signals SIGINT, SIGTERM and SIGHUP. The first signal ends a command in order; later signals do not disturb that end."""

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# After so many seconds, the next signal ends a command that has not come to its end.
ENDING_SECONDS = 30.0


class _Interrupt:
    """The signal that ends this command.

    signum: None until a signal is received. received_at: when, on the monotonic clock.
    deferrals: the number of `defer_interrupts` contexts that are entered. is_deferred: whether a signal waits for their end.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.received_at = 0.0
        self.deferrals = 0
        self.is_deferred = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: raise KeyboardInterrupt or SystemExit, unless the command is ending already."""
        within_limit = True
        if self.signum is None:
            self.signum, self.received_at = signum, time.monotonic()
            if signum != signal.SIGINT:
                _leave_terminal()
        else:
            within_limit = time.monotonic() - self.received_at < ENDING_SECONDS
            if within_limit:
                return
        if self.deferrals and within_limit:
            self.is_deferred = True
        else:
            self.raise_signal()

    def raise_signal(self) -> None:
        """Raise KeyboardInterrupt for SIGINT, SystemExit for another signal, nothing where no signal was received."""
        if self.signum is not None:
            raise KeyboardInterrupt if self.signum == signal.SIGINT else SystemExit(128 + self.signum)


_interrupt = _Interrupt()


def _leave_terminal() -> None:
    """Redirect the output from a closed terminal to the null device: otherwise every printed line would raise an error."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                null_device = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null_device, stream)
                os.close(null_device)


@contextlib.contextmanager
def end_in_order(hint: str = "") -> Iterator[None]:
    """Run a command, in which the first signal raises KeyboardInterrupt or SystemExit.

    After SIGINT the command's exit status is 1, and it prints "interrupted"; after another signal the status is 128 and the
    signal's number. A signal that is ignored, as SIGHUP is under nohup, stays ignored.

    hint: what the user may do after SIGINT, as text.
    """
    original_handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in original_handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, _interrupt.handle)
    try:
        yield
    except BaseException:
        # Any exception: a library may turn the signal's exception into another one, or fail because of it.
        if _interrupt.signum == signal.SIGINT:
            sys.exit("interrupted" + (f": {hint}" if hint else ""))
        if _interrupt.signum is not None:
            sys.exit(128 + _interrupt.signum)
        raise
    finally:
        # A command that was interrupted keeps its handlers, so that later signals do not disturb the end of its process.
        if _interrupt.signum is None:
            for signum, handler in original_handlers.items():
                signal.signal(signum, handler)


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Delay an interrupt to the end of the context, so that what is being written in it is complete."""
    _interrupt.deferrals += 1
    try:
        yield
    finally:
        _interrupt.deferrals -= 1
        must_raise = _interrupt.is_deferred and not _interrupt.deferrals
        _interrupt.is_deferred = _interrupt.is_deferred and not must_raise
    if must_raise:
        _interrupt.raise_signal()


def raise_lost_interrupt() -> None:
    """Raise an interrupt again whose exception was lost. Loops call this in every turn.

    Python or a library drops the exception where a signal is received in a finalizer or within an `except` clause.
    """
    if not _interrupt.deferrals:
        _interrupt.raise_signal()
