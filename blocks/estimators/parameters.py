"""The parameters of the two estimators and their checks, as scikit-learn's conventions require."""

from collections.abc import Mapping
from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from blocks.activations import ACTIVATIONS
from blocks.arrays import check_number, choice, whole_number
from blocks.initializers import INITIALIZERS
from blocks.network import KINDS
from blocks.optimizers import ALLOWED, OPTIMIZERS
from blocks.parametrizations import PARAMETRIZATIONS

TABLES: dict[str, Mapping[str, object]] = {
    "activation": ACTIVATIONS,
    "initializer": INITIALIZERS,
    "kind": KINDS,
    "parametrization": PARAMETRIZATIONS,
    "optimizer": OPTIMIZERS,
    "dtype": {"float32": np.float32, "float64": np.float64},
}
FLAGS = ("early_stopping", "warm_start")
COUNTS = ("depth", "width", "epochs", "batch_size", "n_iter_no_change")
NUMBERS: dict[str, dict[str, float]] = {
    **{name: ALLOWED[name] for name in ("learning_rate", "momentum", "weight_decay")},
    "validation_fraction": {"above": 0, "below": 1},
    "tol": {"at_least": 0},
}


class Parameters(BaseEstimator):
    """The parameters of an estimator, see `NetworkClassifier`. They are checked when it is fitted."""

    def __init__(
        self,
        *,
        depth: int = 3,
        width: int = 64,
        activation: str = "relu",
        initializer: str = "he",
        kind: str = "plain",
        parametrization: str = "standard",
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        epochs: int = 200,
        batch_size: int = 200,
        dtype: str = "float64",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.depth = depth
        self.width = width
        self.activation = activation
        self.initializer = initializer
        self.kind = kind
        self.parametrization = parametrization
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.dtype = dtype
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state

    def _check_parameters(self) -> None:
        for name, table in TABLES.items():
            choice(name, str(getattr(self, name)), table)
        for name in (*COUNTS, *NUMBERS):
            if not isinstance(value := getattr(self, name), Real):
                raise ValueError(f"{name} is {value!r}, it must be a number")
        for name in COUNTS:
            whole_number(name, getattr(self, name), at_least=1)
        for name, allowed in NUMBERS.items():
            check_number(name, getattr(self, name), **allowed)
        for name in FLAGS:
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} is {value!r}, it must be True or False")

    def _generator(self) -> np.random.RandomState:
        try:
            return check_random_state(self.random_state)
        except ValueError as error:
            allowed = "None, a whole number from 0 to 2**32 - 1, or a numpy.random.RandomState"
            raise ValueError(f"random_state is {self.random_state!r}, it must be {allowed}") from error
