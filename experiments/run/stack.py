"""Configs that share shapes and data -> trained histories. A single run is a stack of one."""

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
# Examples whose caches are held together.
AT_ONCE = 1024
STACK_BYTES, LANES = 4 * 2**20, (4, 16)


@dataclass(frozen=True, eq=False)
class Trained:
    """One run, trained.

    parameters: (P,) final parameters; a diverged network's are those before the step that diverged.
    outcome: trained, stuck, diverged, or stopped, at that rung, see `run.halving`.
    started, ended: of its stack, Unix time in seconds.
    environment: of the process that trained it.
    """

    config: Config
    history: History
    parameters: Array
    outcome: str
    started: float
    ended: float
    environment: dict[str, str]
    rung: int = 0

    def final(self, measure: str) -> float:
        """The last value of one of the history's measures; nan where the run diverged, or was stopped."""
        return self.history.final(measure)


def shared(config: Config) -> tuple[object, ...]:
    """What the lanes of a stack have in common: everything but the values that may differ by lane."""
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
) -> list[Trained]:
    """Train runs that are equal in `shared` as the lanes of one network, and return them in the order of their configs.

    task: what `load_task` returns for the runs; None loads it here.
    watch, until: see `blocks.train`. A run that ends before its last epoch has the outcome `stopped`.
    """
    first = configs[0]
    assert all(shared(config) == shared(first) for config in configs)
    task = task or load_task(first)
    started = time.time()
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
    ended = time.time()
    lanes = [(config, history.lane(k), network.parameters[k].copy()) for k, config in enumerate(configs)]
    is_whole = until in (None, training.epochs)
    outcomes = [_outcome(lane, task) if is_whole or lane.diverged_step >= 0 else STOPPED for _, lane, _ in lanes]
    return [
        Trained(config, lane, theta, outcome, started, ended, environment())
        for (config, lane, theta), outcome in zip(lanes, outcomes, strict=True)
    ]


def every_few_seconds(report: Callable[[History], None]) -> Watch:
    """A `watch` for `blocks.train` that reports the history so far, but not after every epoch of a quick training."""
    reported = time.monotonic()

    def watch(step: int, history: Callable[[], History]) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            report(history())
            reported = time.monotonic()

    return watch


def train_reporting(configs: Sequence[Config], task: Task, file: Path, until: int | None = None) -> list[Trained]:
    """`train_stack` in another process: every few seconds the history so far is written to `file`, whole or not at all."""

    def report(history: History) -> None:
        unfinished = file.with_suffix(".part.npz")
        history.save(unfinished)
        unfinished.replace(file)

    return train_stack(configs, task, every_few_seconds(report), until)


def plan(configs: Sequence[Config], tasks: Sequence[Task], size: int | None = None, most: int = LANES[1]) -> list[list[int]]:
    """Indices of the configs as stacks, the one with most work first.

    size: lanes a stack; None takes as many as keep what a step touches in the processor's cache, and `most` at most.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    # Lanes of one seed side by side: where all of a stack have one order of the batches, they share these.
    for index in sorted(range(len(configs)), key=lambda index: configs[index].seed):
        groups.setdefault(shared(configs[index]), []).append(index)
    stacks: list[list[int]] = []
    for group in groups.values():
        first = group[0]
        config, task = configs[first], tasks[first]
        m = config.training.batch_size or task.dataset.x.shape[-1]
        lanes = size or suitable_lanes(Layout(sizes(config, task)), m, config.dtype, most)
        parts = -(-len(group) // lanes)
        stacks += [list(part) for part in np.array_split(group, parts)]
    return sorted(stacks, key=lambda stack: -work(configs[stack[0]], tasks[stack[0]]) * len(stack))


def work(config: Config, task: Task) -> float:
    """Multiplications of a run's products, roughly: what its time is proportional to."""
    return 3.0 * Layout(sizes(config, task)).size * task.dataset.x.shape[-1] * config.training.epochs


def steps_of(config: Config, task: Task) -> int:
    """T, the number of updates."""
    m = task.dataset.x.shape[-1]
    return config.training.epochs * -(-m // (config.training.batch_size or m))


def sizes(config: Config, task: Task) -> list[int]:
    """n_0, ..., n_L"""
    return [task.dataset.x.shape[0], *[config.network.width] * (config.network.depth - 1), task.units]


def count_parameters(config: Config, task: Task) -> int:
    """P. Counted without a list of the sizes, which of 10^9 blocks would have no room either."""
    width, depth, n = config.network.width, config.network.depth, task.dataset.x.shape[0]
    if depth == 1:
        return task.units * (n + 1)
    return width * (n + 1) + task.units * (width + 1) + (depth - 2) * width * (width + 1)


def check_size(config: Config, task: Task) -> None:
    """Raise UserError where the training does not fit the machine's memory, where a network has fewer parameters than eigenvalues
    are asked for, or a training fewer updates than its warm-up.
    """
    network, training, width = config.network, config.training, config.network.width
    n, m = task.dataset.x.shape
    hidden, parameters = width * (network.depth - 1), count_parameters(config, task)
    history = steps_of(config, task) * (2 * network.depth + 1)
    numbers = 3 * parameters + 2 * (n + hidden + task.units) * (training.batch_size or m) + history
    check_memory(
        f"network.depth is {network.depth}, network.width {width} and training.epochs {training.epochs}",
        numbers * np.dtype(config.dtype).itemsize + instruments_bytes(config, task),
    )
    asked = config.instruments.eigenvalues
    if asked > parameters:
        raise UserError(f"instruments.eigenvalues is {asked}, it must be 1 to {parameters}, the parameters")
    try:
        rate_schedule(config.optimizer.schedule, config.optimizer.warmup, steps_of(config, task))
    except ValueError as error:
        raise UserError(f"optimizer.{error}") from None


def instruments_bytes(config: Config, task: Task) -> int:
    """What histograms and parameters, measured at scheduled steps, take at most."""
    depth, steps, asked = config.network.depth, steps_of(config, task), schedules(config)
    sizes = {
        "signals": depth * (8 * len(NUMBERS) + 4 * sum(len(bins.edges) - 1 for bins in BINS.values())),
        "parameters": count_parameters(config, task) * np.dtype(config.dtype).itemsize,
    }
    times = {name: LOG_POINTS if schedule == LOG else -(-steps // int(schedule)) for name, schedule in asked.items()}
    return sum(size * times.get(name, 0) for name, size in sizes.items())


def suitable_lanes(layout: Layout, m: int, dtype: str, most: int = LANES[1]) -> int:
    """As many lanes as keep what a step of m examples touches in the processor's cache; within LANES, and `most` at most."""
    # Measured at width 64, depth 2 to 33: a stack is fastest while its parameters, gradients and caches take about
    # this much; below 4 lanes the calls of NumPy alone cost more than the cache saves.
    touched = (3 * layout.size + 2 * sum(layout.sizes) * m) * np.dtype(dtype).itemsize
    return int(np.clip(STACK_BYTES // touched, LANES[0], most))


def _network(configs: Sequence[Config], task: Task) -> Network:
    """One lane a config, each with the initial weights of its own seed, initializer and gain."""

    def alone(config: Config) -> Network:
        shape = config.network
        return Network.create(
            sizes(config, task),
            shape.activation,
            shape.initializer,
            rng=np.random.default_rng(config.seed).spawn(2)[0],
            gain=shape.gain,
            bias_variance=shape.bias_variance,
            dtype=config.dtype,
            kind=shape.kind,
            parametrization=shape.parametrization,
            gamma=shape.gamma,
        )

    networks = [alone(config) for config in configs]
    return networks[0].with_parameters(np.stack([network.parameters for network in networks]))


def initial_loss(config: Config, part: str) -> float:
    """The loss of the run's initial weights over the training or validation examples; part: train or validation."""
    task = load_task(config)
    data = task.dataset
    x, y = (data.x, data.y) if part == "train" else (data.x_validation, data.y_validation)
    network, m, total = _network([config], task).with_statistics(data.x.astype(config.dtype)), x.shape[-1], 0.0
    with np.errstate(all="ignore"):
        for start in range(0, m, AT_ONCE):
            batch = slice(start, start + AT_ONCE)
            logits, _ = network.forward(x[:, batch].astype(config.dtype))
            target = task.loss.target(y[..., batch], task.units, logits.dtype)
            total += float(task.loss.value_and_gradient(logits, target)[0][0]) * logits.shape[-1]
    return total / m


def _orders(configs: Sequence[Config], m: int) -> Iterator[Array]:
    """The order of m examples in each epoch: (lanes, m), each lane's of its own seed, or (m,) where all have one seed."""
    seeds = [config.seed for config in configs]
    series = {seed: reshuffled(np.random.default_rng(seed).spawn(2)[1], m) for seed in dict.fromkeys(seeds)}
    if len(series) == 1:
        return series[seeds[0]]
    places = [list(series).index(seed) for seed in seeds]
    return (np.stack(orders)[places] for orders in zip(*series.values(), strict=True))


def optimizer_of(configs: Sequence[Config], layout: Layout) -> Optimizer:
    """The rule, with one learning rate (or one a parameter), weight decay and momentum a lane."""
    rules, networks = [config.optimizer for config in configs], [config.network for config in configs]
    rule = OPTIMIZERS[rules[0].name]
    values = {
        "learning_rate": np.array([r.learning_rate for r in rules]),
        "weight_decay": np.array([r.weight_decay for r in rules]),
    }
    if any(r.block_rates for r in rules):
        values["learning_rate"] = layout.of_blocks(np.array([r.block_rates or [r.learning_rate] * layout.depth for r in rules]))
    if any(n.parametrization != "standard" or n.gamma is not None for n in networks):
        factors = [rate_factors(layout, n.kind, rule.scale_free, n.parametrization, n.gamma) for n in networks]
        rates = values["learning_rate"].reshape(len(configs), -1)
        values["learning_rate"] = rates * np.stack(factors)
    if issubclass(rule, Momentum):
        values["momentum"] = np.array([DEFAULT_MOMENTUM if r.momentum is None else r.momentum for r in rules])
    return rule(**values)


def _outcome(history: History, task: Task) -> str:
    if history.diverged_step >= 0:
        return "diverged"
    return "stuck" if history.measures["loss/train"][-1] > STUCK_ABOVE * task.constant_loss else "trained"
