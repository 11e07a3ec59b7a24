"""The tiles of a map on disk. Each is written completely or not at all; at the end all are assembled band by band."""

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from blocks.arrays import Array
from experiments.run.bounded import check_arrays
from experiments.run.config import UserError

BAND_ROWS = 64


class Tiles:
    """Numbered arrays in a folder.

    folder: is created where it does not exist. name: of the files, `NAME_00007.npz`. dtype: of all arrays.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        with _errors_in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def file(self, number: int) -> Path:
        """Return the file of that tile."""
        return self.folder / f"{self.name}_{number:05d}.npz"

    def write(self, number: int, values: Array) -> None:
        """Write a tile. Raises UserError, and leaves no file, where the disk is full."""
        with _errors_in_one_line(self.folder), atomic_write(self.file(number)) as unfinished_file:
            np.savez(unfinished_file, allow_pickle=False, values=values.astype(self.dtype, copy=False))

    def read(self, number: int, shape: tuple[int, ...]) -> Array | None:
        """Read a tile of that shape; None where there is no file. Raises ValueError where it is damaged or of another map."""
        file = self.file(number)
        try:
            header = check_arrays(file)["values"]
            values = None
            if header == (shape, self.dtype):
                with np.load(file, allow_pickle=False) as archive:
                    values = archive["values"]
        except FileNotFoundError:
            return None
        except Exception as error:
            # Any exception: it is not documented what NumPy and zipfile raise for a file that was made to mislead them.
            raise ValueError(f"{file.name} is cut short or damaged ({' '.join(str(error).split()) or 'empty'})") from None
        if values is None:
            raise ValueError(f"{file.name} holds {header[1]} {header[0]}, not {self.dtype} {shape}")
        return values


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to `file` at the end of the context, and removed after an error."""
    # The suffix is the same, since NumPy and Matplotlib choose the format by it.
    unfinished_file = file.with_name(f"unfinished_{file.name}")
    try:
        yield unfinished_file
        unfinished_file.replace(file)
    finally:
        unfinished_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space is left there" if is_full else error.strerror or str(error)
        raise UserError(
            f"map.folder is {str(folder)!r}: {reason}; the tiles in it stay, the same command trains the others"
        ) from None


def assemble(file: Path, shape: tuple[int, int], dtype: np.dtype, bands: Iterable[Array]) -> None:
    """Write bands (rows, columns), in order, as one .npy file of that shape. Only one band is in memory at a time."""
    with _errors_in_one_line(file.parent), atomic_write(file) as unfinished_file, unfinished_file.open("wb") as out:
        header = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        np.lib.format.write_array_header_2_0(out, header)
        for band in bands:
            out.write(np.ascontiguousarray(band, dtype).tobytes())


def read_bands(file: Path, rows: int = BAND_ROWS, rows_before: int = 0, rows_after: int = 0) -> Iterator[tuple[int, Array]]:
    """Yield (first row, copy of `rows` rows) of a .npy file, with `rows_before` and `rows_after` more rows where they exist.

    The first row is that of the band without the rows before it.
    """
    height = np.load(file, mmap_mode="r").shape[0]
    for first_row in range(0, height, rows):
        # The file is opened for each band, since the pages of an open mapping count as this process's memory.
        yield first_row, read_rows(file, max(first_row - rows_before, 0), min(first_row + rows + rows_after, height))


def read_rows(file: Path, start: int, stop: int) -> Array:
    """Return a copy of the rows from `start` to before `stop` of a .npy file."""
    return np.array(np.load(file, mmap_mode="r")[start:stop])
