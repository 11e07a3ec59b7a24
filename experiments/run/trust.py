"""What a config that somebody else has written may hold: values of a run, and one of the known loaders."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.run.config import Config, UserError, typed
from experiments.run.loaders import check_loader

TARGET = "dataset.loader._target_"
# What a command's --allow does.
ALLOWS = (
    "a loader, mine.load, or a module of loaders, that a record may name beside those of scikit-learn that are known to be "
    "harmless; it is called with whatever arguments the record has, as a program of yours"
)


def from_record(values: dict[str, Any], allow: Sequence[str] = ()) -> Config:
    """The config that a record holds. Nothing it names is called but a loader of the list in `loaders`, or one in `allow`.

    allow: loaders, or modules of loaders. Raises UserError for anything else, and for a config that no run can have.
    """
    try:
        _check_harmless(values, "")
        dataset = values.get("dataset")
        loader = dataset.get("loader") if isinstance(dataset, dict) else None
        check_loader(loader if isinstance(loader, dict) else {}, allow)
        merged = OmegaConf.merge(OmegaConf.structured(Config), values)
        assert isinstance(merged, DictConfig)
        return typed(merged)
    except (UserError, OmegaConfBaseException, ArithmeticError) as error:
        raise UserError(f"the record's config does not fit: {' '.join(str(error).split())}") from None


def _check_harmless(value: object, path: str) -> None:
    """No interpolation, which could read the environment, and nothing to be called but the data set's loader."""
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}{key} is no text, keys must be")
            if key.startswith("_") and f"{path}{key}" != TARGET:
                raise UserError(f"{path}{key} is {below!r}, a record may name nothing to be called but {TARGET}")
            _check_harmless(below, f"{path}{key}.")
    elif isinstance(value, list):
        for below in value:
            _check_harmless(below, path)
    elif not isinstance(value, int | float | str | None):
        raise UserError(f"{path.rstrip('.')} is {value!r}, a record may hold numbers and text alone")
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{path.rstrip('.')} is {value!r}, a record may not refer to anything outside it")
