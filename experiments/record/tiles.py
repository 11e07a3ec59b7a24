"""A map's tiles on disk: each stored as soon as it is trained, whole or not at all, and all of them put together band by band."""

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from blocks.arrays import Array
from experiments.run.bounded import check_arrays
from experiments.run.config import UserError

ROWS = 64


class Tiles:
    """Numbered arrays in a folder.

    folder: made where it is not there. name: of the files, `NAME_00007.npz`. dtype: of all arrays.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        with _in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def file(self, number: int) -> Path:
        """Where that tile is kept."""
        return self.folder / f"{self.name}_{number:05d}.npz"

    def put(self, number: int, values: Array) -> None:
        """Store a tile; raises UserError where there is no room, and leaves nothing of it."""
        with _in_one_line(self.folder), whole(self.file(number)) as unfinished:
            np.savez(unfinished, allow_pickle=False, values=values.astype(self.dtype, copy=False))

    def get(self, number: int, shape: tuple[int, ...]) -> Array | None:
        """A tile, None where it is not there; raises ValueError where it is cut short or another map's."""
        file = self.file(number)
        try:
            header = check_arrays(file)["values"]
            values = None
            if header == (shape, self.dtype):
                with np.load(file, allow_pickle=False) as saved:
                    values = saved["values"]
        except FileNotFoundError:
            return None
        except Exception as error:
            # What NumPy and zipfile raise for a file that is made to mislead them is not written down.
            raise ValueError(f"{file.name} is cut short or damaged ({' '.join(str(error).split()) or 'empty'})") from None
        if values is None:
            raise ValueError(f"{file.name} holds {header[1]} {header[0]}, not {self.dtype} {shape}")
        return values


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A name to write to, which becomes `file` once it is written; what fails on the way leaves neither."""
    # The ending stays: it is what NumPy and Matplotlib go by.
    unfinished = file.with_name(f"unfinished_{file.name}")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = "no space is left there" if full else error.strerror or str(error)
        raise UserError(
            f"map.folder is {str(folder)!r}: {told}; the tiles in it stay, the same command trains the others"
        ) from None


def assemble(file: Path, shape: tuple[int, int], dtype: np.dtype, bands: Iterable[Array]) -> None:
    """Write bands (rows, columns), in order, as one .npy of that shape; never more than a band is in memory."""
    with _in_one_line(file.parent), whole(file) as unfinished, unfinished.open("wb") as out:
        header = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        np.lib.format.write_array_header_2_0(out, header)
        for band in bands:
            out.write(np.ascontiguousarray(band, dtype).tobytes())


def bands(file: Path, rows: int = ROWS, before: int = 0, after: int = 0) -> Iterator[tuple[int, Array]]:
    """(first row, copy of `rows` rows) of a .npy, with `before` and `after` more rows where there are some.

    The first row is that of the band without those before it.
    """
    height = np.load(file, mmap_mode="r").shape[0]
    for start in range(0, height, rows):
        # Opened anew: the pages of a mapping that stays open count as this process's memory.
        yield start, rows_of(file, max(start - before, 0), min(start + rows + after, height))


def rows_of(file: Path, start: int, stop: int) -> Array:
    """A copy of some rows."""
    return np.array(np.load(file, mmap_mode="r")[start:stop])
