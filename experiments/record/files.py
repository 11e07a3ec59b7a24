"""A trained run as files: what MLflow keeps as its artifacts, and what waits on disk where MLflow does not answer."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from blocks.arrays import Array, choice
from blocks.history import History
from blocks.measure.instruments import INSTRUMENTS
from blocks.measure.signals import BINS, NUMBERS
from experiments.run import bounded
from experiments.run.config import Config, UserError, schedules
from experiments.run.data import Task, load
from experiments.run.environment import uncommitted_diff
from experiments.run.measure import MEASURES
from experiments.run.memory import format_bytes
from experiments.run.stack import Trained, count_parameters, instruments_bytes, steps_of

HISTORY, PARAMETERS, CONFIG, ENVIRONMENT, DIFF = "history.npz", "parameters.npy", "config.yaml", "environment.json", "git.diff"
NAMES = (HISTORY, PARAMETERS, CONFIG, ENVIRONMENT, DIFF)
# libyaml's is ten times faster.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# NumPy's letters for kinds of numbers; the bytes of the largest number.
FLOATS, INTEGERS, UNSIGNED, LARGEST = "f", "i", "u", 8
# At most so much is read of a diff, and said of what is wrong with a file.
DIFF_BYTES, LINE = 2**26, 300
# What a record's history, or its final parameters, may take.
ARRAY_BYTES = 2**28


def write(trained: Trained, folder: Path) -> None:
    """history.npz and parameters.npy (P,), without pickle; config.yaml, environment.json and, where there is one, git.diff."""
    trained.history.save(folder / HISTORY)
    # NumPy's own error for a disk that is full does not say so.
    content = io.BytesIO()
    np.save(content, trained.parameters, allow_pickle=False)
    (folder / PARAMETERS).write_bytes(content.getbuffer())
    (folder / CONFIG).write_text(yaml.dump(asdict(trained.config), Dumper=DUMPER, sort_keys=False))
    own = {"threads": str(trained.config.training.threads), "data": load(trained.config.dataset).digest}
    (folder / ENVIRONMENT).write_text(json.dumps({**trained.environment, **own}, indent=2))
    if uncommitted_diff():
        (folder / DIFF).write_text(uncommitted_diff(), encoding="utf-8")


def check_recordable(config: Config, of: Task) -> None:
    """Raise UserError where the run's record would be larger than what is read of one."""
    depth, width, size = config.network.depth, config.network.width, np.dtype(config.dtype).itemsize
    # Of every step the loss, the batch's size, and of every block two norms and what the instruments have measured.
    history = steps_of(config, of) * (((2 + len(schedules(config))) * depth + 1) * size + 8) + instruments_bytes(config, of)
    at_most = f"a record has at most {format_bytes(ARRAY_BYTES)}, tracking.enabled=false trains without one"
    if history > ARRAY_BYTES:
        asked = f"training.epochs is {config.training.epochs} and network.depth {depth}"
        asked += "".join(f", instruments.{name} {schedule}" for name, schedule in schedules(config).items())
        raise UserError(f"{asked}, whose history takes {format_bytes(history)}: {at_most}")
    if (parameters := size * count_parameters(config, of)) > ARRAY_BYTES:
        asked = f"network.width is {width} and network.depth {depth}"
        raise UserError(f"{asked}, whose final parameters take {format_bytes(parameters)}: {at_most}")


@dataclass(frozen=True, eq=False)
class Files:
    """What `write` wrote. config: as plain values, not to be trusted: see `run.trust.from_record`."""

    config: dict[str, Any]
    history: History
    parameters: Array
    environment: dict[str, str]
    diff: str


def read(folder: Path) -> Files:
    """What `write` wrote; raises UserError where a file is missing, cut off or not what it should be.

    The files may be a stranger's: nothing in them is run, and what is read of them has bounds.
    """
    at = folder
    try:
        at = folder / HISTORY
        _check_numbers(bounded.check_arrays(at, ARRAY_BYTES))
        history = History.load(at)
        _check_shapes(history)
        at = folder / PARAMETERS
        _check_numbers({"parameters": bounded.check_array(at, ARRAY_BYTES)})
        parameters = np.load(at, allow_pickle=False)
        _check_shape("parameters", parameters, parameters.shape[:1], FLOATS)
        at = folder / CONFIG
        # Before there was a choice, a run had this.
        config = {"machine": "native", **bounded.read_yaml_mapping(at)}
        at = folder / ENVIRONMENT
        environment = bounded.read_json_texts(at)
        at = folder / DIFF
        diff = bounded.read_text(at, DIFF_BYTES) if at.is_symlink() or at.exists() else ""
    except FileNotFoundError:
        raise UserError(f"{at} is not there") from None
    except Exception as error:
        # What NumPy, zipfile and YAML raise for a file that is made to mislead them is not written down.
        told = " ".join(str(error).split())[:LINE] or type(error).__name__
        raise UserError(f"{at} is damaged: {told}") from None
    return Files(config, history, parameters, environment, diff)


def _check_numbers(headers: dict[str, bounded.Header]) -> None:
    """Raise ValueError for arrays of anything but numbers."""
    for name, (_, dtype) in headers.items():
        if dtype.kind not in "biuf" or dtype.itemsize > LARGEST:
            raise ValueError(f"{name} holds {dtype}, it must hold numbers")


def _check_shapes(history: History) -> None:
    """Raise ValueError unless the arrays fit each other and are those of one network, see `blocks.history.History`."""
    (steps, depth), (evaluations,) = history.grad_norm.shape, history.evaluated.shape
    if min(steps, depth, evaluations, history.steps_an_epoch) < 1:
        raise ValueError("it has no step, no block or no evaluation")
    _check_shape("loss", history.loss, (steps,), FLOATS)
    _check_shape("grad_norm", history.grad_norm, (steps, depth), FLOATS)
    _check_shape("grad_norm_b", history.grad_norm_b, (steps, depth), FLOATS)
    for name, values in history.measures.items():
        choice("the measure", name, MEASURES)
        _check_shape(name, values, (evaluations,), FLOATS)
    for name, quantity in history.quantities.items():
        choice("the instrument", name, INSTRUMENTS)
        _check_shape(f"{name}'s steps", quantity.at, quantity.at.shape[:1], INTEGERS, steps)
        numbers = (len(NUMBERS), depth) if name == "signals" else quantity.values.shape[1:2]
        _check_shape(name, quantity.values, (len(quantity.at), *numbers), FLOATS)
        if set(quantity.histograms) != (set(BINS) if name == "signals" else set()):
            raise ValueError(f"{name} has histograms of {sorted(quantity.histograms)}")
        for symbol, histogram in quantity.histograms.items():
            edges = histogram.edges
            _check_shape(f"{symbol}'s edges", edges, edges.shape[:1], FLOATS)
            _check_shape(f"{symbol}'s counts", histogram.counts, (len(quantity.at), depth, len(edges) - 1), UNSIGNED)
            if not (np.diff(edges) > 0).all():
                raise ValueError(f"{symbol}'s edges do not rise")
    _check_shape("batch_sizes", history.batch_sizes, (steps,), INTEGERS)
    _check_shape("evaluated", history.evaluated, (evaluations,), INTEGERS, steps + 1)
    _check_shape("diverged_step", history.diverged_step, (), INTEGERS, steps + 1)
    _check_shape("diverged_block", history.diverged_block, (), INTEGERS, depth + 1)


def _check_shape(name: str, values: Array, shape: tuple[int, ...], kind: str, below: float = np.inf) -> None:
    if values.shape != shape or values.dtype.kind != kind or (kind == INTEGERS and not ((values >= -1) & (values < below)).all()):
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, or out of range: it must be {shape}")
