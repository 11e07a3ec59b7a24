"""The context in which Hydra runs a job, for code that needs a job's config outside Hydra's own launchers."""

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
    """Set what Hydra sets while a task function runs: HydraConfig, the name of the output folder, and the environment.

    Yields the config that the task function gets. Within the context its resolvers return what they return in the job; the
    values that they cache, as `now:` does, are kept in `config`.

    config: a job's config with Hydra's part. folder_keys: the keys of Hydra that name the output folder, if there is one.
    """
    hydra: Any = HydraConfig.instance()
    state = hydra.cfg
    OmegaConf.set_readonly(config.hydra, True)
    # `HydraConfig.set_config` would copy the config, which takes a third of a job's time; nothing changes it here.
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
    """Raise HydraException where `hydra.job_logging` is no valid logging config. Log files are checked by `check_log_files`."""
    logging_config: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True)
    for handler in (logging_config.get("handlers") or {}).values():
        if "filename" in handler:
            handler["filename"] = os.devnull
    try:
        configure_log(OmegaConf.create(logging_config), config.hydra.verbose)
    except (ValueError, KeyError, TypeError) as error:
        raise HydraException(f"hydra.job_logging cannot be: {error}") from error.__cause__
    finally:
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)


def check_log_files(config: DictConfig) -> None:
    """Raise HydraException where a log file of the job could not be created, even after the job's folder is."""
    output_folder, logging_config = config.hydra.runtime.output_dir, config.hydra.job_logging
    for key, handler in (logging_config.get("handlers") or {}).items():
        folder, name = os.path.split(str(handler.get("filename") or ""))
        if not os.path.isdir(folder or ".") and folder != output_folder:
            raise HydraException(f"hydra.job_logging.handlers.{key}.filename has the folder {folder!r}, which is not there")
        if (size := len(os.fsencode(name))) > (max_bytes := os.pathconf(".", "PC_NAME_MAX")):
            raise HydraException(
                f"hydra.job_logging.handlers.{key}.filename is {name[:40]!r}... of {size} bytes, allowed: {max_bytes}"
            )


def _without_hydra(config: DictConfig) -> DictConfig:
    # Hydra's part is removed before the copy, since it is three quarters of the config.
    content = config.__dict__["_content"]
    node = content.pop("hydra")
    try:
        return copy.deepcopy(config)
    finally:
        content["hydra"] = node
