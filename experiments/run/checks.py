"""Checks of every value of a run's config that need no data."""

from collections.abc import Iterator, Mapping
from typing import Any

from blocks.activations import ACTIVATIONS
from blocks.arrays import check_number, choice, whole_number
from blocks.initializers import INITIALIZERS
from blocks.losses import LOSSES
from blocks.measure.instruments import scheduled_steps
from blocks.network import KINDS
from blocks.optimizers import OPTIMIZERS, Momentum
from blocks.parametrizations import PARAMETRIZATIONS
from blocks.schedules import SCHEDULES
from experiments.run.config import Config, UserError, schedules
from experiments.run.machine import MACHINES
from experiments.run.measure import MEASURES
from experiments.run.naming import flatten

DTYPES = ("float32", "float64")
RUN_CHOICES = ("best", "all", "none")
# The instruments that measure gradients or Jacobians of single examples.
EXAMPLE_INSTRUMENTS = ("example_norm", "noise_scale", "singular_value")
# NumPy's generators take seeds of 128 bits, scikit-learn takes seeds of 32 bits.
MAX_SEED, MAX_DATASET_SEED, MAX_THREADS = 2**128 - 1, 2**32 - 1, 1024
# Keys of the config whose value is a name in a table -> that table.
TABLES: dict[str, Mapping[str, Any]] = {
    "network.kind": KINDS,
    "network.activation": ACTIVATIONS,
    "network.initializer": INITIALIZERS,
    "network.parametrization": PARAMETRIZATIONS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "training.loss": LOSSES,
    "sweep.measure": MEASURES,
}


def check(config: Config) -> None:
    """Raise UserError for the first value that is not allowed, whatever the data set is."""
    optimizer = config.optimizer
    try:
        for key, count, minimum, maximum in _counts(config):
            if count is not None:
                whole_number(key, count, at_least=minimum, at_most=maximum)
        for key, value, allowed_range in _ranges(config):
            check_number(key, value, **allowed_range)
        values = flatten(config)
        for key, table in TABLES.items():
            if values[key] is not None:
                choice(key, values[key], table)
        if optimizer.block_rates is not None:
            check_number("optimizer.block_rates", optimizer.block_rates, above=0)
        for name, schedule in schedules(config).items():
            scheduled_steps(f"instruments.{name}", schedule, 1)
        choice("dtype", config.dtype, dict.fromkeys(DTYPES))
        choice("machine", config.machine, dict.fromkeys(MACHINES))
        choice("tracking.pictures", config.tracking.pictures, dict.fromkeys(RUN_CHOICES))
        choice("tracking.models", config.tracking.models, dict.fromkeys(RUN_CHOICES))
    except ValueError as error:
        raise UserError(str(error)) from None
    for name in EXAMPLE_INSTRUMENTS:
        if config.network.kind == "batch_normalized" and name in schedules(config):
            raise UserError(
                f"instruments.{name} is {schedules(config)[name]!r}, but network.kind batch_normalized mixes the examples of a "
                "batch, none has a gradient of its own: it must be null"
            )
    if config.instruments.singular_value is not None and config.network.depth == 1:
        raise UserError("network.depth is 1, but instruments.singular_value is of hidden blocks: it must be at least 2")
    rates, depth = optimizer.block_rates, config.network.depth
    if rates is not None and len(rates) != depth:
        raise UserError(f"optimizer.block_rates is {rates}, it must have {depth} values, one a block (network.depth={depth})")
    if optimizer.momentum is not None and not issubclass(OPTIMIZERS[optimizer.name], Momentum):
        allowed_names = ", ".join(name for name, rule in OPTIMIZERS.items() if issubclass(rule, Momentum))
        raise UserError(
            f"optimizer.momentum is {optimizer.momentum}, but {optimizer.name} has none: "
            f"it must be null, or optimizer.name one of {allowed_names}"
        )


def _counts(config: Config) -> Iterator[tuple[str, int | None, int, int | None]]:
    """Yield key, value, minimum and maximum of every whole number. A maximum of None is no limit."""
    network, training, tracking = config.network, config.training, config.tracking
    yield "network.depth", network.depth, 1, None
    yield "network.width", network.width, 1, None
    yield "training.epochs", training.epochs, 1, None
    yield "training.batch_size", training.batch_size, 1, None
    yield "training.threads", training.threads, 1, MAX_THREADS
    yield "training.evaluations", training.evaluations, 2, None
    yield "instruments.eigenvalues", config.instruments.eigenvalues, 1, None
    yield "instruments.examples", config.instruments.examples, 1, None
    yield "tracking.points", tracking.points, 2, None
    yield "tracking.blocks", tracking.blocks, 2, None
    yield "seed", config.seed, 0, MAX_SEED
    yield "dataset.seed", config.dataset.seed, 0, MAX_DATASET_SEED


def _ranges(config: Config) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Yield key, value and allowed range of every other number. The range is arguments of `check_number`."""
    network, optimizer, loss_bound = config.network, config.optimizer, config.training.loss_bound
    not_negative: dict[str, float] = {
        "network.gain": network.gain,
        "network.bias_variance": network.bias_variance,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.warmup": optimizer.warmup,
    }
    for key, value in not_negative.items():
        yield key, value, {"at_least": 0}
    yield "optimizer.learning_rate", optimizer.learning_rate, {"above": 0}
    # A sweep must miss four of its signs of life before it counts as dead.
    yield "sweep.stale", config.sweep.stale, {"at_least": 20}
    if config.sweep.halving is not None:
        yield "sweep.halving", config.sweep.halving, {"above": 1}
    yield "optimizer.momentum", optimizer.momentum or 0.0, {"at_least": 0, "below": 1}
    if network.gamma is not None:
        yield "network.gamma", network.gamma, {"above": 0}
    if loss_bound != float("inf"):
        yield "training.loss_bound", loss_bound, {"above": 0}
    yield "dataset.test_fraction", config.dataset.test_fraction, {"above": 0, "below": 1}
