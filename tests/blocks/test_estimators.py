"""The estimators against scikit-learn: its own checks of any estimator, its tools, and what its networks give."""

import pickle
import re
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from blocks import OPTIMIZERS, Network
from blocks.estimators import NetworkClassifier, NetworkRegressor
from blocks.estimators import base as network_estimator
from experiments.published.scikit_learn import RecordingMLP
from tests.blocks import oracle
from tests.blocks.reference import value_and_gradients

BOTH = [NetworkClassifier, NetworkRegressor]
# No update as small changes a weight: the network is still as it was drawn.
UNTRAINED = {"optimizer": "gradient_descent", "learning_rate": 1e-300, "epochs": 1, "batch_size": 1000}


def iris():
    return load_iris(return_X_y=True)


def small(estimator, **options):
    return estimator(**{"depth": 2, "width": 8, "epochs": 3, "batch_size": 40, "random_state": 0, **options})


def expected_to_fail(estimator):
    """Where a batch is standardised, its mean counts every example alike: a weight of 2 is no example twice."""
    weights = "check_sample_weight_equivalence_on_dense_data"
    return {weights: expected_to_fail.__doc__} if estimator.kind == "batch_normalized" else {}


@parametrize_with_checks(
    [NetworkClassifier(), NetworkRegressor(), NetworkRegressor(kind="batch_normalized")],
    expected_failed_checks=expected_to_fail,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", ["gradient_descent", "momentum", "nesterov"])
def test_the_loss_curve_is_mlp_classifiers_from_the_same_weights_in_the_same_order(optimizer, weighted, monkeypatch):
    X, y = load_digits(return_X_y=True)
    X = MinMaxScaler().fit_transform(X)
    sample_weight = np.random.default_rng(0).uniform(0.1, 10, len(y)) if weighted else None
    theirs = RecordingMLP(
        (32,),
        solver="sgd",
        alpha=0,
        learning_rate_init=0.1,
        momentum=0 if optimizer == "gradient_descent" else 0.8,
        nesterovs_momentum=optimizer == "nesterov",
        max_iter=10,
        tol=0,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(X, y, sample_weight)

    create = Network.create

    def with_their_weights(*arguments, **options):
        network = create(*arguments, **options)
        for block, (W, b) in zip(network.blocks, theirs.initial, strict=True):
            block.W[...], block.b[...] = W, b
        return network

    monkeypatch.setattr(Network, "create", with_their_weights)
    monkeypatch.setattr(network_estimator, "reshuffled", lambda rng, m: theirs.orders(m))
    ours = NetworkClassifier(depth=2, width=32, optimizer=optimizer, learning_rate=0.1, momentum=0.8, epochs=10)
    ours.fit(X, y, sample_weight)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), rtol=1e-6)
    assert ours.score(X, y, sample_weight) == pytest.approx(theirs.score(X, y, sample_weight), abs=1e-12)


def test_accuracy_on_digits_is_mlp_classifiers():
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)
    theirs = MLPClassifier((64, 64), alpha=0, max_iter=60, tol=0, n_iter_no_change=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(X_train, y_train)
    ours = NetworkClassifier(depth=3, width=64, epochs=60, random_state=0).fit(X_train, y_train)
    assert ours.score(X_test, y_test) >= theirs.score(X_test, y_test) - 0.02


# The loss is 1/(2m) ||error||^2, so that m lambda stands where Ridge has its alpha.
@pytest.mark.parametrize(("weight_decay", "exact"), [(0.0, LinearRegression()), (0.1, Ridge(alpha=100 * 0.1))])
def test_one_block_alone_is_linear_regression_for_one_output_and_for_several(weight_decay, exact):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 3)), rng.standard_normal((100, 2))
    ours = NetworkRegressor(
        depth=1, optimizer="gradient_descent", learning_rate=0.5, weight_decay=weight_decay, epochs=200, random_state=0
    )
    for values in (y, y[:, 1]):
        np.testing.assert_allclose(ours.fit(X, values).predict(X), exact.fit(X, values).predict(X), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("estimator", "loss"),
    [(NetworkClassifier, "softmax_cross_entropy"), (NetworkRegressor, "half_mean_squared_error")],
)
def test_the_first_steps_loss_and_gradient_norms_are_jaxs(estimator, loss):
    X, y = iris()
    model = small(estimator, depth=3, activation="tanh", **UNTRAINED).fit(X, y)
    parameters = oracle.parameters_of(model.network_)
    targets = y if loss == "softmax_cross_entropy" else y[None, :]
    value, (gradients, _) = value_and_gradients("tanh", loss)(parameters, X.T, targets)
    np.testing.assert_allclose(model.loss_curve_, [value], rtol=1e-10)
    np.testing.assert_allclose(model.grad_norms_, [[np.linalg.norm(dW) for dW, _ in gradients]], rtol=1e-10)


@pytest.mark.parametrize("estimator", BOTH)
def test_every_step_has_a_norm_of_every_block(estimator):
    model = small(estimator, depth=4, epochs=3, batch_size=40).fit(*iris())
    # 150 examples are batches of 40, 40, 40 and 30.
    assert model.grad_norms_.shape == (3 * 4, 4)
    assert model.history_.batch_sizes.tolist() == [40, 40, 40, 30] * 3
    assert (model.n_iter_, len(model.loss_curve_), model.n_features_in_) == (3, 3, 4)
    np.testing.assert_array_equal(model.grad_norms_, model.history_.grad_norm)


def test_probabilities_are_those_of_the_loss_and_sum_to_1():
    X, y = iris()
    model = small(NetworkClassifier, **UNTRAINED).fit(X, y)
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    assert log_loss(y, probabilities) == pytest.approx(model.loss_curve_[0], rel=1e-12)
    np.testing.assert_array_equal(model.predict(X), probabilities.argmax(axis=1))


def test_labels_may_be_strings():
    X, y = iris()
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)
    numbers, strings = small(NetworkClassifier).fit(X, y), small(NetworkClassifier).fit(X, names[y])
    np.testing.assert_array_equal(strings.predict(X), names[numbers.predict(X)])


def test_one_class_alone_is_always_predicted():
    X, _ = iris()
    model = small(NetworkClassifier).fit(X, np.full(len(X), 7))
    assert set(model.predict(X)) == {7}
    assert (model.predict_proba(X) == 1).all()


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_partial_fit_again_and_again_is_fit_to_the_last_bit(estimator, optimizer):
    X, y = iris()
    whole = small(estimator, optimizer=optimizer, epochs=3).fit(X, y)
    classes = {"classes": [0, 1, 2]} if estimator is NetworkClassifier else {}
    model = small(estimator, optimizer=optimizer).partial_fit(X, y, **classes)
    model.partial_fit(X, y).partial_fit(X, y)
    assert model.network_.parameters.tobytes() == whole.network_.parameters.tobytes()
    assert model.loss_curve_ == whole.loss_curve_
    assert model.grad_norms_.tobytes() == whole.grad_norms_.tobytes()
    assert model.n_iter_ == 3


def test_partial_fit_takes_parts_that_lack_a_class():
    X, y = iris()
    model = small(NetworkClassifier).partial_fit(X[:100], y[:100], classes=[0, 1, 2]).partial_fit(X[100:], y[100:])
    assert model.predict_proba(X).shape == (150, 3)


@pytest.mark.parametrize("estimator", BOTH)
def test_fit_begins_anew_and_gives_the_same_bits_again(estimator):
    X, y = iris()
    model = small(estimator).fit(X, y)
    first = model.network_.parameters.tobytes()
    assert model.fit(X, y).network_.parameters.tobytes() == first
    assert clone(model).fit(X, y).network_.parameters.tobytes() == first
    assert clone(model).set_params(random_state=1).fit(X, y).network_.parameters.tobytes() != first


@pytest.mark.parametrize("estimator", BOTH)
def test_a_pickle_predicts_and_trains_on_with_the_same_bits(estimator):
    X, y = iris()
    model = small(estimator, optimizer="adam").fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(X).tobytes() == model.predict(X).tobytes()
    model.partial_fit(X, y)
    again.partial_fit(X, y)
    assert again.network_.forward(X.T)[0].tobytes() == model.network_.forward(X.T)[0].tobytes()


def test_in_a_pipeline_under_cross_validation_and_a_grid_search():
    X, y = iris()
    pipeline = make_pipeline(StandardScaler(), NetworkClassifier(width=16, learning_rate=0.01, epochs=40, random_state=0))
    assert cross_val_score(pipeline, X, y).mean() > 0.9
    grid = {"networkclassifier__depth": np.array([1, 2]), "networkclassifier__learning_rate": [1e-6, 0.01]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.best_params_["networkclassifier__learning_rate"] == 0.01
    assert search.best_score_ > 0.9


@pytest.mark.parametrize("estimator", BOTH)
def test_float32_is_float32_from_the_data_to_the_answer(estimator):
    X, y = iris()
    model = small(estimator, dtype="float32").fit(X, y)
    assert model.network_.parameters.dtype == model.grad_norms_.dtype == np.float32
    assert model._logits(X).dtype == np.float32


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", 0, "depth is 0, it must be a whole number of at least 1"),
        ("depth", "3", "depth is '3', it must be a number"),
        ("width", 2.5, "width is 2.5, it must be a whole number of at least 1"),
        ("activation", "step", "activation 'step' is unknown, allowed: identity, sigmoid"),
        ("kind", "foo", "kind 'foo' is unknown, allowed: plain, residual, normalized, batch_normalized"),
        ("initializer", None, "initializer 'None' is unknown, allowed: zeros, normal"),
        ("optimizer", ["adam"], "optimizer \"['adam']\" is unknown, allowed: gradient_descent, momentum, nesterov, adam"),
        ("learning_rate", 0, "learning_rate is 0, it must be finite and above 0"),
        ("momentum", 1.0, "momentum is 1.0, it must be finite and at least 0 and below 1"),
        ("weight_decay", -1, "weight_decay is -1, it must be finite and at least 0"),
        ("epochs", 0, "epochs is 0, it must be a whole number of at least 1"),
        ("batch_size", np.inf, "batch_size is inf, it must be a whole number of at least 1"),
        ("dtype", "float16", "dtype 'float16' is unknown, allowed: float32, float64"),
        ("early_stopping", "yes", "early_stopping is 'yes', it must be True or False"),
        ("validation_fraction", 1.0, "validation_fraction is 1.0, it must be finite and above 0 and below 1"),
        ("n_iter_no_change", -1, "n_iter_no_change is -1, it must be a whole number of at least 1"),
        ("tol", np.nan, "tol is nan, it must be finite and at least 0"),
        ("warm_start", 1, "warm_start is 1, it must be True or False"),
        ("random_state", -1, "random_state is -1, it must be None, a whole number from 0"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_its_name(estimator, name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        small(estimator, **{name: value}).fit(*iris())
    assert "\n" not in str(raised.value)


def test_classes_are_needed_first_and_stay_the_same():
    X, y = iris()
    with pytest.raises(ValueError, match="classes is None, the first call of partial_fit must be given all labels"):
        small(NetworkClassifier).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y has labels \[2\], they must be in classes: \[0, 1\]"):
        small(NetworkClassifier).partial_fit(X, y, classes=[0, 1])
    model = small(NetworkClassifier).fit(X, y)
    with pytest.raises(ValueError, match=r"classes is \[0, 1\], it must be that of the first call: \[0, 1, 2\]"):
        model.partial_fit(X[:50], y[:50], classes=[0, 1])


def test_log_probabilities_are_finite_where_a_probability_is_0():
    X, y = iris()
    model = small(NetworkClassifier).fit(X, y)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=1e-12)
    far = model.predict_log_proba(1e6 * X)
    assert np.isfinite(far).all()
    assert far.min() < np.log(np.finfo(float).tiny)


ROWS = np.ones((4, 2))
BAD_TARGETS = {
    "strings": (NetworkRegressor, ["setosa", "b", "c", "d"], "^y holds 'setosa', NetworkRegressor takes numbers"),
    "strings as objects": (NetworkRegressor, np.array(["setosa", 1, 2, 3], object), "^y holds 'setosa', NetworkRegressor"),
    "bytes": (NetworkRegressor, np.array([b"a"] * 4), "NetworkRegressor takes numbers; NetworkClassifier takes labels"),
    "dates": (NetworkRegressor, np.array(["2020-01-01"] * 4, "M8[D]"), "^y holds '2020-01-01', NetworkRegressor takes numbers"),
    "strings in columns": (NetworkRegressor, [["a", "b"]] * 4, "^y holds 'a', NetworkRegressor takes numbers"),
    "sparse values": (NetworkRegressor, sparse.csr_matrix(np.eye(4)), "Sparse data was passed for y"),
    "sparse labels": (NetworkClassifier, sparse.csr_matrix(np.eye(4)), "Sparse data was passed for y"),
    "multilabel": (NetworkClassifier, np.eye(4, dtype=int), r"y should be a 1d array, got an array of shape \(4, 4\)"),
    "multilabel floats": (NetworkClassifier, np.eye(4), r"y should be a 1d array, got an array of shape \(4, 4\)"),
    "numbers that are no labels": (NetworkClassifier, [0.1, 0.2, 0.3, 0.4], "Unknown label type: continuous"),
    "too large for float32": (
        NetworkRegressor,
        [0, 1, 2, 1e39],
        r"Input y contains infinity or a value too large for dtype\('float32'\)",
    ),
    "several, one too large": (NetworkRegressor, [[0, 1e39]] * 4, r"Input y contains infinity or a value too large for dtype"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_targets_that_do_not_fit_are_named(name):
    estimator, y, message = BAD_TARGETS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        small(estimator, dtype="float32").fit(ROWS, y)


@pytest.mark.parametrize("estimator", BOTH)
def test_sparse_and_too_large_data_are_refused_when_fitted_and_when_asked(estimator):
    X, y = iris()
    model = small(estimator, dtype="float32").fit(X, y)
    for call in (lambda X: small(estimator, dtype="float32").fit(X, y), model.predict, lambda X: model.partial_fit(X, y)):
        with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
            call(sparse.csr_matrix(X))
        with pytest.raises(ValueError, match=r"Input X contains infinity or a value too large for dtype\('float32'\)"):
            call(np.where(X.max() > X, X, 1e39))
