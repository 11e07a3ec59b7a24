"""Sweepers that draw their jobs from a space: at random, or by Optuna, which learns from the jobs that are trained."""

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

# Optuna's samplers by name: Parzen estimators (Bergstra et al. 2011), low-discrepancy points, and independent random points.
SAMPLERS = {"tpe": "TPESampler", "qmc": "QMCSampler", "random": "RandomSampler"}


@dataclass
class RandomSweeperConf:
    """The config of the random sweeper.

    n_trials: the number of jobs. Each axis is drawn independently and uniformly, log-uniformly where it has the tag `log`.
    seed: of the random numbers; more trials of the same seed begin with the same jobs. params: see CheckedSweeperConf.
    """

    _target_: str = "hydra_plugins.depth_laboratory.search.RandomSweeper"
    n_trials: int = 100
    seed: int = 0
    params: dict[str, str] | None = field(default_factory=dict)


@dataclass
class OptunaSweeperConf(RandomSweeperConf):
    """The config of the Optuna sweeper.

    n_trials, params: see RandomSweeperConf. seed: of the sampler. sampler: tpe, qmc or random.
    batch_size: the number of jobs that are drawn and trained before Optuna gets their results.
    """

    _target_: str = "hydra_plugins.depth_laboratory.search.OptunaSweeper"
    batch_size: int = 16
    sampler: str = "tpe"


for _name, _conf in (("random", RandomSweeperConf), ("optuna", OptunaSweeperConf)):
    ConfigStore.instance().store(group="hydra/sweeper", name=_name, node=_conf, provider="depth_laboratory")


class RandomSweeper(CheckedSweeper):
    """Sweeps `n_trials` random jobs of a space. All jobs are drawn and checked before the first one is trained."""

    def __init__(self, n_trials: int, seed: int, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.n_trials, self.seed = n_trials, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the sweeper; Hydra calls this before `sweep`. Raises HydraException for bad values of its config."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self.task_sweep is None:
            raise HydraException("this sweeper is for experiments.train")
        self._check_at_least("n_trials", self.n_trials, 1)
        self._check_at_least("seed", self.seed, 0)

    def _check_at_least(self, key: str, value: int, minimum: int) -> None:
        if value < minimum:
            raise HydraException(f"hydra.sweeper.{key} is {value}, it must be at least {minimum}")

    def span_jobs(self, composer: "Composer", typed_overrides: Sequence[Override]) -> list[list[str]]:
        """Draw the jobs; return the overrides of each."""
        import numpy as np

        space = self.space(composer, typed_overrides)
        quantiles = np.random.default_rng(self.seed).random((self.n_trials, len(space.axes)))
        return [
            space.job([axis.value_at(quantile) for axis, quantile in zip(space.axes, row, strict=True)])
            for row in quantiles.tolist()
        ]

    def space(self, composer: "Composer", typed_overrides: Sequence[Override]) -> "Space":
        """Return the space from which the jobs are drawn."""
        from hydra_plugins.depth_laboratory._space import create_space

        return create_space(composer, {str(key): str(values) for key, values in self.params.items()}, typed_overrides)


class OptunaSweeper(RandomSweeper):
    """Sweeps the jobs that Optuna proposes, batch by batch, under one parent run. Optuna gets the result of every job.

    The same command proposes the same jobs again, since their results have the same bits: an interrupted search is resumed.
    """

    def __init__(self, n_trials: int, seed: int, batch_size: int, sampler: str, params: dict[str, str] | None = None) -> None:
        super().__init__(n_trials, seed, params)
        self.batch_size, self.sampler = batch_size, sampler

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See `RandomSweeper.setup`."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._check_at_least("batch_size", self.batch_size, 1)
        if self.sampler not in SAMPLERS:
            raise HydraException(f"hydra.sweeper.sampler {self.sampler!r} is unknown, allowed: {', '.join(SAMPLERS)}")
        try:
            import optuna
        except ImportError:
            raise HydraException("hydra/sweeper=optuna is not installed: pip install 'depth-laboratory[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that Optuna proposes; return their JobReturns, batch by batch."""
        composer = self.composer()
        space = self.space(composer, composer.parser.parse_overrides(arguments))
        search_identity = f"{space} {self.sampler} {self.seed} {self.n_trials} {self.batch_size}", self.n_trials
        # The ends of every axis are checked before the first job is trained.
        study = self._study(self.check_jobs(composer, space.end_jobs(), *search_identity).direction)
        batches: list[Sequence[JobReturn]] = []
        results: dict[tuple[str, ...], float] = {}
        with contextlib.ExitStack() as exit_stack:
            sweep_context: Any = None
            while (n_left := self.n_trials - len(study.trials)) > 0:
                trials = [study.ask() for _ in range(min(self.batch_size, n_left))]
                proposals = [tuple(space.job([_suggest(trial, axis) for axis in space.axes])) for trial in trials]
                new_jobs = [list(job) for job in dict.fromkeys(proposals) if job not in results]
                if sweep_context is None:
                    sweep_context = exit_stack.enter_context(
                        self.open_sweep(composer, self.check_jobs(composer, new_jobs, *search_identity))
                    )
                elif new_jobs:
                    sweep_context.extend(composer.tasks(new_jobs, first=len(results)))
                if new_jobs:
                    batches.append(self.launch_batch(sweep_context, new_jobs, len(results)))
                    results |= {
                        tuple(job): float(job_return.return_value) for job, job_return in zip(new_jobs, batches[-1], strict=True)
                    }
                for trial, job in zip(trials, proposals, strict=True):
                    study.tell(trial, results[job])
        return batches

    def _study(self, direction: Any) -> Any:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = getattr(optuna.samplers, SAMPLERS[self.sampler])(seed=self.seed)
        return optuna.create_study(sampler=sampler, direction=direction)


def _suggest(trial: Any, axis: "Axis") -> str:
    """Let a trial of Optuna's choose a value of the axis; return it as text for an override."""
    if axis.values:
        return str(trial.suggest_categorical(axis.key, axis.values))
    if axis.is_integer:
        return axis.as_override(trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.log))
    return axis.as_override(trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log))
