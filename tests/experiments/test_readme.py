"""What stands in the README: its commands are run, with fewer epochs, its Python too, and its code is the files' code."""

import re
from pathlib import Path

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = [block for block in re.split(r"\n(?! {4}|\n)", README) if block.startswith("    ") or "\n    " in block]
COMMANDS = [command.strip() for command in re.findall(r"^ {4}(python -m experiments\..*?)(?: +#.*)?$", README, flags=re.M)]
# What other tests run: a server, a cluster, and what takes minutes.
ELSEWHERE = {
    "python -m experiments.dashboard": "test_show.py opens it in a browser",
    "python -m experiments.train -m hydra.launcher.backend=ray": "test_clusters.py",
    "python -m experiments.verify --only stable_rate": "test_verify.py",
}
