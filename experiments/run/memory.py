"""What the machine's memory takes: asked before anything that large is made."""

from decimal import Decimal

import psutil

from experiments.run.config import UserError


def total_memory() -> int:
    """The machine's, in bytes."""
    return int(psutil.virtual_memory().total)


def check_memory(asked: str, size: int) -> None:
    """Raise UserError where `size` bytes are more than the machine's memory. asked: the keys and values that ask for them."""
    if size > (has := total_memory()):
        raise UserError(f"{asked}, which does not fit: it takes {in_words(size)} of memory, this machine has {in_words(has)}")


def in_words(size: int) -> str:
    """A number of bytes, in GiB."""
    # Of a number that no float holds, too.
    return f"{Decimal(size) / 2**30:.3g} GiB"
