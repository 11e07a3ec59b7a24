"""What of a trained run becomes MLflow's params, tags and metrics."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from mlflow.entities import Metric
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH

from blocks.arrays import Array, norm
from blocks.history import History, log_spaced
from experiments.record.identity import SURROUNDINGS, trajectory_hash
from experiments.record.view import LOG_RATE, RATIO, norm_keys, quantity_keys
from experiments.run.config import Config, flat
from experiments.run.measure import MEASURES
from experiments.run.stack import STOPPED, Trained

# Up to how many times the first value a metric is drawn: a run that diverges would press all others' curves flat.
# (A gradient that a plateau has made small grows a thousandfold as it leaves it.)
BOUNDS = {"loss": 1e2, "grad_norm": 1e4, "sharpness": 1e4, "preconditioned_sharpness": 1e4, "update_ratio": 1e4}
BOUNDS |= {"example_norm": 1e4, "singular_value": 1e4, "signals": 1e4, "noise_scale": 1e4}
# What a tag may hold in any store of MLflow's.
MOST_LETTERS = 5000


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
    """outcome, where the run diverged or was stopped, the hash of its trajectory, why an instrument lacks a value, by step."""
    tags = {"outcome": trained.outcome, "trajectory": trajectory_hash(trained.history, trained.parameters)}
    if trained.outcome == "diverged":
        tags |= {"diverged_step": str(trained.history.diverged_step), "diverged_block": str(trained.history.diverged_block)}
    if trained.outcome == STOPPED:
        tags |= {"stopped_step": str(trained.history.steps_made), "rung": str(trained.rung)}
    for name, quantity in trained.history.quantities.items():
        if quantity.reasons is not None and quantity.reasons.any():
            missing = zip(quantity.at.tolist(), quantity.reasons.tolist(), strict=True)
            tags[f"{name}_missing"] = "; ".join(f"step {step}: {reason}" for step, reason in missing if reason)[:MOST_LETTERS]
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
    """The points of `series` as MLflow's, from step `since` on; when: step -> milliseconds.

    Finite values alone, and none above BOUNDS times the first one, the largest of all blocks': a chart's axes are those of
    all its runs.
    """
    drawn = series(history, steps, points, blocks)
    first = {"loss": history.loss[:1], "grad_norm": drawn["grad_norm/all"][1][:1]}
    first |= {name: quantity.values[:1].ravel() for name, quantity in history.quantities.items() if name in BOUNDS}
    bounds = {part: BOUNDS[part] * float(np.nanmax(value)) for part, value in first.items() if (value > 0).any()}
    for key, (at, values) in drawn.items():
        bound = bounds.get(key.partition("/")[0], math.inf)
        for step, value in zip(at.tolist(), values.tolist(), strict=True):
            if step >= since and np.isfinite(value) and value <= bound:
                yield Metric(key, value, when(step), step)


def series(history: History, steps: int, points: int, blocks: int | None) -> dict[str, tuple[Array, Array]]:
    """Metric -> its steps and its values, of a training of `steps` steps, at most `points` a metric; step = updates made before.

    loss/batch, grad_norm/W_01 ..., grad_norm/all, and norm_ratio/first_over_last, the norm of block 1 over that of
    block L, at log-spaced steps, the last one before a divergence among them;
    the whole sets' loss/train, loss/validation, accuracy/... or r2/... at the history's evaluations; what instruments have
    measured, sharpness/lambda_01 and so on.

    history: of the steps so far. blocks: at most so many, evenly spaced, first and last among them; None is all.
    """
    shown = log_spaced(steps, points)
    shown = shown[shown < history.loss.shape[-1]]
    if history.diverged_step > 0:
        last = int(history.diverged_step) - 1
        shown = np.append(shown[shown < last], last)
    depth = history.grad_norm.shape[-1]
    found: dict[str, tuple[Array, Array]] = {"loss/batch": (shown, history.loss[shown])}
    for block, key in norm_keys(depth, blocks).items():
        found[key] = shown, history.grad_norm[shown, block]
    norms = history.grad_norm[shown].astype(np.float64)
    found["grad_norm/all"] = shown, norm(np.concatenate([norms, history.grad_norm_b[shown]], axis=-1))
    with np.errstate(all="ignore"):
        found[RATIO] = shown, norms[:, 0] / norms[:, -1]
    for name, values in history.measures.items():
        places = log_spaced(len(values), points)
        found[name] = history.evaluated[places], values[places]
    for name, quantity in history.quantities.items():
        places, values = log_spaced(len(quantity.at), points), quantity.values.reshape(len(quantity.at), -1)
        for index, key in quantity_keys(name, values.shape[-1], blocks).items():
            found[key] = quantity.at[places], values[places, index]
    return found


def summary(history: History) -> dict[str, float]:
    """final/loss_train, best/accuracy_validation and so on: the last and the best of every measure; nan where there is none.

    final/log10_loss_train and final/log10_loss_validation too, where the loss is one that is drawn.
    """
    values = {}
    for name, measured in history.measures.items():
        key = name.replace("/", "_")
        values[f"final/{key}"] = history.final(name)
        finite = measured[np.isfinite(measured)]
        if finite.size:
            values[f"best/{key}"] = float(finite.min() if key.startswith("loss") else finite.max())
    for loss in (measure for measure in MEASURES.values() if measure.is_loss and measure.name in history.measures):
        if 0 < values[loss.metric] <= BOUNDS["loss"] * float(history.loss[0]):
            # The dashboard's colours and parallel axes are linear.
            values[loss.log_metric] = math.log10(values[loss.metric])
    return values
