"""Arrays as JSON for the script of a page. The numbers are written as little-endian bytes in base64."""

import base64
from typing import Any

import numpy as np

from blocks.arrays import Array


def pack_floats(values: Array) -> dict[str, Any]:
    """Return values as float32, see `_pack`. A picture shows fewer digits than its seven. nan and inf are kept."""
    with np.errstate(over="ignore"):
        return _pack("float32", values, "<f4")


def pack_bytes(values: Array) -> dict[str, Any]:
    """Return whole numbers from 0 to 255 as bytes, see `_pack`."""
    return _pack("uint8", values, "u1")


def _pack(kind: str, values: Array, dtype: str) -> dict[str, Any]:
    """Return a dict with `kind`, `shape`, and the bytes as text in `base64`. kind: the script's name for NumPy's `dtype`."""
    content = base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()
    return {"kind": kind, "shape": list(values.shape), "base64": content}
