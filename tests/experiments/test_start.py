"""The command starts without what it does not need yet."""

import subprocess
import sys

import pytest

COMMAND = """
import runpy, sys
try:
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
finally:
    print("imported:", *sorted({"mlflow", "sklearn", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [
        pytest.param(["--help"], "", id="help needs nothing"),
        pytest.param(["optimizer.learning_rate=-1"], "", id="nor does a mistake"),
        pytest.param(["tracking.enabled=false", "training.epochs=1"], "sklearn", id="a run that is not tracked loads its data"),
    ],
)
def test_nothing_is_imported_before_it_is_needed(arguments, imported, tmp_path):
    process = subprocess.run([sys.executable, "-c", COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert [line.split()[1:] for line in process.stderr.splitlines() if line.startswith("imported:")] == [imported.split()]
