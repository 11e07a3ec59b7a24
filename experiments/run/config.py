"""The schema of a run's config: every key with its type, default, unit and range. `--help` prints these docstrings."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from blocks.measure.instruments import INSTRUMENTS, Instrument

DEFAULT_MOMENTUM = 0.9
# The key of a run's tag that holds its `cell_name`.
CELL = "cell"
# The key of the tag of a sweep's own run that holds its `sweep.measure`. A later start of the sweep may have another measure.
MEASURE = "measure"
# The longest error message, in characters.
MAX_MESSAGE_LENGTH = 2000


def printable(text: str) -> str:
    """Return the text with every character that could control a terminal written as an escape, such as `\\x1b`."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class UserError(Exception):
    """An error that the user can correct. Its one line names the key, the value and what is allowed."""

    def __init__(self, line: str) -> None:
        line = printable(line)
        if len(line) > MAX_MESSAGE_LENGTH:
            # The value may fill the screen. What stands in front of it and behind it says more.
            line = f"{line[: MAX_MESSAGE_LENGTH // 2]} ... {line[-MAX_MESSAGE_LENGTH // 2 :]}"
        super().__init__(line)


@dataclass
class DatasetConfig:
    """The data set.

    name: the data set's name in tables, in pictures and on the dashboard.
    loader: the function that returns X and y, as `_target_`, for example sklearn.datasets.load_digits; and its arguments.
    seed: seed of the split into training and validation examples, and of examples that the loader draws; 0 to 2^32 - 1.
    test_fraction: share of the examples that are used for validation and not for training, above 0 and below 1.
    """

    name: str = MISSING
    loader: dict[str, Any] = MISSING
    seed: int = 0
    test_fraction: float = 0.2


@dataclass
class NetworkConfig:
    """The network.

    depth: L, the number of blocks, at least 1; the output block is one of them.
    width: n_l, the number of units of every hidden block, at least 1.
    kind: how a block treats its input. A plain block passes it on to W and b alone. In residual, blocks 2..L-1 add their input to
        their output. In normalized, blocks 2..L standardise their input, each example over its units. In batch_normalized, they
        standardise each unit over the examples of the batch; an evaluation uses the statistics of all training examples.
    activation: g in a = g(z) of the hidden blocks.
    initializer: the distribution from which the initial weights W are drawn.
    gain: factor on the variance of the initial weights, at least 0.
    bias_variance: variance of the initial biases b, at least 0; 0 sets them to 0.
    parametrization: standard leaves initial weights and learning rates as they are set. mup multiplies both such that the best
        learning rate is the same at every width, and of residual blocks at every depth; the base width is 64.
    gamma: the strength of feature learning, above 0: the network's outputs are divided by it, and are 0 at the start; null does
        neither.
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
    """The update of the parameters.

    name: the rule of the update.
    learning_rate: alpha, the step size, above 0.
    momentum: beta, the factor with which a step is carried on into the next one, at least 0 and below 1; null is 0.9. Only the
        rules momentum and nesterov have it.
    weight_decay: factor of the L2 penalty on W, at least 0; 0 is no penalty.
    block_rates: alpha of W_l and b_l for each block 1..L, a list of L values above 0; null uses learning_rate in every block.
    schedule: factor on the learning rate as a function of the step, after the warm-up.
    warmup: number of steps in which the learning rate rises linearly from 0 to its value, at least 0; a value below 1 is a share
        of all steps.
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

    epochs: number of passes over the training examples, at least 1.
    batch_size: number of examples per step, at least 1; null uses all training examples in every step.
    loss: J; null is half_mean_squared_error for real-valued targets, sigmoid_cross_entropy for two classes and
        softmax_cross_entropy for more. half_mean_squared_error reads labels as one-hot vectors.
    loss_bound: a run whose loss exceeds this value counts as diverged, above 0; inf is no bound. A loss that is not finite always
        counts as diverged.
    evaluations: how often at most all training and validation examples are evaluated, at least 2: at the start, at the end, and
        after log-spaced epochs between.
    threads: number of threads of BLAS, 1 to 1024; the last bits of a result can depend on it.
    """

    epochs: int = 20
    batch_size: int | None = 64
    loss: str | None = None
    loss_bound: float = float("inf")
    evaluations: int = 10
    threads: int = 1


@dataclass
class InstrumentsConfig:
    """What is measured in addition to the losses. Most keys are schedules: null never, `k` at every k-th step, `log` at 20
    log-spaced steps at most.

    sharpness: schedule of the largest eigenvalues of the Hessian of the loss.
    preconditioned_sharpness: schedule of the largest eigenvalues of P^-1 H. H is the Hessian of the loss, P the matrix by which
        the optimizer divides the gradient, as adam and rmsprop do.
    update_ratio: schedule of ||W_l after - W_l before|| / ||W_l before||, the relative size of a step, of every block.
    saturated: schedule of the share of units that pass no gradient for any example, of every hidden block.
    example_norm: schedule of the root mean square over the examples of ||dW_l|| of each single example, of every block.
    signals: schedule of the distributions of z, a, da and dW of every block: histograms, means, standard deviations, shares of
        saturated entries, std(dW) / std(W) and std(update) / std(W).
    parameters: schedule of copies of all parameters, for pictures of how the network changes.
    singular_value: schedule of the singular values of the Jacobian da_{L-1}/da_1 of the hidden blocks, each the mean over the
        examples.
    noise_scale: schedule of the gradient noise scale, a batch size: the trace of the covariance of single examples' gradients,
        divided by the squared norm of the gradient.
    eigenvalues: number of eigenvalues that sharpness and preconditioned_sharpness measure, at least 1.
    examples: number of training examples that are measured, the first ones, at least 1; null is the batch size.
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
    """The record in MLflow.

    uri: MLflow's tracking URI; null is a SQLite file in the project's folder.
    experiment: the name of MLflow's experiment.
    points: how many points a curve in MLflow has at most, at least 2; history.npz has all points.
    blocks: of how many evenly spaced blocks MLflow gets gradient norms at most, at least 2; null is all. history.npz has all.
    pictures: the runs whose pictures are logged: `best` is the best run of a sweep, or a single run; `all`; or `none`. A sweep
        always has its map, and its other pictures unless this is `none`.
    models: the runs whose network is logged as a model: `best` is the best run of a sweep, or a single run; `all`; or `none`.
    register: name under which MLflow's model registry gets the best network; null does not register it.
    enabled: true records the runs, false records nothing.
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
    """A sweep.

    resume: true trains only the runs that an earlier start of the same sweep has not finished; false trains all of them anew.
    stale: number of seconds, at least 20, without a sign of life, after which a sweep on another machine counts as dead.
    study: name of a study, which compares the sweep with a theory and prints a verdict, see experiments/pictures/studies/; null
        is none.
    measure: the number by which runs are compared, at the end of training; accuracy is for labels, r2 for real-valued targets.
    halving: factor above 1: at each rung, the best runs go on, one in this many, and the others stop, see `run.halving`; null
        trains all runs to their end.
    report: true writes report.html, the whole sweep in one file, see experiments/report.py; false leaves it out.
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

    seed: seed of the initial weights and of the order of the batches, 0 to 2^128 - 1.
    dtype: precision of all numbers in the training, float32 or float64.
    machine: `portable` has the same bits on every x86-64 processor with AVX2; `native` uses all features of this processor.
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
    """Return the schedules of the instruments that the config switches on, by the instrument's name."""
    values = {name: getattr(config.instruments, name) for name in INSTRUMENTS}
    return {name: schedule for name, schedule in values.items() if schedule is not None}


def instruments(config: Config) -> list[Instrument]:
    """Return the instruments that the config switches on."""
    examples, eigenvalues = config.instruments.examples, config.instruments.eigenvalues
    return [Instrument(name, schedule, examples, eigenvalues) for name, schedule in schedules(config).items()]
