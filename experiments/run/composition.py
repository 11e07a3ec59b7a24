"""The way from typed overrides to a checked config: Hydra composes it, then it becomes an object of the schema."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from experiments.run.checks import TABLES, check
from experiments.run.config import Config, UserError
from experiments.run.help import describe_keys
from experiments.run.machine import set_machine

CONF = str(Path(__file__).resolve().parents[2] / "conf")

T = TypeVar("T", bound=Config)


def register(name: str = "base_config", schema: type[Config] = Config) -> None:
    """Register a schema with Hydra under that name, and the resolver `keys`, which prints its keys in `--help`."""
    # The import stands here, so that the processes that train need not import Hydra.
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=name, node=schema)
    tables = {key: list(table) for key, table in TABLES.items()}
    OmegaConf.register_new_resolver("keys", lambda _root_: describe_keys(schema, _root_, tables), replace=True)
    # For every group, `--help` copies its loader three times with the whole store, which takes half of its time. The store does
    # not change any more, so it need not be copied.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config that Hydra composes of conf/NAME.yaml and the overrides, resolved as in a job, which is not started.

    overrides: `KEY=VALUE`, as they are typed.
    """
    from hydra import compose, initialize_config_dir
    from hydra_plugins.depth_laboratory._context import job_context

    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
        with job_context(config) as job_config:
            OmegaConf.resolve(job_config)
        return job_config


def parse_config(cfg: DictConfig) -> Config:
    """Return a composed config as a checked object. Raises UserError for a value out of range, or a key that is unknown."""
    return parse_as(Config, cfg)


def parse_as(schema: type[T], cfg: DictConfig) -> T:
    """Return a composed config as a checked object of a schema that may have more keys than a run's. Raises UserError."""
    for key in cfg:
        _check_keys(str(key), cfg, schema)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    check(config)
    return config


def with_machine(config: T) -> tuple[T, str]:
    """Return the config with the machine that this process has, and the reason why it is another one, "" where it is not.

    It may restart the command, see `run.machine.set_machine`.
    """
    reason = set_machine(config.machine)
    return (replace(config, machine="native") if reason else config), reason


def _check_keys(key: str, node: DictConfig, schema: type, path: str = "") -> None:
    """Raise UserError unless the schema has that key of the node, and all keys below it. path: the node's key and a dot."""
    # Hydra accepts `+network.foo=1`, and to_object ignores it.
    types_by_key = {f.name: f.type for f in fields(schema)}
    if key not in types_by_key:
        raise UserError(f"{path}{key} is unknown, allowed: {', '.join(path + name for name in types_by_key)}")
    kind = types_by_key[key]
    if isinstance(kind, type) and is_dataclass(kind):
        for child_key in node[key]:
            _check_keys(str(child_key), node[key], kind, f"{path}{key}.")
