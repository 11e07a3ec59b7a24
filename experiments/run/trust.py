"""The check of a config that somebody else may have written: it may have plain values, and one of the known loaders."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.run.composition import parse_config
from experiments.run.config import Config, UserError
from experiments.run.loaders import check_loader

TARGET = "dataset.loader._target_"
# The help text of the commands' option --allow.
ALLOW_HELP = (
    "a loader, mine.load, or a module of loaders, that a record may name beside those of scikit-learn that are known to be "
    "harmless; it is called with whatever arguments the record has, as a program of yours"
)


def from_record(values: dict[str, Any], allow: Sequence[str] = ()) -> Config:
    """Return the config that a record has, as a typed config.

    The only function that a record may name is the data set's loader: one of the list in `run.loaders`, or one of `allow`.

    values: the record's config.yaml. allow: names of loaders, or of modules of loaders.
    Raises UserError where the record names another function, or where its values are no config of a run.
    """
    try:
        _check_harmless(values, "")
        dataset = values.get("dataset")
        loader = dataset.get("loader") if isinstance(dataset, dict) else None
        check_loader(loader if isinstance(loader, dict) else {}, allow)
        merged_config = OmegaConf.merge(_schema(), values)
        assert isinstance(merged_config, DictConfig)
        return parse_config(merged_config)
    except (UserError, OmegaConfBaseException, ArithmeticError) as error:
        raise UserError(f"the record's config does not fit: {' '.join(str(error).split())}") from None


@cache
def _schema() -> DictConfig:
    """Return the default config. It is made once for thousands of records, which are merged into copies of it."""
    return OmegaConf.structured(Config)


def _check_harmless(value: object, path: str) -> None:
    """Raise UserError for an interpolation, which could read the environment, and for any `_target_` but the loader's."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}{key} is no text, keys must be")
            if key.startswith("_") and f"{path}{key}" != TARGET:
                raise UserError(f"{path}{key} is {child!r}, a record may name nothing to be called but {TARGET}")
            _check_harmless(child, f"{path}{key}.")
    elif isinstance(value, list):
        for child in value:
            _check_harmless(child, path)
    elif not isinstance(value, int | float | str | None):
        raise UserError(f"{path.rstrip('.')} is {value!r}, a record may hold numbers and text alone")
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{path.rstrip('.')} is {value!r}, a record may not refer to anything outside it")
