"""Arrays as text that a page's script reads back: little-endian bytes in base64."""

import base64
from typing import Any

import numpy as np

from blocks.arrays import Array


def floats(values: Array) -> dict[str, Any]:
    """As float32, nan and inf among them: six digits are more than a picture shows."""
    with np.errstate(over="ignore"):
        return _packed("float32", values, "<f4")


def bytes_of(values: Array) -> dict[str, Any]:
    """Whole numbers from 0 to 255."""
    return _packed("uint8", values, "u1")


def _packed(kind: str, values: Array, dtype: str) -> dict[str, Any]:
    content = base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()
    return {"kind": kind, "shape": list(values.shape), "base64": content}
