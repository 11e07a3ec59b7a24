"""A sweeper like Hydra's basic one, in which the task function checks all jobs before anything is created."""

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
    """The config of the checked sweeper. params: a key -> its values, separated by commas, as for the basic sweeper."""

    _target_: str = "hydra_plugins.depth_laboratory.sweeper.CheckedSweeper"
    # The default is not null, so that an override can add a key.
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="depth_laboratory")


class CheckedSweeper(BasicSweeper):
    """A sweeper of task functions with an attribute `sweep`, which returns a context manager for the launch of all jobs:

        sweep_context = task_function.sweep(jobs, folder)     # checks all jobs, and creates nothing if one of them is bad
        sweep_context.distinct                                # the numbers of the jobs that repeat no earlier job
        sweep_context.check_launch(launcher, batch_size)      # launcher: "" for the stacked one; raises if it cannot serve
        sweep_context.train_on(backend, address)              # stacked launcher only: where the stacks are trained
        with sweep_context:
            sweep_context.announce()                          # other launchers only: the jobs are about to run, one by one
            sweep_context.run(jobs, n_jobs, stack_size)       # stacked launcher only: trains the jobs of those numbers
            sweep_context.results[first:last] = [...]         # what the jobs returned, in the order of the jobs
            sweep_context.extend(jobs)                        # further jobs of a search

    jobs: (config, output folder) of each job, each valid in its own context, see `Composer.tasks`. A search, whose jobs are not
    all known at its start, calls `task_function.sweep(jobs, folder, identity, count)`. A task function without that attribute is
    swept as Hydra's basic sweeper does it.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the sweeper; Hydra calls this before `sweep`. Raises HydraException for a bad max_batch_size."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_sweep = getattr(task_function, "sweep", None)
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise HydraException(f"hydra.sweeper.max_batch_size is {self.max_batch_size}, it must be null or at least 1")

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that the overrides span, and return their JobReturns, batch by batch.

        Raises HydraException where there is no job.
        """
        if self.task_sweep is None:
            return super().sweep(arguments)
        composer = self.composer()
        jobs = self.span_jobs(composer, composer.parser.parse_overrides(arguments))
        if not jobs:
            raise HydraException(f"{' '.join(arguments)} has no job: an axis has no value")
        sweep = self.check_jobs(composer, jobs)
        if len(sweep.distinct) < len(jobs):
            print(f"{len(jobs)} jobs are {len(sweep.distinct)} different runs: each is trained once")
            # They are checked again, since a job's config may depend on its number.
            jobs = [jobs[number] for number in sweep.distinct]
            sweep = self.check_jobs(composer, jobs)
        batches: list[Sequence[JobReturn]] = []
        with self.open_sweep(composer, sweep) as sweep_context:
            for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
                batches.append(self.launch_batch(sweep_context, batch, sum(map(len, batches))))
        return batches

    def composer(self) -> "Composer":
        """Return a composer of the jobs' configs."""
        from hydra_plugins.depth_laboratory._composer import Composer

        assert self.config is not None
        assert self.hydra_context is not None
        return Composer(self.hydra_context.config_loader, self.config)

    def span_jobs(self, composer: "Composer", typed_overrides: Sequence[Override]) -> list[list[str]]:
        """Return the overrides of every job."""
        from hydra_plugins.depth_laboratory._axes import span

        return span(composer, {str(key): str(values) for key, values in self.params.items()}, typed_overrides)

    def check_jobs(self, composer: "Composer", jobs: list[list[str]], *search: Any) -> Any:
        """Let the task function check the jobs, and return its sweep context, which has created nothing yet.

        search: the identity of a search and the number of its jobs; nothing for a sweep, whose jobs are all known.
        """
        assert self.config is not None
        assert self.task_sweep is not None
        with contextlib.closing(composer.tasks(jobs)) as tasks:
            return self.task_sweep(tasks, str(self.config.hydra.sweep.dir), *search)

    @contextlib.contextmanager
    def open_sweep(self, composer: "Composer", sweep: Any) -> Iterator[Any]:
        """Enter the sweep context that `check_jobs` returned, pass it to the launcher, and yield it."""
        from hydra_plugins.depth_laboratory.launcher import StackedLauncher

        assert self.config is not None
        is_stacked = isinstance(self.launcher, StackedLauncher)
        sweep.check_launch("" if is_stacked else type(self.launcher).__name__, self.max_batch_size)
        if isinstance(self.launcher, StackedLauncher):
            sweep.train_on(self.launcher.backend, self.launcher.address)
        with sweep as sweep_context:
            if isinstance(self.launcher, StackedLauncher):
                self.launcher.sweep_context, self.launcher.composer = sweep_context, composer
            else:
                sweep_context.announce()
            folder = Path(str(self.config.hydra.sweep.dir))
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            yield sweep_context

    def launch_batch(self, sweep_context: Any, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        """Launch a batch of jobs and return their JobReturns. Raises the error of a job that failed.

        jobs: the overrides of each job. first: the number of the first job.
        """
        assert self.launcher is not None
        job_returns = self.launcher.launch(jobs, initial_job_idx=first)
        # `return_value` raises the error of a job that failed.
        sweep_context.results[first : first + len(jobs)] = [job.return_value for job in job_returns]
        return job_returns
