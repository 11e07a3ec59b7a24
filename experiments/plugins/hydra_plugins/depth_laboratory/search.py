"""Sweepers that draw their jobs from a space: at random, or by Optuna, which learns from those that are trained."""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.depth_laboratory.sweeper import CheckedSweeper
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra_plugins.depth_laboratory._composer import Composer
    from hydra_plugins.depth_laboratory._space import Axis, Space

# Names of Optuna's samplers: Parzen estimators (Bergstra et al. 2011), low-discrepancy points, and none of these.
SAMPLERS = {"tpe": "TPESampler", "qmc": "QMCSampler", "random": "RandomSampler"}


@dataclass
class RandomSweeperConf:
    """n_trials: how many jobs are drawn, each axis by itself and evenly, of its logarithm where it has the tag `log`.
    seed: of what is drawn; more trials of the same seed begin with the same ones. params: as of the checked sweeper.
    """

    _target_: str = "hydra_plugins.depth_laboratory.search.RandomSweeper"
    n_trials: int = 100
    seed: int = 0
    params: dict[str, str] | None = field(default_factory=dict)


@dataclass
class OptunaSweeperConf(RandomSweeperConf):
    """n_trials, params: as of the random sweeper. seed: of the sampler. sampler: tpe, qmc or random.
    batch_size: so many jobs are drawn, and trained, before Optuna is told of them.
    """

    _target_: str = "hydra_plugins.depth_laboratory.search.OptunaSweeper"
    batch_size: int = 16
    sampler: str = "tpe"


for _name, _conf in (("random", RandomSweeperConf), ("optuna", OptunaSweeperConf)):
    ConfigStore.instance().store(group="hydra/sweeper", name=_name, node=_conf, provider="depth_laboratory")


class RandomSweeper(CheckedSweeper):
    """Sweeps `n_trials` jobs of a space, all of which are drawn, and checked, before the first is trained."""

    def __init__(self, n_trials: int, seed: int, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.n_trials, self.seed = n_trials, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`; raises HydraException for what cannot be."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self.sweep_of_task is None:
            raise HydraException("this sweeper is for experiments.train")
        self._check("n_trials", self.n_trials, 1)
        self._check("seed", self.seed, 0)

    def _check(self, key: str, value: int, least: int) -> None:
        if value < least:
            raise HydraException(f"hydra.sweeper.{key} is {value}, it must be at least {least}")

    def spanned(self, composer: "Composer", typed: Sequence[Override]) -> list[list[str]]:
        """The overrides of every job."""
        import numpy as np

        space = self.space(composer, typed)
        shares = np.random.default_rng(self.seed).random((self.n_trials, len(space.axes)))
        return [space.job([axis.at(share) for axis, share in zip(space.axes, row, strict=True)]) for row in shares.tolist()]

    def space(self, composer: "Composer", typed: Sequence[Override]) -> "Space":
        """What is drawn from."""
        from hydra_plugins.depth_laboratory._space import space_of

        return space_of(composer, {str(key): str(values) for key, values in self.params.items()}, typed)


class OptunaSweeper(RandomSweeper):
    """Sweeps what Optuna proposes, batch by batch, under one parent run; what it is told of a job is the job's result.

    The same command proposes the same again, as its results have the same bits: a search that was cut off is resumed.
    """

    def __init__(self, n_trials: int, seed: int, batch_size: int, sampler: str, params: dict[str, str] | None = None) -> None:
        super().__init__(n_trials, seed, params)
        self.batch_size, self.sampler = batch_size, sampler

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As the random sweeper's."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._check("batch_size", self.batch_size, 1)
        if self.sampler not in SAMPLERS:
            raise HydraException(f"hydra.sweeper.sampler {self.sampler!r} is unknown, allowed: {', '.join(SAMPLERS)}")
        try:
            import optuna
        except ImportError:
            raise HydraException("hydra/sweeper=optuna is not installed: pip install 'depth-laboratory[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that Optuna proposes; what each has returned, batch by batch."""
        composer = self.composer()
        space = self.space(composer, composer.parser.parse_overrides(arguments))
        search = f"{space} {self.sampler} {self.seed} {self.n_trials} {self.batch_size}", self.n_trials
        # What can be proposed is checked before the first is trained.
        study = self._study(self.checked(composer, space.ends(), *search).direction)
        returns: list[Sequence[JobReturn]] = []
        results: dict[tuple[str, ...], float] = {}
        with contextlib.ExitStack() as entered:
            around: Any = None
            while (left := self.n_trials - len(study.trials)) > 0:
                trials = [study.ask() for _ in range(min(self.batch_size, left))]
                proposed = [tuple(space.job([_suggested(trial, axis) for axis in space.axes])) for trial in trials]
                new = [list(job) for job in dict.fromkeys(proposed) if job not in results]
                if around is None:
                    around = entered.enter_context(self.around(composer, self.checked(composer, new, *search)))
                elif new:
                    around.extend(composer.tasks(new, first=len(results)))
                if new:
                    returns.append(self.launched(around, new, len(results)))
                    results |= {tuple(job): float(ended.return_value) for job, ended in zip(new, returns[-1], strict=True)}
                for trial, job in zip(trials, proposed, strict=True):
                    study.tell(trial, results[job])
        return returns

    def _study(self, direction: Any) -> Any:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = getattr(optuna.samplers, SAMPLERS[self.sampler])(seed=self.seed)
        return optuna.create_study(sampler=sampler, direction=direction)


def _suggested(trial: Any, axis: "Axis") -> str:
    """The value that a trial of Optuna's has of an axis, as an override has it."""
    if axis.values:
        return str(trial.suggest_categorical(axis.key, axis.values))
    if axis.whole:
        return axis.written(trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.log))
    return axis.written(trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log))
