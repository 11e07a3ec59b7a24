"""Whether a folder that a command is to make, or to write to, can be, and whether another process writes to it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.run.config import UserError

# Bytes that the path of a file in the folder may have beyond the folder's own.
WITHIN = 100
LOCK = ".lock"


def check_folder(key: str, folder: str) -> None:
    """Raise UserError unless the folder can be written to, or made."""
    path = Path(folder).absolute()
    # A name that is too long makes `Path.exists` raise.
    there = next(above for above in (path, *path.parents) if os.path.exists(above))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"{key} is {folder!r}, but {there} is not a folder that can be written to")
    longest, total = (os.pathconf(there, limit) for limit in ("PC_NAME_MAX", "PC_PATH_MAX"))
    for text, limit in [*((name, longest) for name in path.parts), (str(path), total - WITHIN)]:
        if (size := len(os.fsencode(text))) > limit:
            raise UserError(f"{key} has the name {text[:40]!r}... of {size} bytes, allowed: at most {limit} here")


@contextlib.contextmanager
def hold(folder: Path, in_use: UserError) -> Iterator[None]:
    """The folder, which is there, is this process's alone; raises `in_use` where another process holds it."""
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise in_use from None
    with lock:
        yield
