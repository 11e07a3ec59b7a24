"""depth-laboratory [-m] [KEY=VALUE ...]: `python -m experiments.train` by a name of its own, whose keys a shell completes.

eval "$(depth-laboratory --shell-completion install=bash)"
"""

import os
import sys

COMPLETION = ("--shell-completion", "-sc")


def main() -> None:
    """The command."""
    if any(option in sys.argv for option in COMPLETION):
        # Hydra completes the command by whose name it is called.
        from experiments.train import main as train

        train()
    else:
        os.execv(sys.executable, [sys.executable, "-m", "experiments.train", *sys.argv[1:]])
