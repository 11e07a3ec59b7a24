"""What of a trained run becomes MLflow's params, tags and metrics."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from mlflow.entities import Metric
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH

from blocks.arrays import Array
from blocks.history import History, evenly_spaced, log_spaced
from experiments.record.identity import SURROUNDINGS, trajectory_hash
from experiments.record.view import LOG_RATE, norm_key, quantity_key
from experiments.run.config import Config, flat
from experiments.run.stack import Trained


def params(config: Config) -> dict[str, Any]:
    """What is trained, by the keys users type, and the logarithm that the dashboard's linear axes need."""
    trained = {key: value for key, value in flat(config).items() if key.partition(".")[0] not in SURROUNDINGS}
    return {**trained, LOG_RATE: round(math.log10(config.optimizer.learning_rate), 6)}


def texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow takes them: what a key may not have in it is `_`, a value that is too long ends with `...`."""
    kept = {re.sub(r"[^\w.: -]", "_", key)[:MAX_ENTITY_KEY_LENGTH]: str(value) for key, value in params.items()}
    most = MAX_PARAM_VAL_LENGTH
    return {key: value if len(value) <= most else f"{value[: most - 3]}..." for key, value in kept.items()}


def outcome_tags(trained: Trained) -> dict[str, str]:
    """outcome, where the run diverged, the hash of its trajectory."""
    tags = {"outcome": trained.outcome, "trajectory": trajectory_hash(trained.history, trained.parameters)}
    if trained.outcome == "diverged":
        tags |= {"diverged_step": str(trained.history.diverged_step), "diverged_block": str(trained.history.diverged_block)}
    return tags


def metrics(trained: Trained, points: int, blocks: int | None, since: int = 0) -> Iterator[Metric]:
    """A run's metrics: its curves from step `since` on, then final/... and best/..., one value each."""
    history = trained.history
    steps = history.loss.shape[-1]

    def when(step: int) -> int:
        return int(1000 * (trained.started + (trained.ended - trained.started) * step / steps))

    yield from curves(history, steps, points, blocks, since, when)
    for key, value in summary(history).items():
        if np.isfinite(value):
            yield Metric(key, value, when(steps), steps)


def curves(
    history: History, steps: int, points: int, blocks: int | None, since: int, when: Callable[[int], int]
) -> Iterator[Metric]:
    """Points of a training of `steps` steps, at most `points` a key, finite values alone; step = updates made before.

    loss/batch, grad_norm/W_01 ... and grad_norm/all at log-spaced steps, the last one before a divergence among them;
    the whole sets' loss/train, loss/validation, accuracy/... or r2/... at the history's evaluations; what instruments have
    measured, sharpness/lambda_01 and so on.

    history: of the steps so far. blocks: at most so many, evenly spaced, first and last among them; None is all.
    since: the step from which on. when: step -> milliseconds.
    """
    shown = log_spaced(steps, points)
    shown = shown[shown < history.loss.shape[-1]]
    if history.diverged_step > 0:
        last = int(history.diverged_step) - 1
        shown = np.append(shown[shown < last], last)
    depth = history.grad_norm.shape[-1]
    series: dict[str, tuple[Array, Array]] = {"loss/batch": (shown, history.loss[shown])}
    for block in evenly_spaced(depth, blocks or depth):
        series[norm_key("W", block, depth)] = shown, history.grad_norm[shown, block]
    squares = np.square(np.float64(history.grad_norm[shown])) + np.square(np.float64(history.grad_norm_b[shown]))
    series["grad_norm/all"] = shown, np.sqrt(squares.sum(axis=-1))
    for name, values in history.measures.items():
        kept = log_spaced(len(values), points)
        series[name] = history.evaluated[kept], values[kept]
    for name, quantity in history.quantities.items():
        kept, count = log_spaced(len(quantity.at), points), quantity.values.shape[-1]
        for index in evenly_spaced(count, blocks or count):
            series[quantity_key(name, index, count)] = quantity.at[kept], quantity.values[kept, index]
    for key, (at, values) in series.items():
        for step, value in zip(at.tolist(), values.tolist(), strict=True):
            if step >= since and np.isfinite(value):
                yield Metric(key, value, when(step), step)


def summary(history: History) -> dict[str, float]:
    """final/loss_train, best/accuracy_validation and so on: the last and the best of every measure; nan where there is none."""
    values = {}
    for name, measured in history.measures.items():
        key = name.replace("/", "_")
        values[f"final/{key}"] = float(measured[-1])
        finite = measured[np.isfinite(measured)]
        if finite.size:
            values[f"best/{key}"] = float(finite.min() if key.startswith("loss") else finite.max())
    return values
