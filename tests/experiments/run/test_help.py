"""What `--help` says: every key, once, with its value and what the schema's docstring says of it."""

import re
from dataclasses import dataclass, is_dataclass
from typing import get_type_hints

import pytest

from experiments.run.config import Config, DatasetConfig
from experiments.run.help import describe_keys, meanings
from experiments.run.naming import flatten

GROUPS = [group for group in get_type_hints(Config).values() if is_dataclass(group)]


@pytest.mark.parametrize("schema", [Config, *GROUPS], ids=lambda schema: schema.__name__)
def test_a_docstring_says_something_of_every_key(schema):
    named = {name for name, kind in get_type_hints(schema).items() if not is_dataclass(kind)}
    assert meanings(schema).keys() == named
    assert all(meanings(schema).values())


def test_a_meaning_ends_where_the_next_begins():
    @dataclass
    class Schema:
        """What it is.

        one, two: numbers, see
            below; `three`: so many. four: named by `four`.
        """

        one: int = 1
        two: int = 2
        three: int = 3
        four: int = 4

    numbers = "numbers, see below;"
    assert meanings(Schema) == {
        "one": numbers,
        "two": numbers,
        "three": "so many.",
        "four": "named by `four`.",
    }


def test_help_lists_every_key_with_the_value_that_it_has_here(lab):
    lines = lab.run("--help", "network.depth=7", "dataset=iris").splitlines()
    listed = re.findall(r"^  ([\w.]+)=", "\n".join(lines), flags=re.M)
    assert sorted(listed) == sorted(flatten(Config(dataset=DatasetConfig(name="iris", loader=1))))
    assert (
        "  network.depth=7 (int)                     L, the number of blocks, at least 1; the output block is one of them."
        in lines
    )
    assert any(line.startswith("  dataset.name=iris (str)") for line in lines)
    assert "One of gradient_descent, momentum, nesterov, adam, rmsprop." in " ".join(" ".join(lines).split())


def test_names_of_a_table_stand_behind_the_meaning():
    @dataclass
    class Schema:
        """One. name: of a thing."""

        name: str = "a"

    (line,) = describe_keys(Schema, {"name": "a"}, {"name": ["a", "b"]}).splitlines()
    assert line.split() == ["name=a", "(str)", "of", "a", "thing.", "One", "of", "a,", "b."]
