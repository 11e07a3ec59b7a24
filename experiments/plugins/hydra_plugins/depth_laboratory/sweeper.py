"""A sweeper like Hydra's basic one that lets the task check every job before anything is created."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write


@dataclass
class CheckedSweeperConf(BasicSweeperConf):
    """As the basic sweeper: `params` maps a key to its values, separated by commas."""

    _target_: str = "hydra_plugins.depth_laboratory.sweeper.CheckedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="depth_laboratory")


class CheckedSweeper(BasicSweeper):
    """Sweeps a task function that has a `sweep` attribute, a context manager around the launch of all jobs:

        with task_function.sweep(configs, folder) as sweep:
            sweep.results = returned values, one a job

    It is entered after every job's config is composed and before the first folder is made; what it raises stops the sweep.
    Other task functions are swept as by Hydra's basic sweeper.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.around = getattr(task_function, "sweep", None)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that the overrides span, as Hydra's basic sweeper does."""
        if self.around is None:
            return super().sweep(arguments)
        assert self.config is not None
        assert self.hydra_context is not None
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        with self.around([self._composed(job) for job in jobs], str(self.config.hydra.sweep.dir)) as around:
            batches = super().sweep(arguments)
            around.results = [job.return_value for batch in batches for job in batch]
        return batches

    def _composed(self, overrides: list[str]) -> DictConfig:
        """The job's config as its task function will see it, without Hydra's own part."""
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composed already, where there is something to check."""
        if self.around is None:
            super().validate_batch_is_legal(batch)
