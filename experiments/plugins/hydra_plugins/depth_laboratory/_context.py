"""The context in which Hydra runs a job, for whoever needs a job's config outside of Hydra's own launchers."""

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, env_override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override


@contextlib.contextmanager
def job_context(config: DictConfig, *folder_keys: str) -> Iterator[DictConfig]:
    """What Hydra sets around a task function: HydraConfig, the name of the output folder, the environment.

    Yields the config that the task function is given. Inside, its resolvers give what they give in the job; what they
    cache, as `now:` does, stays in `config`.

    config: a job's whole config. folder_keys: Hydra's keys that together name the output folder; none where there is none.
    """
    hydra: Any = HydraConfig.instance()
    state = hydra.cfg
    OmegaConf.set_readonly(config.hydra, True)
    # `HydraConfig.set_config` copies, at a third of a job's time, what nothing changes here.
    hydra.cfg = config
    try:
        if folder_keys:
            folder = os.path.join(*(str(OmegaConf.select(config, key)) for key in folder_keys))
            with flag_override(config.hydra.runtime, ["struct", "readonly"], [False, False]):
                config.hydra.runtime.output_dir = os.path.abspath(folder)
        task = _without_hydra(config)
        with env_override(config.hydra.job.env_set):
            yield task
        OmegaConf.copy_cache(from_config=task, to_config=config)
    finally:
        hydra.cfg = state


def check_logging(config: DictConfig) -> None:
    """Raise HydraException where Python's logging does not take the job's `hydra.job_logging`; log files apart."""
    logs: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True)
    for handler in (logs.get("handlers") or {}).values():
        if "filename" in handler:
            handler["filename"] = os.devnull
    try:
        configure_log(OmegaConf.create(logs), config.hydra.verbose)
    except (ValueError, KeyError, TypeError) as error:
        raise HydraException(f"hydra.job_logging cannot be: {error}") from error.__cause__
    finally:
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)


def check_log_files(config: DictConfig) -> None:
    """Raise HydraException where a log file of the job cannot be made, once its folder is."""
    output, logs = config.hydra.runtime.output_dir, config.hydra.job_logging
    for key, handler in (logs.get("handlers") or {}).items():
        folder, name = os.path.split(str(handler.get("filename") or ""))
        if not os.path.isdir(folder or ".") and folder != output:
            raise HydraException(f"hydra.job_logging.handlers.{key}.filename has the folder {folder!r}, which is not there")
        if (size := len(os.fsencode(name))) > (most := os.pathconf(".", "PC_NAME_MAX")):
            raise HydraException(
                f"hydra.job_logging.handlers.{key}.filename is {name[:40]!r}... of {size} bytes, allowed: {most}"
            )


def _without_hydra(config: DictConfig) -> DictConfig:
    # Taken out for the copy: Hydra's part is three quarters of it.
    content = config.__dict__["_content"]
    node = content.pop("hydra")
    try:
        return copy.deepcopy(config)
    finally:
        content["hydra"] = node
