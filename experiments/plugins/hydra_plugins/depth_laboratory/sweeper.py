"""A sweeper like Hydra's basic one that composes every job once and lets the task check all before anything is made."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
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
            around.results[first:last] = [...]                    # what they returned, in the order of the jobs
            around.extend(jobs)                                   # more of them, of a search

    jobs: (config, output folder) of each, in its own context. A search, whose jobs are not all known at its start, is
    `task_function.sweep(jobs, folder, identity, count)`. The stacked launcher asks `around.train_on` and `around.run`
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
        composer = self.composer()
        jobs = self.spanned(composer, composer.parser.parse_overrides(arguments))
        if not jobs:
            raise HydraException(f"{' '.join(arguments)} has no job: an axis has no value")
        sweep = self.checked(composer, jobs)
        if len(sweep.distinct) < len(jobs):
            print(f"{len(jobs)} jobs are {len(sweep.distinct)} different runs: each is trained once")
            # Checked again, since a job's config may depend on its number.
            jobs = [jobs[number] for number in sweep.distinct]
            sweep = self.checked(composer, jobs)
        returns: list[Sequence[JobReturn]] = []
        with self.around(composer, sweep) as around:
            for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
                returns.append(self.launched(around, batch, sum(map(len, returns))))
        return returns

    def composer(self) -> "Composer":
        """What composes the jobs."""
        from hydra_plugins.depth_laboratory._composer import Composer

        assert self.config is not None
        assert self.hydra_context is not None
        return Composer(self.hydra_context.config_loader, self.config)

    def spanned(self, composer: "Composer", typed: Sequence[Override]) -> list[list[str]]:
        """The overrides of every job."""
        from hydra_plugins.depth_laboratory._axes import span

        return span(composer, {str(key): str(values) for key, values in self.params.items()}, typed)

    def checked(self, composer: "Composer", jobs: list[list[str]], *search: Any) -> Any:
        """The task's context around the jobs, of which nothing is made yet. search: what it is told of a search."""
        assert self.config is not None
        assert self.sweep_of_task is not None
        with contextlib.closing(composer.tasks(jobs)) as tasks:
            return self.sweep_of_task(tasks, str(self.config.hydra.sweep.dir), *search)

    @contextlib.contextmanager
    def around(self, composer: "Composer", sweep: Any) -> Iterator[Any]:
        """The context that `checked` gave, and the launcher in it."""
        from hydra_plugins.depth_laboratory.launcher import StackedLauncher

        assert self.config is not None
        is_stacked = isinstance(self.launcher, StackedLauncher)
        sweep.check_launch("" if is_stacked else type(self.launcher).__name__, self.max_batch_size)
        if isinstance(self.launcher, StackedLauncher):
            sweep.train_on(self.launcher.backend, self.launcher.address)
        with sweep as around:
            if isinstance(self.launcher, StackedLauncher):
                self.launcher.around, self.launcher.composer = around, composer
            else:
                around.announce()
            folder = Path(str(self.config.hydra.sweep.dir))
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            yield around

    def launched(self, around: Any, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        """What those jobs have returned, the first of them of that number; raises what a job raised."""
        assert self.launcher is not None
        returns = self.launcher.launch(jobs, initial_job_idx=first)
        # Raises where the job failed.
        around.results[first : first + len(jobs)] = [job.return_value for job in returns]
        return returns
