"""The README: its commands are run as they stand there, with fewer epochs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.conftest import Lab

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(python -m experiments\..*?)(?: +#.*)?$", README, flags=re.MULTILINE)
# Commands that other tests run: a server that does not end by itself, and a cluster.
ELSEWHERE = {
    "python -m experiments.dashboard": "test_show.py",
    "python -m experiments.train -m hydra.launcher.backend=ray seed=1,2": "test_clusters.py",
}
FEWER = {
    "experiments.train": ["network.width=16"],
    "experiments.trainability": ["map.resolution=8", "map.tile=8"],
}
SEARCH = ["hydra.sweeper.n_trials=3"]
HALVED = ["training.epochs=9", "training.evaluations=9", "network.depth=2", "optimizer.learning_rate=0.01,0.1,0.3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a sweep of two runs, the newest."""
    lab = Lab(tmp_path_factory.mktemp("readme"))
    lab.run("-m", "dataset=iris", "network.depth=2,3", "optimizer.learning_rate=0.1", "training.epochs=2", "network.width=8")
    return lab


def test_readme_has_commands():
    assert len(COMMANDS) > 15
    assert set(ELSEWHERE) <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ELSEWHERE])
def test_the_command_runs(trained, command):
    run_id, other = (run.info.run_id for run in trained.runs()[:2])
    sweep_id = trained.runs("sweep")[0].info.run_id
    typed = command.replace("SWEEP_ID", sweep_id).replace("RUN_ID", run_id, 1).replace("RUN_ID", other)
    _, _, module, *arguments = shlex.split(typed)
    if "--help" not in arguments:
        arguments += FEWER.get(module, [])
        if module == "experiments.train" and not any("training.epochs" in argument for argument in arguments):
            arguments.append("training.epochs=1")
        if any("n_trials" in argument for argument in arguments):
            arguments += SEARCH
        if any("halving" in argument for argument in arguments):
            arguments += HALVED
    trained.run(*arguments, module=module)
    for name in re.findall(r"\S+\.(?:html|gif|csv)", typed):
        assert (trained.folder / name).stat().st_size > 100


def test_a_shell_completes_what_the_readme_installs():
    (install,) = re.findall(r"`(eval [^`]*)`", README)
    typed = 'COMP_LINE="depth-laboratory -m experiment=van"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2'
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = f'{install}; {typed}; hydra_bash_completion; echo "${{COMPREPLY[@]}}"'
    completed = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["experiment=vanishing_tanh"]
