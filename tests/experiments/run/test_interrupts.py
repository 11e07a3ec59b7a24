import contextlib
import os
import signal
import time

import pytest

from experiments.run import interrupts
from experiments.run.interrupts import SIGNALS, defer_interrupts, end_in_order, raise_lost_interrupt

LEAVES_WITH = [(signal.SIGINT, "interrupted: again"), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Those of a shell's foreground, whatever runs the tests; they stand again at the end."""
    monkeypatch.setattr(interrupts, "_interrupt", interrupts._Interrupt())
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def left_with(command):
    """What the command hands to sys.exit."""
    with pytest.raises(SystemExit) as left:
        end_in_order("again")(command)()
    return left.value.code


@pytest.mark.parametrize("further", [(), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM,), (signal.SIGHUP, signal.SIGTERM)])
@pytest.mark.parametrize(("number", "code"), LEAVES_WITH)
def test_the_first_signal_decides_and_further_ones_do_not_break_the_ending_off(number, code, further):
    closed = []

    def command():
        try:
            send(number)
        finally:
            for part in range(3):
                send(*further)
                closed.append(part)

    assert left_with(command) == code
    # While the interpreter ends, too.
    send(*further)
    assert closed == [0, 1, 2]


def test_an_ending_that_takes_too_long_is_broken_off_by_the_next_signal(monkeypatch):
    now = time.monotonic()
    reached = []

    def command():
        try:
            send(signal.SIGTERM)
        finally:
            with defer_interrupts():
                send(signal.SIGINT)
                reached.append("still ending")
                monkeypatch.setattr(time, "monotonic", lambda: now + 31)
                send(signal.SIGINT)
                reached.append("never")

    assert left_with(command) == 143
    assert reached == ["still ending"]


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP, signal.SIGINT]])
def test_what_is_being_written_is_written_before_an_interrupt(numbers):
    written = []

    def command():
        with defer_interrupts():
            with defer_interrupts():
                send(*numbers)
                written.append("inner")
            written.append("outer")
        written.append("after")

    assert left_with(command) == dict(LEAVES_WITH)[numbers[0]]
    assert written == ["inner", "outer"]


@pytest.mark.parametrize("around", [contextlib.nullcontext, defer_interrupts])
@pytest.mark.parametrize(("number", "code"), LEAVES_WITH)
def test_an_interrupt_that_a_library_swallows_comes_again(number, code, around):
    turns = []

    def command():
        for turn in range(9):
            raise_lost_interrupt()
            turns.append(turn)
            if turn == 0:
                with contextlib.suppress(BaseException), around():
                    send(number)

    assert left_with(command) == code
    assert turns == [0]


@pytest.mark.parametrize("became", [SystemExit(1), ValueError("aborted"), KeyboardInterrupt()])
def test_the_status_is_the_signals_whatever_a_library_makes_of_it(became):
    def command():
        try:
            send(signal.SIGTERM)
        except SystemExit:
            raise became from None

    assert left_with(command) == 143


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_so(number):
    signal.signal(number, signal.SIG_IGN)
    turns = []

    @end_in_order()
    def command():
        send(number)
        turns.append(True)
        raise_lost_interrupt()

    command()
    assert turns == [True]
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_command_that_nothing_interrupts_leaves_handlers_and_errors_as_they_were():
    before = [signal.getsignal(number) for number in SIGNALS]
    within = []

    @end_in_order()
    def command():
        within.extend(signal.getsignal(number) for number in SIGNALS)
        raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        command()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not set(within) & set(before)
