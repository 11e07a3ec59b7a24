"""The identity of runs: the fingerprint of what is trained, and the hash of the bits that came of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from blocks.arrays import Array, quiet
from blocks.history import History
from experiments.run.config import Config, InstrumentsConfig
from experiments.run.environment import package_version

# (job, fingerprint) -> (value of the measure, nan where that is not finite, and outcome)
FinishedJobs = dict[tuple[int, str], tuple[float, str]]
# The config groups of the record. They do not change what is trained.
RECORD_GROUPS = ("tracking", "sweep")
ADDED_INSTRUMENTS = ("signals", "parameters", "singular_value", "preconditioned_sharpness", "noise_scale")
# Keys that were added to the config later -> the value that every run had before. A fingerprint leaves such a value out, so that
# older runs keep their fingerprints.
ADDED_KEYS: dict[str, Any] = {
    "network.kind": "plain",
    "network.parametrization": "standard",
    "network.gamma": None,
    "optimizer.block_rates": None,
    "optimizer.warmup": 0.0,
    **{f"instruments.{name}": None for name in ADDED_INSTRUMENTS},
    "instruments": {key: value for key, value in asdict(InstrumentsConfig()).items() if key not in ADDED_INSTRUMENTS},
    "machine": "native",
}


def fingerprint(config: Config, digest: str, package: str | None = None) -> str:
    """Return the sha256 of a run's config without the record's groups, its data and its version.

    It is equal for two runs that train the same. digest: of the data set. package: the version of this package, None is this one.
    """
    values = {key: value for key, value in asdict(config).items() if key not in RECORD_GROUPS}
    for key, earlier_value in ADDED_KEYS.items():
        *groups, name = key.split(".")
        group = values[groups[0]] if groups else values
        if group[name] == earlier_value:
            del group[name]
    return _sha256(json.dumps([values, digest, package or package_version("depth-laboratory")], sort_keys=True).encode())


def sweep_fingerprint(runs: Iterable[str]) -> str:
    """Return the sha256 of the runs' fingerprints. It is equal for two sweeps with the same runs in the same order."""
    return _sha256("\n".join(runs).encode())


def trajectory_hash(history: History, parameters: Array) -> str:
    """Return the sha256 of every step's loss and norms, and of the final parameters. It is equal for equal bits.

    The hashed bytes are those of loss (T,), grad_norm (T, L), grad_norm_b (T, L) and parameters (P,), one after the other. Each
    array is its shape as ASCII, such as `(T, L)`, and then its values in C order, little-endian, every nan as the quiet nan.
    """
    digest = hashlib.sha256()
    for values in (history.loss, history.grad_norm, history.grad_norm_b, parameters):
        digest.update(str(values.shape).encode())
        little_endian = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        digest.update(quiet(little_endian).tobytes())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
