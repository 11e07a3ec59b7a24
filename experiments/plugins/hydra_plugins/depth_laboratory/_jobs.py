"""What Hydra does for a job, done for one that was trained in a stack."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra_plugins.depth_laboratory._composer import Composer
from omegaconf import DictConfig, flag_override

if TYPE_CHECKING:
    from hydra_plugins.depth_laboratory.launcher import StackedLauncher

log = logging.getLogger(__name__)


class StackedJobReturn(JobReturn):
    """A JobReturn that composes its configs anew when asked: thousands of them would fill the memory."""

    def __init__(self, full: JobReturn, composer: Composer, number: int) -> None:
        self.overrides, self.working_dir, self.task_name = full.overrides, full.working_dir, full.task_name
        self.status, self._return_value = full.status, full._return_value
        assert full.hydra_cfg is not None
        self.output_dir = full.hydra_cfg.hydra.runtime.output_dir
        self.composer, self.number = composer, number

    @property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        """The job's config, without Hydra's own part."""
        return self.composer.task(self.overrides or [])

    @property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        """The job's whole config."""
        config = self.composer.job(self.overrides or [], self.number)
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.hydra.runtime.output_dir = self.output_dir
            for key in [key for key in config if key != "hydra"]:
                del config[key]
        return config


def launch(launcher: "StackedLauncher", job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
    """Train the jobs in stacks; each becomes a Hydra job as it ends."""
    assert launcher.config is not None
    assert launcher.hydra_context is not None
    setup_globals()
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    Path(str(launcher.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    returns: dict[int, JobReturn] = {}
    jobs = range(initial_job_idx, initial_job_idx + len(job_overrides))
    for number, outcome in launcher.around.run(jobs, launcher.n_jobs, launcher.stack_size):
        overrides = job_overrides[number - initial_job_idx]

        def ended(cfg: DictConfig, outcome: Any = outcome) -> Any:
            if isinstance(outcome, Exception):
                log.error(outcome)
                raise outcome
            log.info(outcome)
            return outcome

        full = run_job(
            hydra_context=launcher.hydra_context,
            task_function=ended,
            config=launcher.composer.job(overrides, number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        returns[number] = StackedJobReturn(full, launcher.composer, number)
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    return [returns[number] for number in jobs]
