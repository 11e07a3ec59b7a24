"""A launcher that trains the jobs of a sweep as stacks, in several processes of this machine or of a cluster."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass
class StackedLauncherConf:
    """The config of the stacked launcher.

    n_jobs: the number of stacks that are trained at once, -1 is one for each core.
    stack_size: the number of networks in a stack, null chooses it by the processor's cache.
    backend: loky, ray or dask. address: of a cluster of ray or dask, null starts one on this machine.
    """

    _target_: str = "hydra_plugins.depth_laboratory.launcher.StackedLauncher"
    n_jobs: int = -1
    stack_size: int | None = None
    backend: str = "loky"
    address: str | None = None


ConfigStore.instance().store(group="hydra/launcher", name="stacked", node=StackedLauncherConf, provider="depth_laboratory")


class StackedLauncher(BasicLauncher):
    """Trains the jobs by the sweep context that the checked sweeper has opened, see `CheckedSweeper`.

    `sweep_context.run(jobs, n_jobs, stack_size)` yields (job, what its task function would return) as the jobs finish. Each
    then becomes a Hydra job with folder, files, log, callbacks and JobReturn. Without a sweep context the jobs run one by one,
    as with Hydra's basic launcher.
    """

    def __init__(self, n_jobs: int, stack_size: int | None, backend: str, address: str | None) -> None:
        super().__init__()
        self.n_jobs, self.stack_size, self.backend, self.address = n_jobs, stack_size, backend, address
        self.sweep_context: Any = None
        self.composer: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the launcher; Hydra calls this before `launch`. Raises HydraException for a bad n_jobs or stack_size."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self.n_jobs != -1 and self.n_jobs < 1:
            raise HydraException(f"hydra.launcher.n_jobs is {self.n_jobs}, it must be -1 (all cores) or at least 1")
        if self.stack_size is not None and self.stack_size < 1:
            raise HydraException(f"hydra.launcher.stack_size is {self.stack_size}, it must be null or at least 1")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; return their JobReturns in the order of the jobs."""
        if self.sweep_context is None:
            return super().launch(job_overrides, initial_job_idx)
        from hydra_plugins.depth_laboratory._jobs import launch

        jobs = range(initial_job_idx, initial_job_idx + len(job_overrides))
        outcomes = self.sweep_context.run(jobs, self.n_jobs, self.stack_size)
        return launch(self, self.composer, dict(zip(jobs, job_overrides, strict=True)), outcomes)
