"""A sweeper like Hydra's basic one that composes every job once and lets the task check all before anything is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class CheckedSweeperConf(BasicSweeperConf):
    """As the basic sweeper: `params` maps a key to its values, separated by commas."""

    _target_: str = "hydra_plugins.depth_laboratory.sweeper.CheckedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="depth_laboratory")


class CheckedSweeper(BasicSweeper):
    """Sweeps a task function that has a `sweep` attribute, a context manager around the launch of all jobs:

        around = task_function.sweep(configs, axes, folder)       # checks all configs, creates nothing if one is bad
        with around:
            around.announce()                                     # jobs are about to run, one by one, in any process
            around.results = [...]                                # what they returned, in the order of the jobs

    The stacked launcher asks `around.train_on` and `around.run` instead. Other task functions are swept as by Hydra's basic
    sweeper.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.sweep_of_task = getattr(task_function, "sweep", None)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that the overrides span, as Hydra's basic sweeper does."""
        if self.sweep_of_task is None:
            return super().sweep(arguments)
        from hydra_plugins.depth_laboratory._composer import Composer
        from hydra_plugins.depth_laboratory.launcher import StackedLauncher

        assert self.config is not None
        assert self.hydra_context is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        overrides = composer.parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        stacked = isinstance(self.launcher, StackedLauncher)
        axes = {override.get_key_element(): str(override.input_line).partition("=")[2] for override in overrides}
        sweep = self.sweep_of_task((composer.task(job) for job in jobs), axes, str(self.config.hydra.sweep.dir))
        if isinstance(self.launcher, StackedLauncher):
            sweep.train_on(self.launcher.backend, self.launcher.address)
        with sweep as around:
            if isinstance(self.launcher, StackedLauncher):
                self.launcher.around, self.launcher.composer = around, composer
            else:
                around.announce()
            batches = super().sweep(arguments)
            if not stacked:
                around.results = [job.return_value for batch in batches for job in batch]
        return batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composed already, where there is something to check."""
        if self.sweep_of_task is None:
            super().validate_batch_is_legal(batch)
