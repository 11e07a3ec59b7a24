"""A launcher that trains the jobs of a sweep as stacks, side by side in processes, of this machine or of a cluster."""

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
    """n_jobs: stacks at once, -1 is one a core. stack_size: networks a stack, null is what suits the processor's cache.
    backend: loky, ray or dask. address: of a cluster of ray or dask, null starts one on this machine.
    """

    _target_: str = "hydra_plugins.depth_laboratory.launcher.StackedLauncher"
    n_jobs: int = -1
    stack_size: int | None = None
    backend: str = "loky"
    address: str | None = None


ConfigStore.instance().store(group="hydra/launcher", name="stacked", node=StackedLauncherConf, provider="depth_laboratory")


class StackedLauncher(BasicLauncher):
    """Hands the jobs to the sweep that the checked sweeper has opened, which knows by `around.train_on(backend, address)`
    where its stacks are trained, and whose `around.run(jobs, n_jobs, stack_size)` yields
    (job, what its task function would return) as they finish; each then becomes a Hydra job with its folder, files, log,
    callbacks and JobReturn. Without such a sweep the jobs run one by one, as with Hydra's basic launcher.
    """

    def __init__(self, n_jobs: int, stack_size: int | None, backend: str, address: str | None) -> None:
        super().__init__()
        self.n_jobs, self.stack_size, self.backend, self.address = n_jobs, stack_size, backend, address
        self.around: Any = None
        self.composer: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`; raises HydraException for a number of processes or networks that cannot be."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self.n_jobs != -1 and self.n_jobs < 1:
            raise HydraException(f"hydra.launcher.n_jobs is {self.n_jobs}, it must be -1 (all cores) or at least 1")
        if self.stack_size is not None and self.stack_size < 1:
            raise HydraException(f"hydra.launcher.stack_size is {self.stack_size}, it must be null or at least 1")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what they return, in their order."""
        if self.around is None:
            return super().launch(job_overrides, initial_job_idx)
        from hydra_plugins.depth_laboratory._jobs import launch

        jobs = range(initial_job_idx, initial_job_idx + len(job_overrides))
        outcomes = self.around.run(jobs, self.n_jobs, self.stack_size)
        return launch(self, self.composer, dict(zip(jobs, job_overrides, strict=True)), outcomes)
