"""The list of keys in `--help`: every key with its type, its value, and its meaning from the schema's docstring."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

WIDTH = 118
# The width of the column with key, value and type; the meaning follows. Both widths are in characters.
KEY_WIDTH = 44


def meanings(schema: type) -> dict[str, str]:
    """Return the meaning of every field of a dataclass: the text after `field: ` or `field, other: ` in its docstring."""
    _, *parts = _docstring_parts(schema)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: meaning.strip() for names_text, meaning in pairs for name in names_text.split(", ")}


def _docstring_parts(schema: type) -> list[str]:
    """Return the docstring's text before the first field, and then the names of fields and the text about them in turn."""
    names = "|".join(field.name for field in fields(schema))
    text = " ".join((inspect.getdoc(schema) or "").split())
    return re.split(rf"(?<![\w.])`?((?:{names})(?:, (?:{names}))*)`?: ", text)


def describe_keys(schema: type, values: Mapping[str, Any], tables: Mapping[str, Sequence[str]]) -> str:
    """Return a paragraph for every group of a schema, with its keys as users type them, their types, values and meanings.

    values: a composed config. tables: the names that are allowed for a key, by key.
    """
    return "\n".join(_lines(schema, values, tables, ""))


def _lines(schema: type, values: Mapping[str, Any], tables: Mapping[str, Sequence[str]], path: str) -> Iterator[str]:
    meanings_by_name = meanings(schema)
    for field in fields(schema):
        key, value = f"{path}{field.name}", values[field.name]
        if isinstance(field.type, type) and is_dataclass(field.type):
            continue
        names = f" One of {', '.join(tables[key])}." if key in tables else ""
        type_name = field.type.__name__ if isinstance(field.type, type) else str(field.type).replace(" | None", ", null")
        type_name = type_name.replace("dict[str, typing.Any]", "dict")
        yield from _key_lines(f"  {key}={_value_text(value)} ({type_name})", meanings_by_name[field.name] + names)
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield ""
            yield from textwrap.wrap(f"{field.name}: {_docstring_parts(field.type)[0]}", WIDTH)
            yield from _lines(field.type, values[field.name], tables, f"{path}{field.name}.")


def _key_lines(key_text: str, meaning: str) -> Iterator[str]:
    lines = textwrap.wrap(meaning, WIDTH - KEY_WIDTH, break_on_hyphens=False) or [""]
    if len(key_text) >= KEY_WIDTH:
        yield key_text
        key_text = ""
    yield f"{key_text:<{KEY_WIDTH}}{lines[0]}"
    yield from (f"{'':{KEY_WIDTH}}{line}" for line in lines[1:])


def _value_text(value: Any) -> str:
    """Return the value as a user types it; `{...}` stands for several values."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{...}" if isinstance(value, DictConfig | ListConfig) else str(value)
