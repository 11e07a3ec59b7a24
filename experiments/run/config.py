"""What a run can be asked for: the typed schema, with units, and the checks of every value."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf

from blocks.activations import ACTIVATIONS
from blocks.arrays import check_number, choice, whole_number
from blocks.initializers import INITIALIZERS
from blocks.losses import LOSSES
from blocks.measure.instruments import INSTRUMENTS, Instrument, scheduled
from blocks.network import KINDS
from blocks.optimizers import OPTIMIZERS, Momentum
from blocks.parametrizations import PARAMETRIZATIONS
from blocks.schedules import SCHEDULES
from experiments.run.help import keys
from experiments.run.machine import MACHINES, set_machine
from experiments.run.measure import MEASURES

CONF = str(Path(__file__).resolve().parents[2] / "conf")
DTYPES = ("float32", "float64")
OF_RUNS = ("best", "all", "none")
DEFAULT_MOMENTUM = 0.9
# What a name begins with, where it differs.
FIRST = {"network.depth": "depth", "optimizer.learning_rate": "rate"}
SEED = "seed"
# The tag of a run with its `cell_name`.
CELL = "cell"
# The tag of a sweep's own run with its `sweep.measure`, which may be another one each time the sweep is typed.
MEASURE = "measure"
# Characters that a database has room for in a run's name.
MOST_NAME = 250
# key -> what it may name.
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
# The instruments of single examples.
OF_EXAMPLES = ("example_norm", "noise_scale", "singular_value")
# What NumPy's generators draw a seed from has 128 bits, what scikit-learn's are given 32.
MOST_SEED, MOST_DATASET_SEED, MOST_THREADS = 2**128 - 1, 2**32 - 1, 1024
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


T = TypeVar("T", bound=Config)


def register(name: str = "base_config", schema: type[Config] = Config) -> None:
    """Make a schema known to Hydra, under that name."""
    # Here, so that the processes that train need not import Hydra.
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=name, node=schema)
    # For `--help`.
    tables = {key: list(table) for key, table in TABLES.items()}
    OmegaConf.register_new_resolver("keys", lambda _root_: keys(schema, _root_, tables), replace=True)
    # `--help` copies its loader three times for every group, each time with all that stands in the store, which nothing
    # changes any more: half of its time.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of conf/NAME.yaml and `KEY=VALUE`s, resolved as in a job, without starting one."""
    from hydra import compose, initialize_config_dir
    from hydra_plugins.depth_laboratory._context import job_context

    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
        with job_context(config) as task:
            OmegaConf.resolve(task)
        return task


def typed(cfg: DictConfig) -> Config:
    """The config as a checked object; raises UserError for a value out of range or a key that is not in the schema."""
    return typed_as(Config, cfg)


def typed_as(schema: type[T], cfg: DictConfig) -> T:
    """`typed`, of a schema that has more keys than a run's."""
    for key in cfg:
        _check_keys(str(key), cfg, schema)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    check(config)
    return config


def settled(config: T) -> tuple[T, str]:
    """The config with the machine that this process has, and in one line why that is not the one asked for.

    See `run.machine.set_machine`, which may start the command again.
    """
    reason = set_machine(config.machine)
    return (replace(config, machine="native") if reason else config), reason


def _check_keys(key: str, node: DictConfig, schema: type, path: str = "") -> None:
    # Hydra lets `+network.foo=1` through, and to_object drops it without a word.
    known = {f.name: f.type for f in fields(schema)}
    if key not in known:
        raise UserError(f"{path}{key} is unknown, allowed: {', '.join(path + name for name in known)}")
    inner = known[key]
    if isinstance(inner, type) and is_dataclass(inner):
        for below in node[key]:
            _check_keys(str(below), node[key], inner, f"{path}{key}.")


def check(config: Config) -> None:
    """Raise UserError for the first value that no run can have."""
    optimizer = config.optimizer
    try:
        for key, count, least, most in _counts(config):
            if count is not None:
                whole_number(key, count, at_least=least, at_most=most)
        for key, value, allowed in _ranges(config):
            check_number(key, value, **allowed)
        values = flat(config)
        for key, table in TABLES.items():
            if values[key] is not None:
                choice(key, values[key], table)
        if optimizer.block_rates is not None:
            check_number("optimizer.block_rates", optimizer.block_rates, above=0)
        for name, schedule in schedules(config).items():
            scheduled(f"instruments.{name}", schedule, 1)
        choice("dtype", config.dtype, dict.fromkeys(DTYPES))
        choice("machine", config.machine, dict.fromkeys(MACHINES))
        choice("tracking.pictures", config.tracking.pictures, dict.fromkeys(OF_RUNS))
        choice("tracking.models", config.tracking.models, dict.fromkeys(OF_RUNS))
    except ValueError as error:
        raise UserError(str(error)) from None
    for name in OF_EXAMPLES:
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
        with_momentum = ", ".join(name for name, other in OPTIMIZERS.items() if issubclass(other, Momentum))
        raise UserError(
            f"optimizer.momentum is {optimizer.momentum}, but {optimizer.name} has none: "
            f"it must be null, or optimizer.name one of {with_momentum}"
        )


def schedules(config: Config) -> dict[str, str]:
    """name -> schedule of the instruments that are asked for."""
    asked = {name: getattr(config.instruments, name) for name in INSTRUMENTS}
    return {name: schedule for name, schedule in asked.items() if schedule is not None}


def instruments(config: Config) -> list[Instrument]:
    """Those that are asked for."""
    asked = config.instruments
    return [Instrument(name, schedule, asked.examples, asked.eigenvalues) for name, schedule in schedules(config).items()]


def _counts(config: Config) -> Iterator[tuple[str, int | None, int, int | None]]:
    """(key, value, least, most) of every whole number."""
    network, training, tracking = config.network, config.training, config.tracking
    yield "network.depth", network.depth, 1, None
    yield "network.width", network.width, 1, None
    yield "training.epochs", training.epochs, 1, None
    yield "training.batch_size", training.batch_size, 1, None
    yield "training.threads", training.threads, 1, MOST_THREADS
    yield "training.evaluations", training.evaluations, 2, None
    yield "instruments.eigenvalues", config.instruments.eigenvalues, 1, None
    yield "instruments.examples", config.instruments.examples, 1, None
    yield "tracking.points", tracking.points, 2, None
    yield "tracking.blocks", tracking.blocks, 2, None
    yield "seed", config.seed, 0, MOST_SEED
    yield "dataset.seed", config.dataset.seed, 0, MOST_DATASET_SEED


def _ranges(config: Config) -> Iterator[tuple[str, float, dict[str, float]]]:
    """(key, value, allowed range) of every other number."""
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
    # Four of the signs of life that a sweep gives.
    yield "sweep.stale", config.sweep.stale, {"at_least": 20}
    if config.sweep.halving is not None:
        yield "sweep.halving", config.sweep.halving, {"above": 1}
    yield "optimizer.momentum", optimizer.momentum or 0.0, {"at_least": 0, "below": 1}
    if network.gamma is not None:
        yield "network.gamma", network.gamma, {"above": 0}
    if loss_bound != float("inf"):
        yield "training.loss_bound", loss_bound, {"above": 0}
    yield "dataset.test_fraction", config.dataset.test_fraction, {"above": 0, "below": 1}


def run_name(config: Config, keys: Sequence[str] = ()) -> str:
    """What tells a run from its neighbours: `depth 5, rate 0.1, seed 1`.

    keys: that differ between the runs of its sweep; none is a run alone, whose depth and rate are named.
    """
    values, by_word = flat(config), words(keys or tuple(FIRST))
    named = ", ".join(f"{word} {shown(values[key])}" for word, key in by_word.items() if key in values)
    return named if len(named) <= MOST_NAME else f"{named[: MOST_NAME - 3]}..."


def cell_name(config: Config, keys: Sequence[str]) -> str:
    """What runs of a sweep that differ in seed alone have in common, to the last digit: `depth 5, rate 0.1`.

    keys: that differ between its runs; "" where the seed does not.
    """
    values = flat(config)
    others = [key for key in keys if key != SEED]

    def exact(value: Any) -> str:
        return shown(value) if not isinstance(value, float) or float(shown(value)) == value else str(value)

    named = [f"{word} {exact(values[key])}" for word, key in words(others or tuple(FIRST)).items() if key in values]
    return ", ".join(named) if SEED in keys else ""


def sweep_name(keys: Sequence[str], count: int) -> str:
    """`depth x rate, 48 runs`; keys: that differ between them."""
    runs = f"{count} run{'s' * (count > 1)}"
    most = MOST_NAME - len(runs) - 5
    swept = " x ".join(words(keys))
    return f"{swept if len(swept) <= most else f'{swept[:most]}...'}, {runs}" if keys else runs


def words(keys: Sequence[str]) -> dict[str, str]:
    """A short word for each key -> the key, depth and rate first: the last part that says something, where no other has it."""
    ordered = [*(key for key in FIRST if key in keys), *(key for key in keys if key not in FIRST)]
    last = {key: FIRST.get(key) or key.removesuffix(".name").rpartition(".")[2] for key in ordered}
    return {word if list(last.values()).count(word) == 1 else key: key for key, word in last.items()}


def shown(value: Any) -> str:
    """A value of the config as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def flat(config: Config) -> dict[str, Any]:
    """The config's values by the keys users type: `network.depth` and so on."""
    return flat_values(asdict(config))


def flat_values(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values by dotted keys."""

    def leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(values, ""))


def varied(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys whose values differ between the flat configs of runs; of a data set's loader, which its name stands for, those
    that differ between runs of one name.
    """
    keys = dict.fromkeys(key for values in runs for key in values)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for values in runs:
        by_name.setdefault(str(values.get("dataset.name")), []).append(values)

    def differs(key: str) -> bool:
        alike = by_name.values() if key.startswith("dataset.loader.") else [runs]
        return any(len({str(values.get(key)) for values in some}) > 1 for some in alike)

    return [key for key in keys if differs(key)]
