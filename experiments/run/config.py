"""What a run can be asked for: the typed schema, with units."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from blocks.measure.instruments import INSTRUMENTS, Instrument

DEFAULT_MOMENTUM = 0.9
# The tag of a run with its `cell_name`.
CELL = "cell"
# The tag of a sweep's own run with its `sweep.measure`, which may be another one each time the sweep is typed.
MEASURE = "measure"
# Of an error.
MOST_LETTERS = 2000


def printable(text: str) -> str:
    """The text with what would move a terminal's cursor, colour it or turn its line round written as an escape, `\\x1b`."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class UserError(Exception):
    """Something the user can put right, said in one line: the key, the value, what is allowed."""

    def __init__(self, line: str) -> None:
        line = printable(line)
        if len(line) > MOST_LETTERS:
            # Of a value that fills the screen, what stands before and behind it says more.
            line = f"{line[: MOST_LETTERS // 2]} ... {line[-MOST_LETTERS // 2 :]}"
        super().__init__(line)


@dataclass
class DatasetConfig:
    """The data.

    name: what tables and the dashboard call it.
    loader: `_target_`, a function of `sklearn.datasets` or one like it, and its arguments.
    seed: of the split, and of data sets that are drawn, 0 to 2^32 - 1.
    test_fraction: share of the examples held out for validation, above 0 and below 1.
    """

    name: str = MISSING
    loader: dict[str, Any] = MISSING
    seed: int = 0
    test_fraction: float = 0.2


@dataclass
class NetworkConfig:
    """The network.

    depth: L, the number of blocks, the output one among them.
    width: n_l of every hidden block.
    kind: plain, residual (blocks 2..L-1 add to their input), normalized (blocks 2..L standardise it, example by example) or
        batch_normalized (unit by unit over a batch's examples; what is evaluated has the statistics of all training examples).
    activation, initializer: names from the engine's tables.
    gain: factor on the initial weights' variance. bias_variance: variance of the initial biases.
    parametrization: mup multiplies initial weights and learning rates such that the best rate is the same at every width and,
        of residual blocks, at every depth; at width 64 it is standard but for that depth.
    gamma: the strength of feature learning: the outputs are divided by it, and begin at 0; null divides by nothing.
    """

    depth: int = 3
    width: int = 64
    kind: str = "plain"
    activation: str = "relu"
    initializer: str = "he"
    gain: float = 1.0
    bias_variance: float = 0.0
    parametrization: str = "standard"
    gamma: float | None = None


@dataclass
class OptimizerConfig:
    """The update.

    name, schedule: names from the engine's tables.
    learning_rate: alpha, above 0. weight_decay: L2 on W, at least 0.
    block_rates: alpha of W and b of block 1..L each, above 0; null is learning_rate in all of them.
    momentum: 0 to below 1, of momentum and nesterov alone; null is 0.9.
    warmup: updates over which the rate rises linearly from 0 to its value, at least 0; below 1 a share of all updates. The
        schedule begins behind them.
    """

    name: str = "gradient_descent"
    learning_rate: float = 0.1
    momentum: float | None = None
    weight_decay: float = 0.0
    block_rates: list[float] | None = None
    schedule: str = "constant"
    warmup: float = 0.0


@dataclass
class TrainingConfig:
    """The training.

    epochs: passes over the training data. batch_size: examples a step, null is all of them.
    loss: a name from the engine's table, null is what fits the data; half_mean_squared_error takes labels one-hot.
    loss_bound: a loss above it has diverged, as one that is not finite has.
    evaluations: how often at most the whole data sets are measured, first, last and log-spaced between.
    threads: BLAS threads, 1 to 1024; bits can depend on them.
    """

    epochs: int = 20
    batch_size: int | None = 64
    loss: str | None = None
    loss_bound: float = float("inf")
    evaluations: int = 10
    threads: int = 1


@dataclass
class InstrumentsConfig:
    """What is measured beside the losses, and when: null never, `k` at every k-th step, `log` at 20 log-spaced steps at most.

    sharpness: the largest eigenvalues of the loss's Hessian; `eigenvalues`: so many of them.
    preconditioned_sharpness: those of P^-1 H, P what the optimizer divides the gradient by, as adam and rmsprop do.
    update_ratio: ||W_l after - W_l before|| / ||W_l before||, of every block. saturated: share of the units of every hidden
        block that pass no gradient for any example. example_norm: root mean square over the examples of every block's ||dW_l||.
    signals: histograms of every block's z, a, da and dW, their means and standard deviations, the share of its entries that
        are saturated, std(dW) / std(W), std(update) / std(W). parameters: all of them, for pictures of the network on its way.
    singular_value: the singular values of the hidden blocks' Jacobian da_{L-1}/da_1, each its mean over the examples.
    noise_scale: the trace of the covariance of single examples' gradients over the squared norm of the gradient, a batch size.
    examples: the first so many training examples are measured, null is as many as a batch has.
    """

    sharpness: str | None = None
    preconditioned_sharpness: str | None = None
    update_ratio: str | None = None
    saturated: str | None = None
    example_norm: str | None = None
    signals: str | None = None
    parameters: str | None = None
    singular_value: str | None = None
    noise_scale: str | None = None
    eigenvalues: int = 1
    examples: int | None = None


@dataclass
class TrackingConfig:
    """The record.

    uri: MLflow's tracking URI, null is a SQLite file beside the project. experiment: MLflow's name for it.
    points: at most so many points a metric, at least 2.
    blocks: gradient norms of at most so many blocks, evenly spaced, at least 2; null is all. history.npz has all.
    pictures, models: of which runs pictures, a model are logged: `best` of a sweep (or a single run), `all`, or `none`; a
        sweep has its map in any case, its other pictures unless `none`.
    register: the name under which the model registry gets a sweep's best network, null does not register it.
    enabled: false records nothing.
    """

    uri: str | None = None
    experiment: str = "depth laboratory"
    points: int = 20
    blocks: int | None = 12
    pictures: str = "best"
    models: str = "best"
    register: str | None = None
    enabled: bool = True


@dataclass
class SweepConfig:
    """A sweep that was begun before, and what is made of it at its end.

    measure: what runs are judged by: loss/train, loss/validation, accuracy/... (of labels) or r2/... (of values).
    resume: true trains only what an earlier sweep of the same runs has not finished, false starts anew.
    stale: seconds without a sign of life after which a sweep on another machine counts as dead, at least 20.
    study: a name of experiments/pictures/studies/: theory drawn over what the sweep has measured, and a verdict.
    halving: a factor above 1, of which at every rung one share of the runs goes on, the best, see `run.halving`; null trains all
        to their end.
    report: false leaves report.html out, the sweep as one file to hand on; see experiments/report.py.
    """

    resume: bool = True
    stale: float = 60.0
    study: str | None = None
    measure: str = "loss/train"
    halving: float | None = None
    report: bool = True


@dataclass
class Config:
    """A run.

    seed: of the initial weights and the order of the batches, 0 to 2^128 - 1. dtype: float32 or float64.
    machine: `portable` has the same bits on every x86-64 processor with AVX2, `native` uses what else this one can do.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    instruments: InstrumentsConfig = field(default_factory=InstrumentsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    dtype: str = "float32"
    machine: str = "portable"


def schedules(config: Config) -> dict[str, str]:
    """name -> schedule of the instruments that are asked for."""
    asked = {name: getattr(config.instruments, name) for name in INSTRUMENTS}
    return {name: schedule for name, schedule in asked.items() if schedule is not None}


def instruments(config: Config) -> list[Instrument]:
    """Those that are asked for."""
    asked = config.instruments
    return [Instrument(name, schedule, asked.examples, asked.eigenvalues) for name, schedule in schedules(config).items()]
