"""SIGINT and SIGTERM in a command's main thread: nothing is left half done, and none is overheard."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def _handled(by: Callable[[int, FrameType | None, Handler], object]) -> Iterator[None]:
    """`by` is called, with the handler that was there, for signals that have one."""

    def handler_after(before: Handler) -> Handler:
        return lambda signum, frame: by(signum, frame, before)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, before in handlers.items():
        if callable(before):
            signal.signal(number, handler_after(before))
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """An interrupt waits until what is being written is written: no run is left behind RUNNING."""
    waiting: list[Callable[[], object]] = []
    with _handled(lambda signum, frame, before: waiting.append(lambda: before(signum, frame))):
        yield
    for interrupt in waiting:
        interrupt()


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], None]]:
    """For a loop: what it gives raises once more, in the loop's next turn, an interrupt that was lost on its way.

    One may come where exceptions end: in a finalizer or in a library's except clause.
    """
    came: list[Callable[[], object]] = []

    def hear(signum: int, frame: FrameType | None, before: Handler) -> None:
        came.append(lambda: before(signum, None))
        before(signum, frame)

    def again() -> None:
        for interrupt in came:
            interrupt()

    with _handled(hear):
        yield again
