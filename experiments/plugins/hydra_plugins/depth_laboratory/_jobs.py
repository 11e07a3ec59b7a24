"""The steps that Hydra takes for every job, for jobs that were trained in a stack."""

import contextlib
import logging
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.depth_laboratory._composer import Composer
from hydra_plugins.depth_laboratory._context import job_context
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf._utils import get_omega_conf_dumper

log = logging.getLogger(__name__)


class StackedJobReturn(JobReturn):
    """A JobReturn that composes its configs when they are read, since thousands of stored configs would fill the memory."""

    def __init__(self, composer: Composer, number: int, config: DictConfig, outcome: Any) -> None:
        self.overrides = list(config.hydra.overrides.task)
        self.task_name = config.hydra.job.name
        self.output_dir = config.hydra.runtime.output_dir
        self.working_dir = self.output_dir if config.hydra.job.chdir else os.getcwd()
        self.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
        self._return_value = outcome
        self.composer, self.number = composer, number

    @property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        """The job's config without Hydra's part."""
        config = self.composer.compose(self.overrides or [])
        with flag_override(config, ["struct", "readonly"], [False, False]):
            del config["hydra"]
        return config

    @property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        """Hydra's part of the job's config."""
        config = self.composer.job(self.overrides or [], self.number)
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.hydra.runtime.output_dir = self.output_dir
            for key in [key for key in config if key != "hydra"]:
                del config[key]
        return config


def launch(
    launcher: BasicLauncher, composer: Composer, jobs: dict[int, Sequence[str]], outcomes: Generator[tuple[int, Any], None, None]
) -> Sequence[JobReturn]:
    """Train the jobs, and take Hydra's steps for each one when it ends.

    jobs: job number -> overrides.
    outcomes: a generator that trains the jobs and yields (job number, what its task function would return).
    """
    assert launcher.config is not None
    setup_globals()
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    Path(str(launcher.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    job_returns: dict[int, JobReturn] = {}
    try:
        # An error in this loop closes the generator at once, which ends the training.
        with contextlib.closing(outcomes):
            for number, outcome in outcomes:
                job_returns[number] = _run_callbacks(launcher, composer, jobs[number], number, outcome)
    finally:
        configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    return [job_returns[number] for number in jobs]


def _run_callbacks(launcher: BasicLauncher, composer: Composer, overrides: Sequence[str], number: int, outcome: Any) -> JobReturn:
    """Do for a job that is trained what `hydra.core.utils.run_job` does before and after a task function.

    It takes a third of the time: no task function runs here that could change the config, so that it is not copied.
    """
    assert launcher.hydra_context is not None
    assert launcher.task_function is not None
    callbacks = launcher.hydra_context.callbacks
    config = composer.job(overrides, number)
    with job_context(config, "hydra.sweep.dir", "hydra.sweep.subdir"):
        folder = Path(config.hydra.runtime.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        if config.hydra.output_subdir is not None:
            _save_configs(config, folder / config.hydra.output_subdir)
        callbacks.on_job_start(config=config, task_function=launcher.task_function)
        log.log(logging.ERROR if isinstance(outcome, Exception) else logging.INFO, outcome)
        job_return = StackedJobReturn(composer, number, config, outcome)
        callbacks.on_job_end(config=config, job_return=job_return)
    return job_return


class _Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """OmegaConf's dumper, based on libyaml where it is installed: the text is the same, in a fifth of the time."""

    yaml_representers = get_omega_conf_dumper().yaml_representers


def _save_configs(config: DictConfig, folder: Path) -> None:
    """Write config.yaml, hydra.yaml and overrides.yaml as Hydra does."""
    values = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(values, dict)
    hydra = values.pop("hydra")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config", values), ("hydra", {"hydra": hydra}), ("overrides", hydra["overrides"]["task"])):
        with (folder / f"{name}.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(content, file, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_Dumper)
