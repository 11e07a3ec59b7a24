"""Reading of files that somebody else may have written. Only plain files are opened, and every size has a bound.

All functions raise ValueError, in words that can follow `FILE is damaged: `; OSError where the file cannot be opened; and
the errors of PyYAML, zipfile and NumPy for a file of another format.
"""

import json
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from experiments.run.memory import total_memory

# The bounds of a text file. A config has some 60 values in 2 KB, but one with a rate for each of thousands of blocks must fit.
MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_LETTERS = 2**20, 20_000, 20, 10_000
# The bound of an archive's directory, enough for thousands of arrays.
MAX_DIRECTORY_BYTES = 2**20
# A small archive may unpack to so many bytes.
MAX_UNPACKED_BYTES = 2**26
# Where the caller sets no bound, the arrays of a file may take the machine's memory divided by this.
MEMORY_DIVISOR = 4
# libyaml's loader is ten times faster.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Header = tuple[tuple[int, ...], np.dtype]


def open_plain(file: Path, max_bytes: int) -> IO[bytes]:
    """Open a plain file of at most `max_bytes` bytes for reading. Raises ValueError for a link, a FIFO, a device or a folder."""
    if file.is_symlink():
        raise ValueError("it is a link, it must be a file")
    # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    status = os.fstat(descriptor)
    fault = "it is no plain file" if not stat.S_ISREG(status.st_mode) else ""
    if status.st_size > max_bytes:
        fault = f"it has {status.st_size} bytes, {max_bytes} at most are read"
    if fault:
        os.close(descriptor)
        raise ValueError(fault)
    return os.fdopen(descriptor, "rb")


def read_text(file: Path, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file."""
    with open_plain(file, max_bytes) as content:
        return content.read(max_bytes).decode()


def read_yaml_mapping(file: Path) -> dict[str, Any]:
    """Return the mapping of a YAML file. Raises ValueError for an alias, which could make the mapping infinite."""
    content = read_text(file)
    depth = 0
    for number, event in enumerate(yaml.parse(content, YAML_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to its own anchor {event.anchor!r}")
        if depth > MAX_DEPTH or number > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values, or nests them more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_LETTERS:
            raise ValueError(f"it has a value of more than {MAX_LETTERS} letters")
    return _check_mapping(yaml.load(content, YAML_LOADER))


def read_json_texts(file: Path) -> dict[str, str]:
    """Return the mapping of a JSON file. Raises ValueError unless all of its values are texts."""
    try:
        mapping = _check_mapping(json.loads(read_text(file)))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    for key, value in mapping.items():
        if not isinstance(value, str):
            raise ValueError(f"{key} must be text")
    return mapping


def _check_mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("it must hold a mapping of names to values")
    return value


def check_array(file: Path, max_bytes: int | None = None) -> Header:
    """Return shape and dtype of a .npy file of at most `max_bytes` bytes.

    Raises ValueError unless the file has exactly the bytes that an array of that shape and dtype takes.
    """
    with open_plain(file, max_bytes or total_memory() // MEMORY_DIVISOR) as content:
        return _check_header(content, os.fstat(content.fileno()).st_size)


def check_arrays(file: Path, max_bytes: int | None = None) -> dict[str, Header]:
    """Return shape and dtype of every array of a .npz file of at most `max_bytes` bytes, by name.

    Raises ValueError as `check_array`, and for an archive that unpacks to much more than its own size.
    """
    with open_plain(file, max_bytes or total_memory() // MEMORY_DIVISOR) as content:
        size = os.fstat(content.fileno()).st_size
        # zipfile makes an object for every entry of the directory, which could be millions.
        end = zipfile._EndRecData(content)  # type: ignore[attr-defined]
        if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
            raise ValueError("its directory is too long")
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise ValueError("its arrays are packed in a way that NumPy does not use")
            unpacked_bytes = sum(member.file_size for member in members)
            if unpacked_bytes > max(size, MAX_UNPACKED_BYTES):
                raise ValueError(f"{size} bytes unpack to {unpacked_bytes}")
            headers = {}
            for member in members:
                with archive.open(member) as array:
                    headers[member.filename.removesuffix(".npy")] = _check_header(array, member.file_size)
            return headers


READERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _check_header(content: IO[bytes], size: int) -> Header:
    version = np.lib.format.read_magic(content)
    if version not in READERS:
        raise ValueError(f"it is an array in the form {version}")
    shape, _, dtype = READERS[version](content)
    if math.prod(shape) * dtype.itemsize != size - content.tell():
        raise ValueError(f"its header says {dtype} {shape}, which is not what the file holds")
    return shape, dtype
