"""Networks of blocks as scikit-learn estimators, trained by `blocks.train`, for use wherever scikit-learn takes a model.

One example is a row here, as in all of scikit-learn, and a column in the rest of the engine.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import Tags, check_array, column_or_1d
from sklearn.utils.extmath import softmax
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import validate_data

from blocks.arrays import Array
from blocks.estimators.base import NetworkEstimator
from blocks.losses import half_mean_squared_error, softmax_cross_entropy


class NetworkClassifier(ClassifierMixin, NetworkEstimator):
    """A network of blocks with softmax cross-entropy, for any number of classes.

    Parameters, which are all keywords:

    depth: L, the number of blocks, including the output block; 1 is softmax regression.
    width: the number of units of every hidden block.
    activation, initializer, kind, parametrization, optimizer: names in the engine's tables `ACTIVATIONS`, `INITIALIZERS`,
        `KINDS`, `PARAMETRIZATIONS`, `OPTIMIZERS`.
    learning_rate: alpha > 0.
    momentum: mu in [0, 1) of the optimizers momentum and nesterov; the others do not read it.
    weight_decay: lambda >= 0, L2 on W and not on b.
    epochs: passes over the data, each in a new random order.
    batch_size: examples per step; all of them where there are fewer.
    dtype: of parameters and data, "float32" or "float64".
    early_stopping: hold out `validation_fraction` of the examples, stratified by class unless a class is too small. Stop after
        `n_iter_no_change` epochs in which the score on them has not risen by more than `tol` above the best one. Keep the
        parameters with the best score. Only `fit` supports it.
    warm_start: `fit` trains the existing network further, with a new optimizer.
    random_state: None, a seed or a RandomState, for the initial weights, the order of examples and the choice of those held out.

    Attributes after `fit` or `partial_fit`:

    network_: the `blocks.Network`, L blocks.
    predictor_: the network that predicts. It is `network_` itself, except for kind batch_normalized, which standardises over a
        batch: there it is the plain network that uses the means and variances of the examples that the last call trained on,
        in which each of them counts equally.
    classes_: (K,) the labels, sorted; the network's K logits are in this order.
    n_features_in_: n_0.
    loss_curve_: a list of the mean loss of every epoch; not finite from the epoch of a divergence on.
    grad_norms_: (steps, L) Frobenius norm of every block's dW at every step; nan after a divergence.
    n_iter_: the number of epochs so far. `partial_fit` and a warm start add to it.
    history_: the `blocks.History` of the last call.
    validation_scores_: with early stopping a list of the score after every epoch; else None.

    Where a training diverges, a ConvergenceWarning names the step and the block. The network keeps the last parameters with a
    finite loss and gradient, or those with which the call began. With early stopping it keeps those with the best score.
    """

    _loss = softmax_cross_entropy
    classes_: Array

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network, or, with `warm_start`, the existing one further.

        X: (m, n_0) data, one example per row. y: (m,) labels, numbers or strings.
        sample_weight: (m,) at least 0. A batch's loss is the mean with these weights; examples of weight 0 are left out.
        Raises ValueError for a parameter out of range, for data that are not finite, for targets that are no labels, and with
        `warm_start` for other classes than before.
        """
        self._check_parameters()
        goes_on = self._goes_on(partial=False)
        rows, labels = self._validated(X, y, reset=not goes_on)
        classes, places = np.unique(labels, return_inverse=True)
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(f"y has the labels {classes.tolist()}, warm_start needs those of before: {self.classes_.tolist()}")
        self.classes_ = classes
        return self._fit(rows, places, sample_weight, len(classes), goes_on)

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train for one pass over X and y. Network, optimizer and order of examples continue from the last call.

        X: (m, n_0) data. y: (m,) labels. sample_weight: (m,) as `fit` takes it.
        classes: (K,) all labels that any call will have. The first call requires it; a later call may give it again.
        Raises ValueError as `fit` does, for labels that are not in `classes`, for other `classes` than those of the first call,
        and with `early_stopping`.
        """
        self._check_parameters()
        goes_on = self._goes_on(partial=True)
        rows, labels = self._validated(X, y, reset=not goes_on)
        if not goes_on and classes is None:
            raise ValueError("classes is None, the first call of partial_fit must be given all labels there will be")
        known_classes = self.classes_ if classes is None else unique_labels(classes)
        if goes_on and not np.array_equal(known_classes, self.classes_):
            raise ValueError(f"classes is {known_classes.tolist()}, it must be that of the first call: {self.classes_.tolist()}")
        if unknown := sorted(set(labels.tolist()) - set(known_classes.tolist())):
            raise ValueError(f"y has labels {unknown}, they must be in classes: {known_classes.tolist()}")
        self.classes_ = known_classes
        return self._partial_fit(rows, np.searchsorted(known_classes, labels), sample_weight, len(known_classes), goes_on)

    @np.errstate(over="ignore")
    def _validated(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[Array, Array]:
        rows, labels = validate_data(self, X, y, dtype=self.dtype, reset=reset)
        check_classification_targets(labels)
        return rows, labels

    def predict(self, X: ArrayLike) -> Array:
        """Return the label with the largest logit for each row of X (m, n_0), (m,)."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> Array:
        """Return the softmax of the logits, (m, K) in the order of `classes_`, for X (m, n_0)."""
        return softmax(self._logits(X))

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Return the logarithm of `predict_proba`, (m, K), for X (m, n_0). It is finite even where a probability rounds to 0."""
        return log_softmax(self._logits(X), axis=1)


class NetworkRegressor(RegressorMixin, NetworkEstimator):
    """A network of blocks with half the mean squared error, for one output or several.

    Parameters and attributes are those of `NetworkClassifier`, except `classes_`. Depth 1 is linear regression. The score of
    `early_stopping` is R^2. The loss is 1/(2m) sum of ||z - y||^2.
    """

    _loss = half_mean_squared_error

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network, or, with `warm_start`, the existing one further.

        X: (m, n_0) data, one example per row. y: (m,) or (m, outputs) values.
        sample_weight: (m,) at least 0. A batch's loss is the mean with these weights; examples of weight 0 are left out.
        Raises ValueError for a parameter out of range, for data that are not finite or no numbers, and with `warm_start` for
        another number of outputs than before.
        """
        self._check_parameters()
        goes_on = self._goes_on(partial=False)
        rows, values, outputs = self._validated(X, y, goes_on)
        return self._fit(rows, values, sample_weight, outputs, goes_on)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for one pass over X and y. Network, optimizer and order of examples continue from the last call.

        X: (m, n_0) data. y: (m,) or (m, outputs) values. sample_weight: (m,) as `fit` takes it.
        Raises ValueError as `fit` does, for another number of outputs, and with `early_stopping`.
        """
        self._check_parameters()
        goes_on = self._goes_on(partial=True)
        rows, values, outputs = self._validated(X, y, goes_on)
        return self._partial_fit(rows, values, sample_weight, outputs, goes_on)

    @np.errstate(over="ignore")
    def _validated(self, X: ArrayLike, y: ArrayLike, goes_on: bool) -> tuple[Array, Array, int]:
        """Return X, y and the number of outputs. Raises ValueError as `fit` does."""
        targets = np.asarray(y)
        first = next(targets.flat, None)
        if targets.dtype.kind in "SUMmV" or isinstance(first, str):
            raise ValueError(f"y holds {str(first)!r}, NetworkRegressor takes numbers; NetworkClassifier takes labels")
        rows, values = validate_data(self, X, y, dtype=self.dtype, reset=not goes_on, multi_output=True, y_numeric=True)
        if values.ndim == 2 and values.shape[1] == 1:
            values = column_or_1d(values, warn=True)
        values = check_array(values, dtype=self.dtype, ensure_2d=False, input_name="y")
        outputs = 1 if values.ndim == 1 else values.shape[1]
        if goes_on and outputs != (previous_outputs := self.network_.layout.sizes[-1]):
            raise ValueError(f"y has shape {values.shape}, the network to be trained further has {previous_outputs} outputs")
        return rows, values, outputs

    def predict(self, X: ArrayLike) -> Array:
        """Return the predicted values, (m,), or (m, outputs) where there are several outputs, for X (m, n_0)."""
        logits = self._logits(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits
