"""python tests/published/bits.py: train what bits.json publishes, and add to it what comes out and is not in it yet.

A run has one trajectory, on every machine; two where its float32 functions are the C library's, which glibc 2.41 rounds
otherwise (expm1 of elu, log1p of softplus). Where the engine's own bits have changed, the file is deleted first.
"""

import json
import sys
from itertools import product
from pathlib import Path

import yaml

from experiments.run.machine import PORTABLE_PREFIX, portable_variables

FILE = Path(__file__).with_name("bits.json")
SMALL = "network.depth=5 network.width=16 training.epochs=2 optimizer.learning_rate=0.02"


def runs() -> dict[str, list[str]]:
    """The overrides of every run, by the name of its group."""
    from blocks import ACTIVATIONS, KINDS, OPTIMIZERS
    from experiments.run.composition import CONF

    params = yaml.safe_load(Path(CONF, "experiment", "depth_by_learning_rate.yaml").read_text())["hydra"]["sweeper"]["params"]
    axes = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    tables = {"network.kind": KINDS, "network.activation": ACTIVATIONS, "optimizer.name": OPTIMIZERS}
    return {
        "default sweep": [" ".join(point) for point in product(*axes)],
        "every kind, activation and optimizer": [f"{SMALL} {key}={name}" for key, table in tables.items() for name in table],
    }


def main() -> None:
    """Write the file."""
    from experiments.published.trainings import run_trajectory_hash

    published = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name, group in runs().items():
        for overrides in group:
            known = published.setdefault(name, {}).setdefault(overrides, [])
            if (made := run_trajectory_hash(overrides)) not in known:
                known.append(made)
    FILE.write_text(json.dumps(published, indent=1) + "\n")


if __name__ == "__main__":
    if not portable_variables():
        sys.exit(f"start it with {PORTABLE_PREFIX}")
    main()
