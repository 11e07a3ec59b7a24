"""Files that somebody else may have written: only plain files are opened, nothing is read that has no bound.

Every function raises ValueError in words that can follow `FILE is damaged: `, OSError where the file cannot be opened, and
what PyYAML, zipfile and NumPy raise for a file that is none of theirs.
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

# A config has some 60 values in 2 KB; one with a rate for each of thousands of blocks must do.
BYTES, VALUES, NESTED, LETTERS = 2**20, 20_000, 20, 10_000
# A directory of so many bytes lists thousands of arrays.
DIRECTORY_BYTES = 2**20
# What a small file may unpack to.
UNPACKED = 2**26
# The share of the machine's memory that arrays of one file may take where nothing else bounds them.
SHARE = 4
# libyaml's are ten times faster.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Header = tuple[tuple[int, ...], np.dtype]


def open_plain(file: Path, most: int) -> IO[bytes]:
    """The file, open for reading, of `most` bytes at most; no link, no FIFO, no device, no folder."""
    if file.is_symlink():
        raise ValueError("it is a link, it must be a file")
    # A FIFO that nobody writes to would keep a plain `open` waiting.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    status = os.fstat(descriptor)
    fault = "it is no plain file" if not stat.S_ISREG(status.st_mode) else ""
    if status.st_size > most:
        fault = f"it has {status.st_size} bytes, {most} at most are read"
    if fault:
        os.close(descriptor)
        raise ValueError(fault)
    return os.fdopen(descriptor, "rb")


def text(file: Path, most: int = BYTES) -> str:
    """The file's text, UTF-8."""
    with open_plain(file, most) as content:
        return content.read(most).decode()


def yaml_mapping(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an anchor, which may hold itself or multiply, is refused."""
    content = text(file)
    depth = 0
    for number, event in enumerate(yaml.parse(content, YAML_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to its own anchor {event.anchor!r}")
        if depth > NESTED or number > VALUES:
            raise ValueError(f"it has more than {VALUES} values, or nests them more than {NESTED} deep")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LETTERS:
            raise ValueError(f"it has a value of more than {LETTERS} letters")
    return _mapping(yaml.load(content, YAML_LOADER))


def json_texts(file: Path) -> dict[str, str]:
    """The mapping of text to text that a JSON file holds."""
    try:
        found = _mapping(json.loads(text(file)))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    for key, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"{key} must be text")
    return found


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("it must hold a mapping of names to values")
    return value


def check_array(file: Path, most: int | None = None) -> Header:
    """Shape and dtype of a .npy of `most` bytes at most, once it is sure that it holds exactly the bytes that these take."""
    with open_plain(file, most or total_memory() // SHARE) as content:
        return _header(content, os.fstat(content.fileno()).st_size)


def check_arrays(file: Path, most: int | None = None) -> dict[str, Header]:
    """Shape and dtype of every array of a .npz, likewise; one that unpacks to much more than its own size is refused."""
    with open_plain(file, most or total_memory() // SHARE) as content:
        size = os.fstat(content.fileno()).st_size
        # zipfile would make an object of every entry of the directory, millions of them.
        end = zipfile._EndRecData(content)  # type: ignore[attr-defined]
        if end and end[zipfile._ECD_SIZE] > DIRECTORY_BYTES:  # type: ignore[attr-defined]
            raise ValueError("its directory is too long")
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise ValueError("its arrays are packed in a way that NumPy does not use")
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(size, UNPACKED):
                raise ValueError(f"{size} bytes unpack to {unpacked}")
            headers = {}
            for member in members:
                with archive.open(member) as array:
                    headers[member.filename.removesuffix(".npy")] = _header(array, member.file_size)
            return headers


READERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _header(content: IO[bytes], size: int) -> Header:
    version = np.lib.format.read_magic(content)
    if version not in READERS:
        raise ValueError(f"it is an array in the form {version}")
    shape, _, dtype = READERS[version](content)
    if math.prod(shape) * dtype.itemsize != size - content.tell():
        raise ValueError(f"its header says {dtype} {shape}, which is not what the file holds")
    return shape, dtype
