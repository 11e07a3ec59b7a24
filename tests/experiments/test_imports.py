"""No module needs itself: imports go one way, those inside functions and for the types alone among them."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What stands on the path: the plugins are a package of Hydra's.
TOPS = {"blocks": ROOT, "experiments": ROOT, "hydra_plugins": ROOT / "experiments" / "plugins"}


def modules():
    """name -> file"""
    files = {}
    for top, folder in TOPS.items():
        for file in (folder / top).rglob("*.py"):
            name = ".".join(file.relative_to(folder).with_suffix("").parts)
            files[name.removesuffix(".__init__")] = file
    return files


def imported(source, names):
    """Those of the modules that a source imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "written relative to its folder"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in names else node.module for name in whole}
    return found & set(names)


def circle(sources):
    """A circle of modules, each of which imports the one before it; None where there is none."""
    try:
        # A command that runs as __main__ may import itself under its own name: those are two modules.
        TopologicalSorter({name: imported(source, sources) - {name} for name, source in sources.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_imports_go_round_in_a_circle():
    sources = {name: file.read_text(encoding="utf-8") for name, file in modules().items()}
    assert {"blocks.block", "experiments.train", "hydra_plugins.depth_laboratory.launcher"} <= sources.keys()
    assert circle(sources) is None
    for name, source in sources.items():
        if name.startswith("blocks"):
            assert not [above for above in imported(source, sources) if not above.startswith("blocks")]


@pytest.mark.parametrize("back", ["import a.b", "from a import b", "from a.b import x", "def f():\n    from a.b import x"])
def test_a_circle_is_seen(back):
    assert circle({"a": "", "a.b": "from c import y", "c": back}) is not None
    assert circle({"a": "", "a.b": "", "c": back}) is None
