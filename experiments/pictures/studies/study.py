"""A study: a sweep's measurements with the theory drawn over them, and one line that says whether it holds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from blocks.history import History
from blocks.theory import MeanField, weight_variance
from experiments.run.config import Config, UserError

if TYPE_CHECKING:
    from experiments.record.reading import RecordedRun

# Where L / n is above it, norms fluctuate from network to network as much as they change: their logarithm has a variance of
# the order of L / n (Hanin and Nica 2019).
NARROW = 0.25


@dataclass(frozen=True, eq=False)
class Observed:
    """A run of the sweep. recorded: where its history is read from, when it is asked for."""

    config: Config
    outcome: str
    recorded: "RecordedRun"

    @property
    def history(self) -> History:
        """Read anew each time: a thousand of them would fill the memory."""
        return self.recorded.files().history

    @property
    def theory(self) -> MeanField:
        """The mean field of its network."""
        network = self.config.network
        return mean_field(network.activation, weight_variance(network.initializer, network.gain), network.bias_variance)


@dataclass(frozen=True)
class Verdict:
    """holds: None where there is nothing to hold."""

    text: str
    holds: bool | None

    def __str__(self) -> str:
        return {True: "holds: ", False: "does not hold: ", None: ""}[self.holds] + self.text


@dataclass(frozen=True)
class Study:
    """draw: of a sweep's runs, picture and verdict. needs: what a config must have for it: raises UserError."""

    draw: Callable[[Sequence[Observed]], tuple[Figure, Verdict]]
    needs: Callable[[Config], None]


@cache
def mean_field(activation: str, weight_variance: float, bias_variance: float) -> MeanField:
    """One for all runs that share it: its fixed points take a second."""
    return MeanField(activation, weight_variance, bias_variance)


def require(study: str, config: Config, *wanted: tuple[str, bool, str]) -> None:
    """Raise UserError for the first of (key, whether its value will do, what it must be) that will not."""
    for key, fits, must in wanted:
        if not fits:
            value: object = asdict(config)
            for name in key.split("."):
                value = value[name]  # type: ignore[index]
            raise UserError(f"{key} is {value!r}, but sweep.study {study} needs {must}")


def grouped(runs: Sequence[Observed], *keys: str) -> dict[tuple, list[Observed]]:
    """Values of those keys -> the runs that have them, in ascending order."""

    def values(run: Observed) -> tuple:
        parts = [key.split(".") for key in keys]
        return tuple(getattr(getattr(run.config, part[0]), part[1]) if len(part) > 1 else run.config.seed for part in parts)

    groups: dict[tuple, list[Observed]] = {}
    for run in runs:
        groups.setdefault(values(run), []).append(run)
    return dict(sorted(groups.items()))


def largest_rate(runs: Sequence[Observed]) -> float:
    """The largest learning rate up to which all of these runs, one a rate, have trained; 0 where the smallest has not."""
    largest = 0.0
    for run in sorted(runs, key=lambda run: run.config.optimizer.learning_rate):
        if run.outcome != "trained":
            break
        largest = run.config.optimizer.learning_rate
    return largest


def narrow(runs: Sequence[Observed]) -> str:
    """The warning of a width that is too small for the theory, "" where it is not."""
    network = max((run.config.network for run in runs), key=lambda network: network.depth / network.width)
    if network.depth / network.width <= NARROW:
        return ""
    return f"; warning: the theory is of wide blocks, width {network.width} is narrow at depth {network.depth}"


def plain(study: str, config: Config) -> None:
    """Raise UserError unless the network is a plain one."""
    require(study, config, ("network.kind", config.network.kind == "plain", "plain: the theory is of plain networks"))


def full_batch(study: str, *rules: str) -> Callable[[Config], None]:
    """What raises UserError unless the training is full-batch with one learning rate; rules: names, gradient_descent alone."""
    allowed = rules or ("gradient_descent",)

    def needs(config: Config) -> None:
        optimizer = config.optimizer
        require(
            study,
            config,
            ("training.batch_size", config.training.batch_size is None, "null, all examples"),
            ("optimizer.name", optimizer.name in allowed, ", ".join(allowed)),
            ("optimizer.schedule", optimizer.schedule == "constant", "constant"),
            ("optimizer.warmup", study == "warm_up" or optimizer.warmup == 0, "0"),
            ("optimizer.weight_decay", optimizer.weight_decay == 0, "0"),
            ("optimizer.block_rates", optimizer.block_rates is None, "null"),
            ("network.parametrization", config.network.parametrization == "standard", "standard, one rate"),
            ("network.gamma", config.network.gamma is None, "null, one rate"),
        )

    return needs
