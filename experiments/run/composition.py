"""From what was typed to a checked config: Hydra's composition, and its result as the schema's objects."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from experiments.run.checks import TABLES, check
from experiments.run.config import Config, UserError
from experiments.run.help import keys
from experiments.run.machine import set_machine

CONF = str(Path(__file__).resolve().parents[2] / "conf")

T = TypeVar("T", bound=Config)


def register(name: str = "base_config", schema: type[Config] = Config) -> None:
    """Make a schema known to Hydra, under that name."""
    # Here, so that the processes that train need not import Hydra.
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=name, node=schema)
    # For `--help`.
    tables = {key: list(table) for key, table in TABLES.items()}
    OmegaConf.register_new_resolver("keys", lambda _root_: keys(schema, _root_, tables), replace=True)
    # `--help` copies its loader three times for every group, each time with all that stands in the store, which nothing
    # changes any more: half of its time.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of conf/NAME.yaml and `KEY=VALUE`s, resolved as in a job, without starting one."""
    from hydra import compose, initialize_config_dir
    from hydra_plugins.depth_laboratory._context import job_context

    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
        with job_context(config) as task:
            OmegaConf.resolve(task)
        return task


def parse_config(cfg: DictConfig) -> Config:
    """The config as a checked object; raises UserError for a value out of range or a key that is not in the schema."""
    return parse_as(Config, cfg)


def parse_as(schema: type[T], cfg: DictConfig) -> T:
    """`typed`, of a schema that has more keys than a run's."""
    for key in cfg:
        _check_keys(str(key), cfg, schema)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    check(config)
    return config


def with_machine(config: T) -> tuple[T, str]:
    """The config with the machine that this process has, and in one line why that is not the one asked for.

    See `run.machine.set_machine`, which may start the command again.
    """
    reason = set_machine(config.machine)
    return (replace(config, machine="native") if reason else config), reason


def _check_keys(key: str, node: DictConfig, schema: type, path: str = "") -> None:
    # Hydra lets `+network.foo=1` through, and to_object drops it without a word.
    known = {f.name: f.type for f in fields(schema)}
    if key not in known:
        raise UserError(f"{path}{key} is unknown, allowed: {', '.join(path + name for name in known)}")
    inner = known[key]
    if isinstance(inner, type) and is_dataclass(inner):
        for below in node[key]:
            _check_keys(str(below), node[key], inner, f"{path}{key}.")
