"""A sweeper like Hydra's basic one that composes every job once and lets the task check all before anything is made."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from hydra_plugins.depth_laboratory._composer import Composer


@dataclass
class CheckedSweeperConf(BasicSweeperConf):
    """As the basic sweeper: `params` maps a key to its values, separated by commas."""

    _target_: str = "hydra_plugins.depth_laboratory.sweeper.CheckedSweeper"
    # Not null: a key may be added to it.
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="depth_laboratory")


class CheckedSweeper(BasicSweeper):
    """Sweeps a task function that has a `sweep` attribute, a context manager around the launch of all jobs:

        around = task_function.sweep(jobs, folder)                # checks all jobs, creates nothing if one is bad
        around.distinct                                           # numbers of the jobs that are not an earlier one again
        around.check_launch(launcher, batch)                      # "" where all jobs are launched as stacks, batch by batch
        with around:
            around.announce()                                     # jobs are about to run, one by one, in any process
            around.results = [...]                                # what they returned, in the order of the jobs

    jobs: (config, output folder) of each, in its own context. The stacked launcher asks `around.train_on` and `around.run`
    instead of `announce`. Other task functions are swept as by Hydra's basic sweeper.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`; raises HydraException for a size of batches that cannot be."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.sweep_of_task = getattr(task_function, "sweep", None)
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise HydraException(f"hydra.sweeper.max_batch_size is {self.max_batch_size}, it must be null or at least 1")

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that the overrides span; what each has returned, batch by batch."""
        if self.sweep_of_task is None:
            return super().sweep(arguments)
        from hydra_plugins.depth_laboratory._axes import span
        from hydra_plugins.depth_laboratory._composer import Composer
        from hydra_plugins.depth_laboratory.launcher import StackedLauncher

        assert self.config is not None
        assert self.hydra_context is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        params = {str(key): str(values) for key, values in self.params.items()}
        jobs = span(composer, params, composer.parser.parse_overrides(arguments))
        if not jobs:
            raise HydraException(f"{' '.join(arguments)} has no job: an axis has no value")
        jobs, sweep = self._checked(composer, jobs)
        is_stacked = isinstance(self.launcher, StackedLauncher)
        sweep.check_launch("" if is_stacked else type(self.launcher).__name__, self.max_batch_size)
        if isinstance(self.launcher, StackedLauncher):
            sweep.train_on(self.launcher.backend, self.launcher.address)
        with sweep as around:
            if isinstance(self.launcher, StackedLauncher):
                self.launcher.around, self.launcher.composer = around, composer
                return self._launch(jobs)
            around.announce()
            batches = self._launch(jobs)
            around.results = [job.return_value for batch in batches for job in batch]
        return batches

    def _checked(self, composer: "Composer", jobs: list[list[str]]) -> tuple[list[list[str]], Any]:
        """The jobs without those that are another one again, and the task's context around them."""
        assert self.config is not None
        assert self.sweep_of_task is not None
        folder = str(self.config.hydra.sweep.dir)
        with contextlib.closing(composer.tasks(jobs)) as tasks:
            sweep = self.sweep_of_task(tasks, folder)
        if len(sweep.distinct) == len(jobs):
            return jobs, sweep
        print(f"{len(jobs)} jobs are {len(sweep.distinct)} different runs: each is trained once")
        # Checked again, since a job's config may depend on its number.
        return self._checked(composer, [jobs[number] for number in sweep.distinct])

    def _launch(self, jobs: list[list[str]]) -> list[Sequence[JobReturn]]:
        """As Hydra's basic sweeper does; raises what a job raised."""
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
            for job in returns[-1]:
                # Raises where the job failed.
                _ = job.return_value
        return returns
