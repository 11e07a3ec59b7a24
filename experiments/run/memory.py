"""The machine's memory, which is checked before anything large is allocated."""

from decimal import Decimal

import psutil

from experiments.run.config import UserError


def total_memory() -> int:
    """Return the size of the machine's memory in bytes."""
    return int(psutil.virtual_memory().total)


def check_memory(cause: str, size: int) -> None:
    """Raise UserError where `size` bytes are more than the machine's memory.

    cause: the config keys and values that need so much, for the error, such as `training.epochs is 10`.
    """
    if size > (total := total_memory()):
        raise UserError(
            f"{cause}, which does not fit: it takes {format_bytes(size)} of memory, this machine has {format_bytes(total)}"
        )


def format_bytes(size: int) -> str:
    """Return a number of bytes as text, in GiB."""
    # Decimal, since the number may be larger than every float.
    return f"{Decimal(size) / 2**30:.3g} GiB"
