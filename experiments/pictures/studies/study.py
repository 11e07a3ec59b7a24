"""A study: the measurements of a sweep drawn with the theory, and one line that says whether the theory holds."""

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

# Above this L / n, norms differ between random networks as much as they change from block to block: the variance of their
# logarithm is of the order of L / n (Hanin and Nica 2019).
MAX_DEPTH_OVER_WIDTH = 0.25


@dataclass(frozen=True, eq=False)
class ObservedRun:
    """A run of the sweep. record: where its history is read from at each access."""

    config: Config
    outcome: str
    record: "RecordedRun"

    @property
    def history(self) -> History:
        """The history, which is read at every access, since a thousand histories would fill the memory."""
        return self.record.files().history

    @property
    def theory(self) -> MeanField:
        """The mean-field theory of the run's network."""
        network = self.config.network
        return mean_field(network.activation, weight_variance(network.initializer, network.gain), network.bias_variance)


@dataclass(frozen=True)
class Verdict:
    """The result of a study. holds: whether the theory holds, None where the study tests no theory."""

    text: str
    holds: bool | None

    def __str__(self) -> str:
        return {True: "holds: ", False: "does not hold: ", None: ""}[self.holds] + self.text


@dataclass(frozen=True)
class Study:
    """One study.

    draw: returns the figure and the verdict of a sweep's runs. check: raises UserError where a config does not meet the study's
    requirements.
    """

    draw: Callable[[Sequence[ObservedRun]], tuple[Figure, Verdict]]
    check: Callable[[Config], None]


@cache
def mean_field(activation: str, weight_variance: float, bias_variance: float) -> MeanField:
    """Return the theory of those variances. Runs share it, since its fixed points take a second to compute."""
    return MeanField(activation, weight_variance, bias_variance)


def require(study: str, config: Config, *requirements: tuple[str, bool, str]) -> None:
    """Raise UserError for the first requirement (key, whether it is met, what the value must be) that is not met."""
    for key, is_met, requirement in requirements:
        if not is_met:
            value: object = asdict(config)
            for name in key.split("."):
                value = value[name]  # type: ignore[index]
            raise UserError(f"{key} is {value!r}, but sweep.study {study} needs {requirement}")


def group_runs(runs: Sequence[ObservedRun], *keys: str) -> dict[tuple, list[ObservedRun]]:
    """Return the runs by their values of those keys, in ascending order."""

    def values(run: ObservedRun) -> tuple:
        parts = [key.split(".") for key in keys]
        return tuple(getattr(getattr(run.config, part[0]), part[1]) if len(part) > 1 else run.config.seed for part in parts)

    groups: dict[tuple, list[ObservedRun]] = {}
    for run in runs:
        groups.setdefault(values(run), []).append(run)
    return dict(sorted(groups.items()))


def largest_rate(runs: Sequence[ObservedRun]) -> float:
    """Return the largest learning rate up to which all runs have trained; 0 where the run of the smallest rate has not.

    runs: one run for each rate.
    """
    largest = 0.0
    for run in sorted(runs, key=lambda run: run.config.optimizer.learning_rate):
        if run.outcome != "trained":
            break
        largest = run.config.optimizer.learning_rate
    return largest


def narrow_warning(runs: Sequence[ObservedRun]) -> str:
    """Return a warning where the width is too small for the theory, "" otherwise."""
    network = max((run.config.network for run in runs), key=lambda network: network.depth / network.width)
    if network.depth / network.width <= MAX_DEPTH_OVER_WIDTH:
        return ""
    return f"; warning: the theory is of wide blocks, width {network.width} is narrow at depth {network.depth}"


def require_plain(study: str, config: Config) -> None:
    """Raise UserError unless the network is a plain one."""
    require(study, config, ("network.kind", config.network.kind == "plain", "plain: the theory is of plain networks"))


def full_batch_check(study: str, *rules: str) -> Callable[[Config], None]:
    """Return a check that raises UserError unless the training is full-batch with one learning rate.

    rules: names of allowed optimizers; gradient_descent where none is given.
    """
    allowed = rules or ("gradient_descent",)

    def check(config: Config) -> None:
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

    return check
