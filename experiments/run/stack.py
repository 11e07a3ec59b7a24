"""Configs that share shapes, data and batch order -> trained histories. A single run is a stack of one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from blocks.arrays import Array
from blocks.history import History
from blocks.network import Network
from blocks.optimizers import OPTIMIZERS, Momentum, Optimizer
from blocks.training import reshuffled, train
from experiments.run.config import DEFAULT_MOMENTUM, Config
from experiments.run.data import Task, task

# A network whose final loss is above this share of the best constant prediction's has learned next to nothing from x.
STUCK_ABOVE = 0.9


@dataclass(frozen=True, eq=False)
class Trained:
    """One run, trained.

    parameters: (P,) final parameters; a diverged network's are those before the step that diverged.
    outcome: trained, stuck or diverged.
    started, seconds: when its stack started (Unix time), and how long the stack took over its number of lanes.
    """

    config: Config
    history: History
    parameters: Array
    outcome: str
    started: float
    seconds: float

    def final(self, measure: str) -> float:
        """The last value of one of the history's measures; nan where the run diverged."""
        return float(self.history.measures[measure][-1])


def shared(config: Config) -> tuple[object, ...]:
    """What the lanes of a stack have in common: everything but the values that may differ by lane."""
    network, optimizer, training = config.network, config.optimizer, config.training
    return (
        repr(asdict(config.dataset)),
        (network.depth, network.width, network.activation),
        (optimizer.name, optimizer.schedule),
        repr(asdict(training)),
        (config.seed, config.dtype),
    )


def train_stack(configs: Sequence[Config], progress: Callable[[int], None] = lambda steps: None) -> list[Trained]:
    """Train runs that are equal in `shared` as the lanes of one network.

    progress: called after every epoch with the number of steps made.
    """
    first = configs[0]
    assert all(shared(config) == shared(first) for config in configs)
    of = task(first)
    started, clock = time.time(), time.perf_counter()
    network = _network(configs, of)
    order = np.random.default_rng(first.seed).spawn(2)[1]
    training = first.training
    with threadpool_limits(training.threads, user_api="blas"):
        history = train(
            network,
            of.dataset.x,
            of.dataset.y,
            loss=of.loss,
            optimizer=_optimizer(configs),
            epochs=training.epochs,
            batch_size=training.batch_size,
            orders=None if training.batch_size is None else reshuffled(order, of.dataset.x.shape[-1]),
            schedule=first.optimizer.schedule,
            validation=(of.dataset.x_validation, of.dataset.y_validation),
            evaluations=training.evaluations,
            loss_bound=training.loss_bound,
            progress=progress,
        )
    seconds = (time.perf_counter() - clock) / len(configs)
    lanes = [(config, history.lane(k), network.parameters[k].copy()) for k, config in enumerate(configs)]
    return [Trained(config, lane, theta, _outcome(lane, of), started, seconds) for config, lane, theta in lanes]


def _network(configs: Sequence[Config], of: Task) -> Network:
    """One lane a config, each with the initial weights of its own seed, initializer and gain."""

    def alone(config: Config) -> Network:
        shape = config.network
        return Network.create(
            [of.dataset.x.shape[0], *[shape.width] * (shape.depth - 1), of.units],
            shape.activation,
            shape.initializer,
            rng=np.random.default_rng(config.seed).spawn(2)[0],
            gain=shape.gain,
            bias_variance=shape.bias_variance,
            dtype=config.dtype,
        )

    networks = [alone(config) for config in configs]
    parameters = np.stack([network.parameters for network in networks])
    return Network(networks[0].layout.sizes, configs[0].network.activation, parameters)


def _optimizer(configs: Sequence[Config]) -> Optimizer:
    """The rule, with one learning rate, weight decay and momentum a lane."""
    rules = [config.optimizer for config in configs]
    rule = OPTIMIZERS[rules[0].name]
    values = {
        "learning_rate": np.array([r.learning_rate for r in rules]),
        "weight_decay": np.array([r.weight_decay for r in rules]),
    }
    if issubclass(rule, Momentum):
        values["momentum"] = np.array([DEFAULT_MOMENTUM if r.momentum is None else r.momentum for r in rules])
    return rule(**values)


def _outcome(history: History, of: Task) -> str:
    if history.diverged_step >= 0:
        return "diverged"
    return "stuck" if history.measures["loss/train"][-1] > STUCK_ABOVE * of.constant_loss else "trained"
