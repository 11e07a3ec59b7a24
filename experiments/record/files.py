"""The files of a trained run: the artifacts of its MLflow run, or its record on disk while MLflow does not answer."""

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
from experiments.run.data import Task, load_dataset
from experiments.run.environment import uncommitted_diff
from experiments.run.measure import MEASURES
from experiments.run.memory import format_bytes
from experiments.run.stack import TrainedRun, count_parameters, instruments_bytes, steps_of

HISTORY, PARAMETERS, CONFIG, ENVIRONMENT, DIFF = "history.npz", "parameters.npy", "config.yaml", "environment.json", "git.diff"
FILE_NAMES = (HISTORY, PARAMETERS, CONFIG, ENVIRONMENT, DIFF)
# libyaml's dumper is ten times faster.
YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# NumPy's letters for kinds of numbers, and the most bytes of a number.
FLOATS, INTEGERS, UNSIGNED, MAX_ITEM_BYTES = "f", "i", "u", 8
# The most bytes that are read of a diff, and the most letters of an error message about a file.
DIFF_BYTES, MAX_MESSAGE_LETTERS = 2**26, 300
# The most bytes of a record's history, and of its final parameters.
ARRAY_BYTES = 2**28


def write(trained: TrainedRun, folder: Path) -> None:
    """Write the files of a run into the folder.

    They are history.npz and parameters.npy (P,), both without pickle, config.yaml, environment.json, and git.diff where the
    code has uncommitted changes.
    """
    trained.history.save(folder / HISTORY)
    # The array is first saved in memory, since NumPy's own error for a full disk does not say that it is full.
    content = io.BytesIO()
    np.save(content, trained.parameters, allow_pickle=False)
    (folder / PARAMETERS).write_bytes(content.getbuffer())
    (folder / CONFIG).write_text(yaml.dump(asdict(trained.config), Dumper=YAML_DUMPER, sort_keys=False))
    facts = {"threads": str(trained.config.training.threads), "data": load_dataset(trained.config.dataset).digest}
    (folder / ENVIRONMENT).write_text(json.dumps({**trained.environment, **facts}, indent=2))
    if uncommitted_diff():
        (folder / DIFF).write_text(uncommitted_diff(), encoding="utf-8")


def check_recordable(config: Config, task: Task) -> None:
    """Raise UserError where the run's record would be larger than `read` accepts."""
    depth, width, size = config.network.depth, config.network.width, np.dtype(config.dtype).itemsize
    # Each step has the loss and the batch's size, and for each block two norms and the numbers of the instruments.
    history_bytes = steps_of(config, task) * (((2 + len(schedules(config))) * depth + 1) * size + 8) + instruments_bytes(
        config, task
    )
    limit = f"a record has at most {format_bytes(ARRAY_BYTES)}, tracking.enabled=false trains without one"
    if history_bytes > ARRAY_BYTES:
        setting = f"training.epochs is {config.training.epochs} and network.depth {depth}"
        setting += "".join(f", instruments.{name} {schedule}" for name, schedule in schedules(config).items())
        raise UserError(f"{setting}, whose history takes {format_bytes(history_bytes)}: {limit}")
    if (parameter_bytes := size * count_parameters(config, task)) > ARRAY_BYTES:
        setting = f"network.width is {width} and network.depth {depth}"
        raise UserError(f"{setting}, whose final parameters take {format_bytes(parameter_bytes)}: {limit}")


@dataclass(frozen=True, eq=False)
class Files:
    """The content of the files that `write` writes.

    config: plain values, which are not to be trusted, see `run.trust.from_record`. parameters: (P,).
    """

    config: dict[str, Any]
    history: History
    parameters: Array
    environment: dict[str, str]
    diff: str


def read(folder: Path) -> Files:
    """Read the files that `write` has written. Raises UserError where a file is missing, incomplete or invalid.

    Somebody else may have written the files: nothing in them is executed, and all sizes have bounds.
    """
    file = folder
    try:
        file = folder / HISTORY
        _check_numbers(bounded.check_arrays(file, ARRAY_BYTES))
        history = History.load(file)
        _check_shapes(history)
        file = folder / PARAMETERS
        _check_numbers({"parameters": bounded.check_array(file, ARRAY_BYTES)})
        parameters = np.load(file, allow_pickle=False)
        _check_shape("parameters", parameters, parameters.shape[:1], FLOATS)
        file = folder / CONFIG
        # A record from before this key existed is of a native run.
        config = {"machine": "native", **bounded.read_yaml_mapping(file)}
        file = folder / ENVIRONMENT
        environment = bounded.read_json_texts(file)
        file = folder / DIFF
        diff = bounded.read_text(file, DIFF_BYTES) if file.is_symlink() or file.exists() else ""
    except FileNotFoundError:
        raise UserError(f"{file} is not there") from None
    except Exception as error:
        # Any exception: it is not documented what NumPy, zipfile and YAML raise for a file that was made to mislead them.
        message = " ".join(str(error).split())[:MAX_MESSAGE_LETTERS] or type(error).__name__
        raise UserError(f"{file} is damaged: {message}") from None
    return Files(config, history, parameters, environment, diff)


def _check_numbers(headers: dict[str, bounded.Header]) -> None:
    """Raise ValueError unless all arrays hold numbers."""
    for name, (_, dtype) in headers.items():
        if dtype.kind not in "biuf" or dtype.itemsize > MAX_ITEM_BYTES:
            raise ValueError(f"{name} holds {dtype}, it must hold numbers")


def _check_shapes(history: History) -> None:
    """Raise ValueError unless the arrays have the shapes and dtypes of one network's history, see `blocks.history.History`."""
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


def _check_shape(name: str, values: Array, shape: tuple[int, ...], kind: str, upper_bound: float = np.inf) -> None:
    if (
        values.shape != shape
        or values.dtype.kind != kind
        or (kind == INTEGERS and not ((values >= -1) & (values < upper_bound)).all())
    ):
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, or out of range: it must be {shape}")
