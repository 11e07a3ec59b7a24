"""What `--help` says of every key: its type, its value and its meaning, which stands in the schema's docstrings alone."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

WIDTH = 118
# Columns of a key with its type and value, and of what follows.
KEY = 44


def meanings(schema: type) -> dict[str, str]:
    """Field -> what the docstring of a dataclass says of it, behind `field: ` or `field, other: `."""
    names = "|".join(field.name for field in fields(schema))
    text = " ".join((inspect.getdoc(schema) or "").split())
    _, *parts = re.split(rf"(?<![\w.])`?((?:{names})(?:, (?:{names}))*)`?: ", text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: meaning.strip() for listed, meaning in pairs for name in listed.split(", ")}


def keys(schema: type, values: Mapping[str, Any], tables: Mapping[str, Sequence[str]]) -> str:
    """A paragraph for every group of a schema: its keys as users type them, with type, value and meaning.

    values: of a composed config. tables: key -> the names that it may have.
    """
    return "\n".join(_lines(schema, values, tables, ""))


def _lines(schema: type, values: Mapping[str, Any], tables: Mapping[str, Sequence[str]], path: str) -> Iterator[str]:
    meaning_of = meanings(schema)
    for field in fields(schema):
        key, value = f"{path}{field.name}", values[field.name]
        if isinstance(field.type, type) and is_dataclass(field.type):
            continue
        names = f" One of {', '.join(tables[key])}." if key in tables else ""
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type).replace(" | None", ", null")
        yield from _entry(f"  {key}={_text(value)} ({kind})", meaning_of[field.name] + names)
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield f"\n{field.name}"
            yield from _lines(field.type, values[field.name], tables, f"{path}{field.name}.")


def _entry(left: str, right: str) -> Iterator[str]:
    lines = textwrap.wrap(right, WIDTH - KEY, break_on_hyphens=False) or [""]
    if len(left) >= KEY:
        yield left
        left = ""
    yield f"{left:<{KEY}}{lines[0]}"
    yield from (f"{'':{KEY}}{line}" for line in lines[1:])


def _text(value: Any) -> str:
    """The value as it is typed; of several values, that there are some."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{...}" if isinstance(value, DictConfig | ListConfig) else str(value)
