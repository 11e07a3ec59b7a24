"""A sweep's configs, composed once for every choice of groups instead of once a job."""

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, flag_override, open_dict


class Composer:
    """`compose(overrides)` is Hydra's `load_sweep_config(master, overrides)`, at a tenth of its time.

    Where a job's overrides only choose groups and set values, the jobs with the same choices and the same keys differ in
    those values alone: the first of them is composed by Hydra, the others are copies of it with their own values set.
    Anything else (+, ++, ~, lists, dicts, Hydra's own keys) is left to Hydra.

    loader, master: Hydra's config loader and the sweep's own config.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.firsts: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """A new config for a job with those overrides; raises what Hydra raises."""
        parsed = self.parser.parse_overrides(list(overrides))
        choices = [override for override in parsed if self._chooses(override)]
        values = [override for override in parsed if self._sets(override)]
        if len(choices) + len(values) < len(parsed):
            return self.loader.load_sweep_config(self.master, list(overrides))
        key = (*(str(override.input_line) for override in choices), "", *(override.key_or_group for override in values))
        if key not in self.firsts:
            self.firsts[key] = self.loader.load_sweep_config(self.master, list(overrides))
        config = copy.deepcopy(self.firsts[key])
        self.loader._apply_overrides_to_config(values, config)
        self._name(config, parsed)
        return config

    def job(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The config of job `number`, as a launcher hands it on."""
        config = self.compose(overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def task(self, overrides: Sequence[str]) -> DictConfig:
        """The config as the job's task function sees it, without Hydra's own part."""
        config = self.compose(overrides)
        with flag_override(config, ["struct", "readonly"], [False, False]):
            del config["hydra"]
        return config

    def _chooses(self, override: Override) -> bool:
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        return plain and not override.is_hydra_override() and self.loader.repository.group_exists(override.key_or_group)

    def _sets(self, override: Override) -> bool:
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        value = override.value()
        scalar = value is None or isinstance(value, str | int | float)
        return plain and scalar and override.package is None and not override.is_hydra_override() and not self._chooses(override)

    @staticmethod
    def _name(config: DictConfig, parsed: list[Override]) -> None:
        """What Hydra derives from a job's overrides."""
        config.hydra.overrides.task = [override.input_line for override in parsed]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=parsed, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )
