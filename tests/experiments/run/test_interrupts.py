import contextlib
import os
import signal

import pytest

from experiments.run.interrupts import heard, whole
from experiments.train import terminated

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """Those of a command; they stand again at the end."""
    before = [signal.getsignal(number) for number in NUMBERS]
    of_a_command = [signal.default_int_handler, terminated]
    for number, handler in zip(NUMBERS, of_a_command, strict=True):
        signal.signal(number, handler)
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == of_a_command
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


def swallowed(number, around=contextlib.nullcontext):
    with contextlib.suppress(BaseException), around():
        os.kill(os.getpid(), number)


def loop(turns, number, around=contextlib.nullcontext):
    """Turns of a loop, in whose first an interrupt is swallowed."""
    with heard() as interrupted:
        for turn in range(9):
            interrupted()
            turns.append(turn)
            if turn == 0:
                swallowed(number, around)


def test_what_is_being_written_is_written_before_an_interrupt():
    written = []

    def write():
        with whole():
            os.kill(os.getpid(), signal.SIGINT)
            written.append(True)
        written.append(False)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == [True]


@pytest.mark.parametrize("around", [contextlib.nullcontext, whole])
@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupt_that_a_library_swallows_comes_again(number, ends_with, around):
    turns = []
    with pytest.raises(ends_with):
        loop(turns, number, around)
    assert turns == [0]


def test_one_that_is_not_swallowed_comes_at_once():
    with pytest.raises(SystemExit) as left, heard():
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    turns = []
    loop(turns, signal.SIGINT)
    assert len(turns) == 9
    assert signal.signal(signal.SIGINT, signal.default_int_handler) == signal.SIG_IGN
