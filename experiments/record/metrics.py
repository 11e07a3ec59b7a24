"""The MLflow params, tags and metrics of a trained run."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from mlflow.entities import Metric
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH

from blocks.arrays import Array, norm
from blocks.history import History, log_spaced
from experiments.record.identity import RECORD_GROUPS, trajectory_hash
from experiments.record.view import LOG_RATE, RATIO, norm_keys, quantity_keys
from experiments.run.config import Config
from experiments.run.measure import MEASURES
from experiments.run.naming import flatten
from experiments.run.stack import STOPPED, TrainedRun

# A metric's value is logged up to so many times its first value: otherwise a run that diverges would flatten all other curves.
# (A gradient that a plateau has made small grows a thousandfold as it leaves it.)
BOUNDS = {"loss": 1e2, "grad_norm": 1e4, "sharpness": 1e4, "preconditioned_sharpness": 1e4, "update_ratio": 1e4}
BOUNDS |= {"example_norm": 1e4, "singular_value": 1e4, "signals": 1e4, "noise_scale": 1e4}
# The most letters that a tag may have in every kind of MLflow store.
MAX_TAG_LETTERS = 5000


def params(config: Config) -> dict[str, Any]:
    """Return the run's params: the config's values by their keys, without the record's groups, and the rate's logarithm.

    The dashboard needs the logarithm, since its axes are linear.
    """
    values = {key: value for key, value in flatten(config).items() if key.partition(".")[0] not in RECORD_GROUPS}
    return {**values, LOG_RATE: round(math.log10(config.optimizer.learning_rate), 6)}


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Return params as MLflow accepts them: `_` replaces invalid characters of a key, and `...` ends a value that is cut."""
    texts = {re.sub(r"[^\w.: -]", "_", key)[:MAX_ENTITY_KEY_LENGTH]: str(value) for key, value in params.items()}
    max_length = MAX_PARAM_VAL_LENGTH
    return {key: value if len(value) <= max_length else f"{value[: max_length - 3]}..." for key, value in texts.items()}


def outcome_tags(trained: TrainedRun) -> dict[str, str]:
    """Return the tags of a run's end: its outcome, the hash of its trajectory, and the steps at which an instrument failed.

    A run that diverged has the step and the block, a run that was stopped the step and the rung.
    """
    tags = {"outcome": trained.outcome, "trajectory": trajectory_hash(trained.history, trained.parameters)}
    if trained.outcome == "diverged":
        tags |= {"diverged_step": str(trained.history.diverged_step), "diverged_block": str(trained.history.diverged_block)}
    if trained.outcome == STOPPED:
        tags |= {"stopped_step": str(trained.history.steps_made), "rung": str(trained.rung)}
    for name, quantity in trained.history.quantities.items():
        if quantity.reasons is not None and quantity.reasons.any():
            steps_and_reasons = zip(quantity.at.tolist(), quantity.reasons.tolist(), strict=True)
            tags[f"{name}_missing"] = "; ".join(f"step {step}: {reason}" for step, reason in steps_and_reasons if reason)[
                :MAX_TAG_LETTERS
            ]
    return tags


def metrics(trained: TrainedRun, points: int, blocks: int | None, first_step: int = 0) -> Iterator[Metric]:
    """Yield a run's metrics: its curves from `first_step` on, see `curves`, and then its summary, one value for each metric."""
    history = trained.history
    steps = history.loss.shape[-1]

    def timestamp(step: int) -> int:
        return int(1000 * (trained.start_time + (trained.end_time - trained.start_time) * step / steps))

    yield from curves(history, steps, points, blocks, first_step, timestamp)
    for key, value in summary(history).items():
        if np.isfinite(value):
            yield Metric(key, value, timestamp(steps), steps)


def curves(
    history: History, steps: int, points: int, blocks: int | None, first_step: int, timestamp: Callable[[int], int]
) -> Iterator[Metric]:
    """Yield the points of `series` from `first_step` on as MLflow's metrics. timestamp: step -> Unix time in milliseconds.

    Values that are not finite are left out, and so are those above BOUNDS times the first value, the largest of all blocks,
    since all runs of a chart share its axes.
    """
    series_by_metric = series(history, steps, points, blocks)
    first_values = {"loss": history.loss[:1], "grad_norm": series_by_metric["grad_norm/all"][1][:1]}
    first_values |= {name: quantity.values[:1].ravel() for name, quantity in history.quantities.items() if name in BOUNDS}
    bounds = {kind: BOUNDS[kind] * float(np.nanmax(value)) for kind, value in first_values.items() if (value > 0).any()}
    for key, (metric_steps, values) in series_by_metric.items():
        bound = bounds.get(key.partition("/")[0], math.inf)
        for step, value in zip(metric_steps.tolist(), values.tolist(), strict=True):
            if step >= first_step and np.isfinite(value) and value <= bound:
                yield Metric(key, value, timestamp(step), step)


def series(history: History, steps: int, points: int, blocks: int | None) -> dict[str, tuple[Array, Array]]:
    """Return for every metric its steps and its values, both (n,); a step is the number of updates before it.

    - loss/batch, grad_norm/W_01 and so on, grad_norm/all, and norm_ratio/first_over_last, the norm of block 1 over that of
      block L: at log-spaced steps, which include the last step before a divergence.
    - loss/train, loss/validation, accuracy/... or r2/... of the whole sets: at the history's evaluations.
    - sharpness/lambda_01 and so on: the instruments' numbers, at the steps at which they were measured.

    history: of the steps so far, of one network. steps: of the whole training. points: the most points of a metric.
    blocks: the most blocks with norms, evenly spaced from the first to the last; None is all.
    """
    chosen_steps = log_spaced(steps, points)
    chosen_steps = chosen_steps[chosen_steps < history.loss.shape[-1]]
    if history.diverged_step > 0:
        last_step = int(history.diverged_step) - 1
        chosen_steps = np.append(chosen_steps[chosen_steps < last_step], last_step)
    depth = history.grad_norm.shape[-1]
    series_by_metric: dict[str, tuple[Array, Array]] = {"loss/batch": (chosen_steps, history.loss[chosen_steps])}
    for block, key in norm_keys(depth, blocks).items():
        series_by_metric[key] = chosen_steps, history.grad_norm[chosen_steps, block]
    norms = history.grad_norm[chosen_steps].astype(np.float64)
    series_by_metric["grad_norm/all"] = chosen_steps, norm(np.concatenate([norms, history.grad_norm_b[chosen_steps]], axis=-1))
    with np.errstate(all="ignore"):
        series_by_metric[RATIO] = chosen_steps, norms[:, 0] / norms[:, -1]
    for name, values in history.measures.items():
        indices = log_spaced(len(values), points)
        series_by_metric[name] = history.evaluated[indices], values[indices]
    for name, quantity in history.quantities.items():
        indices, values = log_spaced(len(quantity.at), points), quantity.values.reshape(len(quantity.at), -1)
        for index, key in quantity_keys(name, values.shape[-1], blocks).items():
            series_by_metric[key] = quantity.at[indices], values[indices, index]
    return series_by_metric


def summary(history: History) -> dict[str, float]:
    """Return the last and the best value of every measure, as final/loss_train, best/accuracy_validation and so on.

    Of a loss that `curves` would log there is also the logarithm, final/log10_loss_train. A measure without a last value has nan.
    """
    values = {}
    for name, measurements in history.measures.items():
        key = name.replace("/", "_")
        values[f"final/{key}"] = history.final(name)
        finite = measurements[np.isfinite(measurements)]
        if finite.size:
            values[f"best/{key}"] = float(finite.min() if key.startswith("loss") else finite.max())
    for loss in (measure for measure in MEASURES.values() if measure.is_loss and measure.name in history.measures):
        if 0 < values[loss.metric] <= BOUNDS["loss"] * float(history.loss[0]):
            # The dashboard's colours and parallel coordinates are linear.
            values[loss.log_metric] = math.log10(values[loss.metric])
    return values
