"""The training of runs that share shapes and data, as the lanes of one network. A single run is a stack of one lane."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from blocks.arrays import Array
from blocks.history import History
from blocks.measure.instruments import LOG, LOG_POINTS
from blocks.measure.signals import BINS, NUMBERS
from blocks.network import Network
from blocks.optimizers import OPTIMIZERS, Momentum, Optimizer
from blocks.parameters import Layout
from blocks.parametrizations import rate_factors
from blocks.schedules import rate_schedule
from blocks.training import Watch, reshuffled, train
from experiments.run.config import DEFAULT_MOMENTUM, Config, UserError, instruments, schedules
from experiments.run.data import Task, load_task
from experiments.run.environment import environment
from experiments.run.memory import check_memory

# A network whose final loss is above this share of the best constant prediction's has learned next to nothing from x.
STUCK_ABOVE = 0.9
STOPPED = "stopped"
REPORT_SECONDS = 4.0
# The number of examples that are evaluated together, which bounds the memory of their caches.
EVALUATION_BATCH = 1024
STACK_BYTES, LANE_LIMITS = 4 * 2**20, (4, 16)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run after its training.

    parameters: (P,) the final parameters; of a diverged network those before the step at which it diverged.
    outcome: trained, stuck, diverged or stopped. rung: at which the run was stopped, see `run.halving`.
    start_time, end_time: of its stack's training, Unix time in seconds.
    environment: versions and processor of the process that trained it, see `run.environment`.
    """

    config: Config
    history: History
    parameters: Array
    outcome: str
    start_time: float
    end_time: float
    environment: dict[str, str]
    rung: int = 0

    def final(self, measure: str) -> float:
        """Return the last value of one of the history's measures; nan where the run diverged or was stopped."""
        return self.history.final(measure)


def stack_key(config: Config) -> tuple[object, ...]:
    """Return the values that all lanes of a stack must have in common."""
    network, optimizer, training = config.network, config.optimizer, config.training
    return (
        repr(asdict(config.dataset)),
        (network.depth, network.width, network.activation, network.kind),
        (optimizer.name, optimizer.schedule, optimizer.warmup),
        repr(asdict(replace(training, loss_bound=np.inf))),
        repr(asdict(config.instruments)),
        config.dtype,
    )


def train_stack(
    configs: Sequence[Config], task: Task | None = None, watch: Watch | None = None, until: int | None = None
) -> list[TrainedRun]:
    """Train runs with the same `stack_key` as the lanes of one network, and return them in the order of their configs.

    task: what `load_task` returns for the runs; None loads it here.
    watch, until: see `blocks.train`. A run that ends before its last epoch has the outcome `stopped`.
    """
    first = configs[0]
    assert all(stack_key(config) == stack_key(first) for config in configs)
    task = task or load_task(first)
    start_time = time.time()
    network = _network(configs, task)
    training = first.training
    with threadpool_limits(training.threads, user_api="blas"):
        history = train(
            network,
            task.dataset.x,
            task.dataset.y,
            loss=task.loss,
            optimizer=optimizer_of(configs, network.layout),
            epochs=training.epochs,
            until=until,
            batch_size=training.batch_size,
            orders=None if training.batch_size is None else _orders(configs, task.dataset.x.shape[-1]),
            schedule=first.optimizer.schedule,
            warmup=first.optimizer.warmup,
            validation=(task.dataset.x_validation, task.dataset.y_validation),
            evaluations=training.evaluations,
            loss_bound=np.array([config.training.loss_bound for config in configs]),
            watch=watch,
            instruments=instruments(first),
        )
    end_time = time.time()
    lanes = [(config, history.lane(k), network.parameters[k].copy()) for k, config in enumerate(configs)]
    is_complete = until in (None, training.epochs)
    outcomes = [_outcome(lane, task) if is_complete or lane.diverged_step >= 0 else STOPPED for _, lane, _ in lanes]
    return [
        TrainedRun(config, lane, theta, outcome, start_time, end_time, environment())
        for (config, lane, theta), outcome in zip(lanes, outcomes, strict=True)
    ]


def create_watch(report: Callable[[History], None]) -> Watch:
    """Return a `watch` for `blocks.train` that calls `report` with the history so far, at most once in REPORT_SECONDS."""
    reported = time.monotonic()

    def watch(step: int, history: Callable[[], History]) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            report(history())
            reported = time.monotonic()

    return watch


def train_reporting(configs: Sequence[Config], task: Task, file: Path, until: int | None = None) -> list[TrainedRun]:
    """Call `train_stack` in another process, and write the history so far to `file` every few seconds.

    Whoever reads the file finds a complete history: a new one replaces the last one at once.
    """

    def report(history: History) -> None:
        partial_file = file.with_suffix(".part.npz")
        history.save(partial_file)
        partial_file.replace(file)

    return train_stack(configs, task, create_watch(report), until)


def plan(
    configs: Sequence[Config], tasks: Sequence[Task], size: int | None = None, max_lanes: int = LANE_LIMITS[1]
) -> list[list[int]]:
    """Return the stacks as lists of the configs' indices, the stack with most work first.

    size: lanes per stack; None chooses `suitable_lanes`, at most max_lanes.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    # Runs with the same seed become neighbours: where all lanes of a stack have the same order, they share their batches.
    for index in sorted(range(len(configs)), key=lambda index: configs[index].seed):
        groups.setdefault(stack_key(configs[index]), []).append(index)
    stacks: list[list[int]] = []
    for group in groups.values():
        first = group[0]
        config, task = configs[first], tasks[first]
        m = config.training.batch_size or task.dataset.x.shape[-1]
        lanes = size or suitable_lanes(Layout(sizes(config, task)), m, config.dtype, max_lanes)
        parts = -(-len(group) // lanes)
        stacks += [list(part) for part in np.array_split(group, parts)]
    return sorted(stacks, key=lambda stack: -work(configs[stack[0]], tasks[stack[0]]) * len(stack))


def work(config: Config, task: Task) -> float:
    """Return the approximate number of multiplications in a run's matrix products, to which its time is proportional."""
    return 3.0 * Layout(sizes(config, task)).size * task.dataset.x.shape[-1] * config.training.epochs


def steps_of(config: Config, task: Task) -> int:
    """Return T, the number of updates."""
    m = task.dataset.x.shape[-1]
    return config.training.epochs * -(-m // (config.training.batch_size or m))


def sizes(config: Config, task: Task) -> list[int]:
    """Return the sizes n_0, ..., n_L of the network."""
    return [task.dataset.x.shape[0], *[config.network.width] * (config.network.depth - 1), task.units]


def count_parameters(config: Config, task: Task) -> int:
    """Return P, the number of parameters. It needs no list of the sizes, which would not fit in memory for 10^9 blocks."""
    width, depth, n = config.network.width, config.network.depth, task.dataset.x.shape[0]
    if depth == 1:
        return task.units * (n + 1)
    return width * (n + 1) + task.units * (width + 1) + (depth - 2) * width * (width + 1)


def check_size(config: Config, task: Task) -> None:
    """Raise UserError where the training does not fit in the machine's memory, where more eigenvalues are measured than there
    are parameters, or where the warm-up is longer than the training.
    """
    network, training, width = config.network, config.training, config.network.width
    n, m = task.dataset.x.shape
    hidden, parameters = width * (network.depth - 1), count_parameters(config, task)
    history = steps_of(config, task) * (2 * network.depth + 1)
    n_numbers = 3 * parameters + 2 * (n + hidden + task.units) * (training.batch_size or m) + history
    check_memory(
        f"network.depth is {network.depth}, network.width {width} and training.epochs {training.epochs}",
        n_numbers * np.dtype(config.dtype).itemsize + instruments_bytes(config, task),
    )
    n_eigenvalues = config.instruments.eigenvalues
    if n_eigenvalues > parameters:
        raise UserError(f"instruments.eigenvalues is {n_eigenvalues}, it must be 1 to {parameters}, the parameters")
    try:
        rate_schedule(config.optimizer.schedule, config.optimizer.warmup, steps_of(config, task))
    except ValueError as error:
        raise UserError(f"optimizer.{error}") from None


def instruments_bytes(config: Config, task: Task) -> int:
    """Return the largest number of bytes that the instruments `signals` and `parameters` can store."""
    depth, steps, schedules_by_name = config.network.depth, steps_of(config, task), schedules(config)
    bytes_by_name = {
        "signals": depth * (8 * len(NUMBERS) + 4 * sum(len(bins.edges) - 1 for bins in BINS.values())),
        "parameters": count_parameters(config, task) * np.dtype(config.dtype).itemsize,
    }
    n_measured = {
        name: LOG_POINTS if schedule == LOG else -(-steps // int(schedule)) for name, schedule in schedules_by_name.items()
    }
    return sum(size * n_measured.get(name, 0) for name, size in bytes_by_name.items())


def suitable_lanes(layout: Layout, m: int, dtype: str, max_lanes: int = LANE_LIMITS[1]) -> int:
    """Return the number of lanes with which a step of m examples fits in the processor's cache, LANE_LIMITS[0] to max_lanes."""
    # Measured at width 64, depth 2 to 33: a stack is fastest while its parameters, gradients and caches take about
    # STACK_BYTES. Below 4 lanes, the calls of NumPy cost more than the cache saves.
    bytes_per_lane = (3 * layout.size + 2 * sum(layout.sizes) * m) * np.dtype(dtype).itemsize
    return int(np.clip(STACK_BYTES // bytes_per_lane, LANE_LIMITS[0], max_lanes))


def _network(configs: Sequence[Config], task: Task) -> Network:
    """Return a network with one lane per config. Each has the initial weights of its own seed, initializer and gain."""

    def create_lane(config: Config) -> Network:
        network_config = config.network
        return Network.create(
            sizes(config, task),
            network_config.activation,
            network_config.initializer,
            rng=np.random.default_rng(config.seed).spawn(2)[0],
            gain=network_config.gain,
            bias_variance=network_config.bias_variance,
            dtype=config.dtype,
            kind=network_config.kind,
            parametrization=network_config.parametrization,
            gamma=network_config.gamma,
        )

    networks = [create_lane(config) for config in configs]
    return networks[0].with_parameters(np.stack([network.parameters for network in networks]))


def initial_loss(config: Config, part: str) -> float:
    """Return the loss of a run's initial weights over the training or validation examples. part: train or validation."""
    task = load_task(config)
    data = task.dataset
    x, y = (data.x, data.y) if part == "train" else (data.x_validation, data.y_validation)
    network, m, total = _network([config], task).with_statistics(data.x.astype(config.dtype)), x.shape[-1], 0.0
    with np.errstate(all="ignore"):
        for start in range(0, m, EVALUATION_BATCH):
            batch = slice(start, start + EVALUATION_BATCH)
            logits, _ = network.forward(x[:, batch].astype(config.dtype))
            target = task.loss.target(y[..., batch], task.units, logits.dtype)
            total += float(task.loss.value_and_gradient(logits, target)[0][0]) * logits.shape[-1]
    return total / m


def _orders(configs: Sequence[Config], m: int) -> Iterator[Array]:
    """Yield the order of the m examples in each epoch: (m,) where all configs have the same seed, else (lanes, m)."""
    seeds = [config.seed for config in configs]
    orders_by_seed = {seed: reshuffled(np.random.default_rng(seed).spawn(2)[1], m) for seed in dict.fromkeys(seeds)}
    if len(orders_by_seed) == 1:
        return orders_by_seed[seeds[0]]
    indices = [list(orders_by_seed).index(seed) for seed in seeds]
    return (np.stack(orders)[indices] for orders in zip(*orders_by_seed.values(), strict=True))


def optimizer_of(configs: Sequence[Config], layout: Layout) -> Optimizer:
    """Return the optimizer. Each lane has its own weight decay, momentum, and learning rate, one or one for every parameter."""
    optimizer_configs, network_configs = [config.optimizer for config in configs], [config.network for config in configs]
    rule = OPTIMIZERS[optimizer_configs[0].name]
    values = {
        "learning_rate": np.array([optimizer.learning_rate for optimizer in optimizer_configs]),
        "weight_decay": np.array([optimizer.weight_decay for optimizer in optimizer_configs]),
    }
    if any(optimizer.block_rates for optimizer in optimizer_configs):
        values["learning_rate"] = layout.of_blocks(
            np.array([optimizer.block_rates or [optimizer.learning_rate] * layout.depth for optimizer in optimizer_configs])
        )
    if any(network.parametrization != "standard" or network.gamma is not None for network in network_configs):
        factors = [
            rate_factors(layout, network.kind, rule.scale_free, network.parametrization, network.gamma)
            for network in network_configs
        ]
        rates = values["learning_rate"].reshape(len(configs), -1)
        values["learning_rate"] = rates * np.stack(factors)
    if issubclass(rule, Momentum):
        values["momentum"] = np.array(
            [DEFAULT_MOMENTUM if optimizer.momentum is None else optimizer.momentum for optimizer in optimizer_configs]
        )
    return rule(**values)


def _outcome(history: History, task: Task) -> str:
    if history.diverged_step >= 0:
        return "diverged"
    return "stuck" if history.measures["loss/train"][-1] > STUCK_ABOVE * task.constant_loss else "trained"
