"""Checks of a folder that a command writes to: it must be possible to create it, and no other process may write to it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.run.config import UserError

# So many bytes are left for the path of a file within the folder.
FILE_PATH_BYTES = 100
LOCK_NAME = ".lock"


def check_folder(key: str, folder: str) -> None:
    """Raise UserError unless the folder can be written to, or created. key: the config key that names it, for the error."""
    path = Path(folder).absolute()
    # `Path.exists` raises for a name that is too long, `os.path.exists` does not.
    parent = next(ancestor for ancestor in (path, *path.parents) if os.path.exists(ancestor))
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{key} is {folder!r}, but {parent} is not a folder that can be written to")
    longest, total = (os.pathconf(parent, limit) for limit in ("PC_NAME_MAX", "PC_PATH_MAX"))
    for name_or_path, limit in [*((name, longest) for name in path.parts), (str(path), total - FILE_PATH_BYTES)]:
        if (size := len(os.fsencode(name_or_path))) > limit:
            raise UserError(f"{key} has the name {name_or_path[:40]!r}... of {size} bytes, allowed: at most {limit} here")


@contextlib.contextmanager
def lock_folder(folder: Path, in_use: UserError) -> Iterator[None]:
    """Lock an existing folder for this process. Raises `in_use` where another process has locked it."""
    try:
        lock = FileLock(folder / LOCK_NAME).acquire(timeout=0)
    except Timeout:
        raise in_use from None
    with lock:
        yield
