"""Arrays as text that the script of a page reads: little-endian bytes in base64."""

import base64
from typing import Any

import numpy as np

from blocks.arrays import Array


def pack_floats(values: Array) -> dict[str, Any]:
    """Pack values as float32, with nan and inf: a picture shows fewer than its seven digits."""
    with np.errstate(over="ignore"):
        return _pack("float32", values, "<f4")


def pack_bytes(values: Array) -> dict[str, Any]:
    """Pack whole numbers from 0 to 255."""
    return _pack("uint8", values, "u1")


def _pack(kind: str, values: Array, dtype: str) -> dict[str, Any]:
    content = base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()
    return {"kind": kind, "shape": list(values.shape), "base64": content}
