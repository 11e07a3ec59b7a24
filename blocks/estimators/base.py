"""The common part of both estimators: their training, how it is continued, and the logits of X."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from blocks.arrays import Array
from blocks.estimators.parameters import Parameters
from blocks.history import History
from blocks.losses import Loss
from blocks.network import Network
from blocks.optimizers import OPTIMIZERS, Momentum, Optimizer, State
from blocks.parametrizations import rate_factors
from blocks.training import Watch, reshuffled, train

# The parameters that determine the network. They must not change where a training is continued.
BUILT_BY = ("depth", "width", "activation", "kind", "parametrization", "dtype")


class _Continued(Optimizer):
    """An optimizer that continues with its state at the end of an earlier training.

    previous_parameters: the parameters before the last update of this training, or at its start.
    """

    def __init__(self, rule: Optimizer, network: Network) -> None:
        super().__init__(rule.learning_rate, weight_decay=rule.weight_decay)
        self.rule, self.state = rule, rule.start(network)
        self.previous_parameters = np.empty_like(network.parameters)

    def start(self, network: Network) -> State:
        self.previous_parameters[...] = network.parameters
        return self.state

    def update(self, parameters: Array, gradient: Array, state: State, factor: float = 1.0) -> None:
        self.previous_parameters[...] = parameters
        self.rule.update(parameters, gradient, state, factor)


class _Stop(Exception):
    """The exception with which a watch ends a training. history: the history so far."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.history = history


class _EarlyStopping:
    """A watch that stores the parameters with the best score, and ends the training when the score does not improve by `tol`.

    score: returns the current score of the network; nan is no improvement.
    patience: the number of epochs without improvement after which training ends.
    best: the score of the network's parameters at the start, or -inf.
    """

    def __init__(self, network: Network, score: Callable[[], float], patience: int, tol: float, best: float) -> None:
        self.network, self.score, self.patience, self.tol = network, score, patience, tol
        self.parameters, self.best, self.waited = network.parameters.copy(), best, 0
        self.scores: list[float] = []

    def __call__(self, step: int, history: Callable[[], History]) -> None:
        score = self.score()
        self.scores.append(score)
        self.waited = 0 if score > self.best + self.tol else self.waited + 1
        if score > self.best:
            self.parameters, self.best = self.network.parameters.copy(), score
        if self.waited == self.patience:
            raise _Stop(history())


class NetworkEstimator(Parameters):
    """The training of `NetworkClassifier` and `NetworkRegressor`."""

    _loss: Loss
    network_: Network
    predictor_: Network

    def _begin(self, generator: np.random.RandomState, outputs: int) -> None:
        """Create the network, the optimizer and the generator of the batches' order."""
        weights, self._order = np.random.default_rng(generator.randint(np.iinfo(np.int32).max)).spawn(2)
        sizes = [self.n_features_in_, *[int(self.width)] * (int(self.depth) - 1), outputs]
        options: dict[str, Any] = {"dtype": self.dtype, "kind": self.kind, "parametrization": self.parametrization}
        self.network_ = Network.create(sizes, self.activation, self.initializer, rng=weights, **options)
        self._built_by = {name: getattr(self, name) for name in BUILT_BY}
        self._begin_optimizer()
        self.loss_curve_: list[float] = []
        self.grad_norms_ = np.empty((0, self.network_.depth), self.dtype)
        self.validation_scores_: list[float] | None = None

    def _begin_optimizer(self) -> None:
        rule = OPTIMIZERS[self.optimizer]
        options = {"momentum": self.momentum} if issubclass(rule, Momentum) else {}
        rate: float | Array = self.learning_rate
        if self.parametrization != "standard":
            rate = rate * rate_factors(self.network_.layout, self.kind, rule.scale_free, self.parametrization)
        self._optimizer = _Continued(rule(rate, weight_decay=self.weight_decay, **options), self.network_)

    def _goes_on(self, partial: bool) -> bool:
        """Return whether an existing network is trained further. Raises ValueError where its parameters have changed."""
        if partial and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if not (hasattr(self, "network_") and (partial or self.warm_start)):
            return False
        for name, value in self._built_by.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}, the network to be trained further has {value!r}")
        return True

    def _fit(self, X: Array, y: Array, sample_weight: ArrayLike | None, outputs: int, goes_on: bool) -> Self:
        """Train on X (m, n_0) and y (m,) or (m, outputs), the transpose of the loss's targets."""
        generator = self._generator()
        X, y, weights = _with_weight(X, y, sample_weight)
        if self.early_stopping:
            X, X_validation, y, y_validation, weights, weights_validation = self._hold_out(X, y, weights, generator)
        if goes_on:
            self._begin_optimizer()
        else:
            self._begin(generator, outputs)
        if not self.early_stopping:
            return self._train(X, y, weights, self.epochs)

        def score() -> float:
            self.predictor_ = self.network_.with_statistics(X.T)
            return self._score_of(self._forward(X_validation), y_validation, weights_validation)

        stopping = _EarlyStopping(self.network_, score, self.n_iter_no_change, self.tol, score() if goes_on else -np.inf)
        self._train(X, y, weights, self.epochs, stopping)
        self.network_.parameters[...] = stopping.parameters
        self.predictor_ = self.network_.with_statistics(X.T)
        self.validation_scores_ = (self.validation_scores_ or []) + stopping.scores
        return self

    def _hold_out(self, X: Array, y: Array, weights: Array | None, generator: np.random.RandomState) -> list[Any]:
        """Return X, y and weights, each split into a part for training and one for validation.

        Both parts have the same shares of the classes, unless a class is too small for that. Raises ValueError where
        `validation_fraction` leaves too few examples in a part.
        """
        m = len(X)
        n_validation = math.ceil(self.validation_fraction * m)
        if n_validation < 2 or n_validation == m:
            must = f"it must hold out at least 2 examples of {m} and leave at least 1"
            raise ValueError(f"validation_fraction is {self.validation_fraction}, {must}")
        stratify = None
        if self._loss.decides:
            _, counts = np.unique(y, return_counts=True)
            stratify = y if counts.min() > 1 and len(counts) <= min(n_validation, m - n_validation) else None
        arrays = (X, y) if weights is None else (X, y, weights)
        parts = train_test_split(*arrays, test_size=n_validation, stratify=stratify, random_state=generator)
        return parts if weights is not None else [*parts, None, None]

    def _partial_fit(self, X: Array, y: Array, sample_weight: ArrayLike | None, outputs: int, goes_on: bool) -> Self:
        """Train the existing network, or a new one, for one pass over X and y, which are as `_fit` takes them."""
        X, y, weights = _with_weight(X, y, sample_weight)
        if not goes_on:
            self._begin(self._generator(), outputs)
        return self._train(X, y, weights, 1)

    def _train(self, X: Array, y: Array, weights: Array | None, epochs: int, watch: Watch | None = None) -> Self:
        """Train the network further. The results are appended to those of earlier calls since `_begin`."""
        try:
            history = train(
                self.network_,
                X.T,
                y.T,
                weights=weights,
                loss=self._loss,
                optimizer=self._optimizer,
                epochs=epochs,
                batch_size=min(self.batch_size, len(X)),
                orders=reshuffled(self._order, len(X)),
                evaluations=0,
                watch=watch,
            )
        except _Stop as stop:
            history = stop.history
        if history.diverged_step >= 0:
            self.network_.parameters[...] = self._optimizer.previous_parameters
            where = f"step {history.diverged_step} in " + (
                f"block {history.diverged_block}" if history.diverged_block else "the loss"
            )
            message = f"training diverged at {where}, earlier parameters are kept: scale the data or lower learning_rate"
            warnings.warn(message, ConvergenceWarning, stacklevel=4)
        self.predictor_ = self.network_.with_statistics(X.T)
        self.history_ = history
        self.loss_curve_ += history.epoch_loss().tolist()
        self.grad_norms_ = np.concatenate([self.grad_norms_, history.grad_norm])
        self.n_iter_ = len(self.loss_curve_)
        return self

    def _logits(self, X: ArrayLike) -> Array:
        check_is_fitted(self, "network_")
        with np.errstate(over="ignore"):
            rows = validate_data(self, X, dtype=self.network_.parameters.dtype, reset=False)
        return self._forward(rows)

    def _forward(self, X: Array) -> Array:
        """Return the logits (m, n_L) of X (m, n_0). Only one block's cache is kept at a time, which saves memory."""
        a = X.T
        for block in self.predictor_.blocks:
            a, _ = block.forward(a)
        return a.T

    def _score_of(self, logits: Array, y: Array, weights: Array | None) -> float:
        """Return the accuracy or R^2 of logits (m, n_L); nan where they are not finite."""
        if not np.isfinite(logits).all():
            return np.nan
        if self._loss.decides:
            return accuracy_score(y, logits.argmax(axis=1), sample_weight=weights)
        return r2_score(y, logits, sample_weight=weights)


def _with_weight(X: Array, y: Array, sample_weight: ArrayLike | None) -> tuple[Array, Array, Array | None]:
    """Return X and y of the examples whose weight is not 0, and their weights, or None where all these are equal."""
    if sample_weight is None:
        return X, y, None
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    counts = weights > 0
    if not counts.all():
        X, y, weights = X[counts], y[counts], weights[counts]
    return X, y, None if (weights == weights[0]).all() else weights
