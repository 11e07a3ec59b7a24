"""What tells runs apart: the experiment they are, and the bits they came to."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from blocks.arrays import Array, quiet
from blocks.history import History
from experiments.run.config import Config, InstrumentsConfig
from experiments.run.environment import version_of

# (job, fingerprint) -> (value of the measure, nan where that is not finite, and outcome)
Finished = dict[tuple[int, str], tuple[float, str]]
# Where the record goes, and what becomes of an earlier one: not what is trained.
SURROUNDINGS = ("tracking", "sweep")
LATER_INSTRUMENTS = ("signals", "parameters", "singular_value", "preconditioned_sharpness")
# Keys that came later, with what every run had before: left out there, so that an older run keeps its fingerprint.
LATER: dict[str, Any] = {
    "network.kind": "plain",
    "network.parametrization": "standard",
    "network.gamma": None,
    "optimizer.block_rates": None,
    **{f"instruments.{name}": None for name in LATER_INSTRUMENTS},
    "instruments": {key: value for key, value in asdict(InstrumentsConfig()).items() if key not in LATER_INSTRUMENTS},
    "machine": "native",
}


def fingerprint(config: Config, digest: str, package: str | None = None) -> str:
    """Equal for two runs that are the same experiment: sha256 over what is trained, on which data, by which version.

    digest: of the data set. package: the version, None is this one.
    """
    trained = {key: value for key, value in asdict(config).items() if key not in SURROUNDINGS}
    for key, before in LATER.items():
        *groups, last = key.split(".")
        within = trained[groups[0]] if groups else trained
        if within[last] == before:
            del within[last]
    return _sha256(json.dumps([trained, digest, package or version_of("depth-laboratory")], sort_keys=True).encode())


def fingerprint_of_sweep(runs: Iterable[str]) -> str:
    """Equal for two sweeps of the same runs in the same order: sha256 over their fingerprints."""
    return _sha256("\n".join(runs).encode())


def trajectory_hash(history: History, parameters: Array) -> str:
    """Equal for two trainings with the same bits: sha256 over every step's loss and norms, and the final parameters.

    The bytes are those of loss (T,), grad_norm (T, L), grad_norm_b (T, L), parameters (P,), one after the other: before
    each its shape as ASCII, `(T, L)`, then its values in C order, little-endian, every nan the quiet one.
    """
    digest = hashlib.sha256()
    for values in (history.loss, history.grad_norm, history.grad_norm_b, parameters):
        digest.update(str(values.shape).encode())
        ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        digest.update(quiet(ordered).tobytes())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
