"""Block networks as scikit-learn estimators: what `blocks.train` trains, wherever scikit-learn takes a model.

One example is a row here, as in all of scikit-learn, and a column in the rest of the engine.
"""

import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, check_random_state, column_or_1d
from sklearn.utils.extmath import softmax
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from blocks.activations import ACTIVATIONS
from blocks.arrays import Array, check_number, choice, whole_number
from blocks.history import History
from blocks.initializers import INITIALIZERS
from blocks.losses import Loss, half_mean_squared_error, softmax_cross_entropy
from blocks.network import KINDS, Network
from blocks.optimizers import ALLOWED, OPTIMIZERS, Momentum, Optimizer, State
from blocks.training import Watch, reshuffled, train

TABLES: dict[str, Mapping[str, object]] = {
    "activation": ACTIVATIONS,
    "initializer": INITIALIZERS,
    "kind": KINDS,
    "optimizer": OPTIMIZERS,
    "dtype": {"float32": np.float32, "float64": np.float64},
}
COUNTS = ("depth", "width", "epochs", "batch_size", "n_iter_no_change")
NUMBERS: dict[str, dict[str, float]] = {
    **{name: ALLOWED[name] for name in ("learning_rate", "momentum", "weight_decay")},
    "validation_fraction": {"above": 0, "below": 1},
    "tol": {"at_least": 0},
}


class _Continued(Optimizer):
    """An optimizer that goes on where an earlier training left it.

    before: the parameters before the last update of this training, or at its start.
    """

    def __init__(self, rule: Optimizer, network: Network) -> None:
        super().__init__(rule.learning_rate, weight_decay=rule.weight_decay)
        self.rule, self.state = rule, rule.start(network)
        self.before = np.empty_like(network.parameters)

    def start(self, network: Network) -> State:
        self.before[...] = network.parameters
        return self.state

    def update(self, parameters: Array, gradient: Array, state: State, factor: float = 1.0) -> None:
        self.before[...] = parameters
        self.rule.update(parameters, gradient, state, factor)


class _Stop(Exception):
    """Ends a training from within its watch; carries the history so far."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.history = history


class _EarlyStopping:
    """A watch that keeps the parameters of the best score, and ends the training where it gets no better by `tol`.

    score: of the network as it stands; nan counts as no better.
    patience: epochs without improvement after which training ends.
    """

    def __init__(self, network: Network, score: Callable[[], float], patience: int, tol: float) -> None:
        self.network, self.score, self.patience, self.tol = network, score, patience, tol
        self.parameters, self.best, self.waited = network.parameters.copy(), -np.inf, 0
        self.scores: list[float] = []

    def __call__(self, step: int, history: Callable[[], History]) -> None:
        score = self.score()
        self.scores.append(score)
        self.waited = 0 if score > self.best + self.tol else self.waited + 1
        if score > self.best:
            self.parameters, self.best = self.network.parameters.copy(), score
        if self.waited == self.patience:
            raise _Stop(history())


class _NetworkEstimator(BaseEstimator):
    """What the classifier and the regressor share: the parameters, the training, the way from X to logits."""

    _loss: Loss
    network_: Network

    def __init__(
        self,
        *,
        depth: int = 3,
        width: int = 64,
        activation: str = "relu",
        initializer: str = "he",
        kind: str = "plain",
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
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.depth = depth
        self.width = width
        self.activation = activation
        self.initializer = initializer
        self.kind = kind
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
        if not isinstance(self.early_stopping, bool | np.bool_):
            raise ValueError(f"early_stopping is {self.early_stopping!r}, it must be True or False")

    def _generator(self) -> np.random.RandomState:
        try:
            return check_random_state(self.random_state)
        except ValueError as error:
            allowed = "None, a whole number from 0 to 2**32 - 1, or a numpy.random.RandomState"
            raise ValueError(f"random_state is {self.random_state!r}, it must be {allowed}") from error

    def _begin(self, generator: np.random.RandomState, outputs: int) -> None:
        """A new network, optimizer and order of batches."""
        weights, self._order = np.random.default_rng(generator.randint(np.iinfo(np.int32).max)).spawn(2)
        sizes = [self.n_features_in_, *[int(self.width)] * (int(self.depth) - 1), outputs]
        self.network_ = Network.create(sizes, self.activation, self.initializer, rng=weights, dtype=self.dtype, kind=self.kind)
        rule = OPTIMIZERS[self.optimizer]
        options = {"momentum": self.momentum} if issubclass(rule, Momentum) else {}
        self._optimizer = _Continued(rule(self.learning_rate, weight_decay=self.weight_decay, **options), self.network_)
        self.loss_curve_: list[float] = []
        self.grad_norms_ = np.empty((0, self.network_.depth), self.dtype)
        self.validation_scores_: list[float] | None = None

    def _fit(self, X: Array, y: Array, outputs: int) -> Self:
        """Train a new network on X (m, n_0) and y (m,) or (m, outputs), as the loss takes it but for the transpose."""
        generator = self._generator()
        if not self.early_stopping:
            self._begin(generator, outputs)
            return self._train(X, y, self.epochs)
        stratify = y if self._loss.decides else None
        X, X_held, y, y_held = train_test_split(
            X, y, test_size=float(self.validation_fraction), stratify=stratify, random_state=generator
        )
        if len(X_held) < 2:
            raise ValueError(f"validation_fraction is {self.validation_fraction}, it must hold out at least 2 examples")
        self._begin(generator, outputs)
        stopping = _EarlyStopping(
            self.network_, lambda: self._score_of(self._forward(X_held), y_held), self.n_iter_no_change, self.tol
        )
        self._train(X, y, self.epochs, stopping)
        self.network_.parameters[...] = stopping.parameters
        self.validation_scores_ = stopping.scores
        return self

    def _partial_fit(self, X: Array, y: Array, outputs: int) -> Self:
        """One pass over X and y, as `_fit` takes them, of the network there is, or of a new one."""
        if not hasattr(self, "network_"):
            self._begin(self._generator(), outputs)
        return self._train(X, y, 1)

    def _train(self, X: Array, y: Array, epochs: int, watch: Watch | None = None) -> Self:
        """Train the network further; what it went through is added to what `_begin` or an earlier call left."""
        try:
            history = train(
                self.network_,
                X.T,
                y.T,
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
        if divergence := self._divergence(history):
            self.network_.parameters[...] = self._optimizer.before
            step, block = divergence
            where = f"block {block}" if block else "the loss"
            message = (
                f"training diverged at step {step} in {where}, earlier parameters are kept: scale the data or lower learning_rate"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=4)
        self.history_ = history
        self.loss_curve_ += history.epoch_loss().tolist()
        self.grad_norms_ = np.concatenate([self.grad_norms_, history.grad_norm])
        self.n_iter_ = len(self.loss_curve_)
        return self

    def _divergence(self, history: History) -> tuple[int, int] | None:
        """The step and the block of the first value that is not finite, block 0 for the loss; None where there is none."""
        if history.diverged_step >= 0:
            return int(history.diverged_step), int(history.diverged_block)
        # No step comes after the last update, to find what it has led to.
        bad = [index for index, block in enumerate(self.network_.blocks, 1) if not np.isfinite(block.joined).all()]
        return (len(history.loss), bad[0]) if bad else None

    def _logits(self, X: ArrayLike) -> Array:
        check_is_fitted(self, "network_")
        return self._forward(validate_data(self, X, dtype=self.network_.parameters.dtype, reset=False))

    def _forward(self, X: Array) -> Array:
        """(m, n_0) -> (m, n_L) logits, block by block: no more than one block's cache is held at a time."""
        a = X.T
        for block in self.network_.blocks:
            a, _ = block.forward(a)
        return a.T

    def _score_of(self, logits: Array, y: Array) -> float:
        """accuracy or R^2 of (m, n_L) logits; nan where they are not finite."""
        if not np.isfinite(logits).all():
            return np.nan
        return float(np.mean(logits.argmax(axis=1) == y)) if self._loss.decides else r2_score(y, logits)


class NetworkClassifier(ClassifierMixin, _NetworkEstimator):
    """A network of blocks with softmax cross-entropy, for any number of classes.

    Parameters, all of them keywords:

    depth: L, the number of blocks, the output block among them; 1 is softmax regression.
    width: units of every hidden block.
    activation, initializer, kind, optimizer: names in the engine's tables `ACTIVATIONS`, `INITIALIZERS`, `KINDS`, `OPTIMIZERS`.
    learning_rate: alpha > 0.
    momentum: mu in [0, 1) of the optimizers momentum and nesterov; the others do not read it.
    weight_decay: lambda >= 0, L2 on W and not on b.
    epochs: passes over the data, each in a new random order.
    batch_size: examples a step, or all of them where there are fewer.
    dtype: of parameters and data, "float32" or "float64".
    early_stopping: hold out `validation_fraction` of the examples; end after `n_iter_no_change` epochs in which the score on
        them has not risen more than `tol` above its best; keep the parameters of the best score. For `fit` alone.
    random_state: None, a seed or a RandomState, of the initial weights, the order of examples and what is held out.

    Attributes after `fit` or `partial_fit`:

    network_: the `blocks.Network`, L blocks.
    classes_: (K,) the labels, sorted; the network's K logits are in this order.
    n_features_in_: n_0.
    loss_curve_: the mean loss of every epoch, a list; not finite from the epoch of a divergence on.
    grad_norms_: (steps, L) Frobenius norm of every block's dW at every step; nan after a divergence.
    n_iter_: epochs made, by every `partial_fit` one more.
    history_: the `blocks.History` of the last call.
    validation_scores_: with early stopping the score after every epoch, a list; else None.

    A training that diverges gives a ConvergenceWarning with the step and the block; the network keeps the last parameters
    with a finite loss and gradient, or those that call began with.
    """

    _loss = softmax_cross_entropy

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a new network.

        X: (m, n_0) data, one example a row. y: (m,) labels, numbers or strings.
        Raises ValueError for a parameter out of range, data that are not finite, or targets that are no labels.
        """
        self._check_parameters()
        rows, labels = self._validated(X, y, reset=True)
        self.classes_, places = np.unique(labels, return_inverse=True)
        return self._fit(rows, places, len(self.classes_))

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """One pass over X and y that goes on where the last call left the network, the optimizer and the order of examples.

        X: (m, n_0) data. y: (m,) labels.
        classes: (K,) every label there will be; required by the first call, and later the same if given.
        Raises ValueError as `fit` does, and for labels that are not in `classes`.
        """
        self._check_parameters()
        first = not hasattr(self, "network_")
        rows, labels = self._validated(X, y, reset=first)
        if first and classes is None:
            raise ValueError("classes is None, the first call of partial_fit must be given all labels there will be")
        known = self.classes_ if classes is None else unique_labels(classes)
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes is {known.tolist()}, it must be that of the first call: {self.classes_.tolist()}")
        if unknown := sorted(set(labels.tolist()) - set(known.tolist())):
            raise ValueError(f"y has labels {unknown}, they must be in classes: {known.tolist()}")
        self.classes_ = known
        return self._partial_fit(rows, np.searchsorted(known, labels), len(known))

    def _validated(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[Array, Array]:
        rows, labels = validate_data(self, X, y, dtype=self.dtype, reset=reset)
        check_classification_targets(labels)
        return rows, labels

    def predict(self, X: ArrayLike) -> Array:
        """(m,) the label with the largest logit, from X (m, n_0)."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> Array:
        """(m, K) the softmax of the logits, in the order of `classes_`, from X (m, n_0)."""
        return softmax(self._logits(X))


class NetworkRegressor(RegressorMixin, _NetworkEstimator):
    """A network of blocks with half the mean squared error, for one output or several.

    Parameters and attributes are those of `NetworkClassifier`, but for `classes_`; depth 1 is linear regression, and
    `early_stopping` looks at R^2. The loss is 1/(2m) sum of ||z - y||^2.
    """

    _loss = half_mean_squared_error

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a new network.

        X: (m, n_0) data, one example a row. y: (m,) or (m, outputs) values.
        Raises ValueError for a parameter out of range and for data that are not finite.
        """
        self._check_parameters()
        return self._fit(*self._validated(X, y, reset=True))

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """One pass over X and y that goes on where the last call left the network, the optimizer and the order of examples.

        X: (m, n_0) data. y: (m,) or (m, outputs) values.
        Raises ValueError as `fit` does, and for another number of outputs.
        """
        self._check_parameters()
        return self._partial_fit(*self._validated(X, y, reset=not hasattr(self, "network_")))

    def _validated(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[Array, Array, int]:
        """X, y, the number of outputs."""
        rows, values = validate_data(self, X, y, dtype=self.dtype, reset=reset, multi_output=True, y_numeric=True)
        if values.ndim == 2 and values.shape[1] == 1:
            values = column_or_1d(values, warn=True)
        return rows, values, 1 if values.ndim == 1 else values.shape[1]

    def predict(self, X: ArrayLike) -> Array:
        """(m,) values, or (m, outputs) where there are several, from X (m, n_0)."""
        logits = self._logits(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits
