"""How the estimators train: by weights, further from where they are, until a part held out gets no better, in little memory."""

import re
import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import AdaBoostClassifier, AdaBoostRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from blocks import train
from blocks.estimators import NetworkClassifier, NetworkRegressor
from blocks.estimators import base as network_estimator
from tests.blocks.test_estimators import BOTH, iris, small


@pytest.mark.parametrize("estimator", BOTH)
def test_early_stopping_ends_where_the_score_gets_no_better_and_keeps_the_best(estimator, monkeypatch):
    held = []

    def recorded(X, y, **options):
        parts = train_test_split(X, y, **options)
        held.append((parts[1], parts[3]))
        return parts

    monkeypatch.setattr(network_estimator, "train_test_split", recorded)
    X, y = load_digits(return_X_y=True)
    model = small(estimator, epochs=300, batch_size=200, learning_rate=0.01, early_stopping=True, n_iter_no_change=4, tol=0.05)
    model.fit(X / 16, y)
    scores = np.array(model.validation_scores_)
    assert len(held[0][0]) == 180
    if estimator is NetworkClassifier:
        # Every digit's share of the data is 174 to 183 in 1797.
        assert set(np.bincount(held[0][1])) <= {17, 18, 19}
    assert model.n_iter_ == len(scores) == len(model.loss_curve_) < 300
    assert len(model.grad_norms_) == model.n_iter_ * model.history_.steps_an_epoch
    rises = scores[1:] > np.maximum.accumulate(scores)[:-1] + 0.05
    assert rises[-5]
    assert not rises[-4:].any()
    assert model.score(*held[0]) == pytest.approx(scores.max(), rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "scale", "epochs", "place", "slope"),
    [
        # W - 1 is multiplied by 1 - rate a step: 1, -1e100, 1e200, whose square no float64 holds.
        pytest.param(1e100, 1.0, 5, "at step 2 in the loss", 1e100, id="the loss overflows"),
        pytest.param(1e308, 10.0, 5, "at step 1 in block 1", 0.0, id="an update overflows"),
        pytest.param(1e308, 10.0, 1, "at step 1 in block 1", 0.0, id="the last update overflows"),
        pytest.param(1e155, 1.0, 1, "at step 1 in the loss", 0.0, id="the loss after the last update overflows"),
    ],
)
def test_a_training_that_diverges_warns_and_keeps_the_last_parameters_with_a_finite_loss(rate, scale, epochs, place, slope):
    X, y = np.array([[1.0], [-1.0]]), scale * np.array([1.0, -1.0])
    model = NetworkRegressor(depth=1, initializer="zeros", optimizer="gradient_descent", learning_rate=rate, epochs=epochs)
    with pytest.warns(ConvergenceWarning, match=place) as caught:
        model.fit(X, y)
    assert caught[0].filename == __file__
    assert model.predict([[1.0]]) == pytest.approx([slope], rel=1e-12)
    assert len(model.loss_curve_) == epochs
    assert not np.isfinite(model.loss_curve_[2:]).any()


def test_a_part_that_cannot_be_learned_leaves_the_network_as_it_was():
    X, y = iris()
    model = small(NetworkRegressor).fit(X, y)
    before = model.network_.parameters.copy()
    with pytest.warns(ConvergenceWarning, match="at step 0 in the loss") as caught:
        model.partial_fit(1e200 * X, y)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(model.network_.parameters, before)


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize(("fraction", "examples"), [(0.001, 150), (0.1, 1), (0.1, 10), (0.99, 2)])
def test_a_part_that_is_too_small_to_hold_out_is_named_by_the_users_parameter(estimator, fraction, examples):
    X, y = (values[:examples] for values in iris())
    message = f"validation_fraction is {fraction}, it must hold out at least 2 examples of {examples} and leave at least 1"
    with pytest.raises(ValueError, match=f"^{message}$"):
        small(estimator, early_stopping=True, validation_fraction=fraction).fit(X, y)


@pytest.mark.parametrize(
    ("labels", "fraction"),
    [
        pytest.param(["rara"] + ["common"] * 149, 0.1, id="a class of one"),
        pytest.param([*range(75)] * 2, 0.1, id="more classes than are held out"),
        pytest.param([0, 1, 2] * 50, 0.99, id="more classes than are left"),
        pytest.param([0] * 150, 0.1, id="one class alone"),
    ],
)
def test_early_stopping_takes_classes_too_small_to_be_in_both_parts(labels, fraction):
    X, _ = iris()
    model = small(NetworkClassifier, early_stopping=True, validation_fraction=fraction).fit(X, labels)
    assert model.classes_.tolist() == sorted(set(labels))
    assert len(model.validation_scores_) == 3


@pytest.mark.parametrize("estimator", BOTH)
def test_an_example_of_weight_k_is_k_examples_and_one_of_weight_0_is_none(estimator):
    X, y = iris()
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, 150)
    # All of them are one batch, whose order rounds the last bits alone.
    options = {"batch_size": 1000, "optimizer": "momentum", "learning_rate": 0.01}
    weighted = small(estimator, **options).fit(X, y, sample_weight=2.5 * counts)
    repeated = small(estimator, **options).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.network_.parameters, repeated.network_.parameters, rtol=1e-9)
    np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=1e-9)
    # In small batches too, and to the last bit, an example of weight 0 is not there, and equal weights are none.
    present = counts > 0
    absent = small(estimator).fit(X[present], y[present])
    zero = small(estimator).fit(X, y, sample_weight=np.where(present, 0.3, 0))
    assert zero.network_.parameters.tobytes() == absent.network_.parameters.tobytes()


def test_partial_fit_takes_weights_as_mlp_classifiers_does():
    X, y = iris()
    weights = np.random.default_rng(0).uniform(0.1, 10, 150)
    model = small(NetworkClassifier).partial_fit(X, y, classes=[0, 1, 2], sample_weight=weights)
    whole = small(NetworkClassifier, epochs=2).fit(X, y, sample_weight=weights)
    assert model.partial_fit(X, y, sample_weight=weights).network_.parameters.tobytes() == whole.network_.parameters.tobytes()
    values = small(NetworkRegressor).partial_fit(X, y, weights)
    assert (
        values.network_.parameters.tobytes() == small(NetworkRegressor, epochs=1).fit(X, y, weights).network_.parameters.tobytes()
    )


@pytest.mark.parametrize(("estimator", "score"), [(NetworkClassifier, accuracy_score), (NetworkRegressor, r2_score)])
def test_early_stopping_scores_what_is_held_out_by_its_weights(estimator, score, monkeypatch):
    held = []

    def recorded(*arrays, **options):
        parts = train_test_split(*arrays, **options)
        held.append(parts[1::2])
        return parts

    monkeypatch.setattr(network_estimator, "train_test_split", recorded)
    X, y = iris()
    weights = np.where(y == 0, 100.0, np.where(y == 1, 1.0, 0.0)) * np.random.default_rng(0).uniform(1, 2, 150)
    model = small(estimator, epochs=1, early_stopping=True, validation_fraction=0.3).fit(X, y, weights)
    X_held, y_held, weights_held = held[0]
    # The third class has no weight: 30 of the 100 other examples are held out.
    assert len(X_held) == 30
    assert model.validation_scores_ == [pytest.approx(score(y_held, model.predict(X_held), sample_weight=weights_held))]


def test_boosting_takes_the_estimators():
    X, y = iris()
    boosted = AdaBoostClassifier(small(NetworkClassifier, epochs=20, learning_rate=0.01), n_estimators=3, random_state=0)
    assert boosted.fit(X, y).score(X, y) > 0.9
    assert len(set(map(tuple, (model.network_.parameters for model in boosted.estimators_)))) == len(boosted.estimators_)
    assert (
        AdaBoostRegressor(small(NetworkRegressor, epochs=20, learning_rate=0.01), n_estimators=2, random_state=0)
        .fit(X, y)
        .score(X, y)
        > 0.5
    )


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"sample_weight.shape == \(3,\), expected \(150,\)"),
        (np.full(150, -1.0), "Negative values in data passed to `sample_weight`"),
        (np.full(150, np.nan), "Input sample_weight contains NaN"),
        (np.zeros(150), "[Ss]ample weights must contain at least one non-zero number"),
    ],
)
def test_weights_that_do_not_fit_are_named(estimator, weights, message):
    with pytest.raises(ValueError, match=message):
        small(estimator).fit(*iris(), sample_weight=weights)


@pytest.mark.parametrize("estimator", BOTH)
def test_a_warm_start_goes_on_with_the_fitted_weights(estimator):
    X, y = iris()
    whole = small(estimator, optimizer="gradient_descent", epochs=6).fit(X, y)
    model = small(estimator, optimizer="gradient_descent", epochs=3, warm_start=True).fit(X, y)
    network = model.network_
    model.fit(X, y)
    assert model.network_ is network
    assert network.parameters.tobytes() == whole.network_.parameters.tobytes()
    assert (model.n_iter_, model.loss_curve_) == (6, whole.loss_curve_)
    # The optimizer is a new one: of another kind, and with another rate.
    model.set_params(optimizer="adam", learning_rate=1e-300).fit(X, y)
    np.testing.assert_array_equal(network.parameters, whole.network_.parameters)
    assert clone(model).fit(X, y).n_iter_ == 3


def test_a_warm_start_keeps_the_best_parameters_of_before_where_it_finds_no_better_ones():
    X, y = iris()
    model = small(NetworkClassifier, epochs=30, learning_rate=0.01, early_stopping=True, warm_start=True).fit(X, y)
    before, scores = model.network_.parameters.copy(), model.validation_scores_
    model.set_params(optimizer="gradient_descent", learning_rate=1e6, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    np.testing.assert_array_equal(model.network_.parameters, before)
    assert model.validation_scores_[: len(scores)] == scores
    assert len(model.validation_scores_) == model.n_iter_


@pytest.mark.parametrize("goes_on", ["warm_start", "partial_fit"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", 7, "width is 7, the network to be trained further has 8"),
        ("depth", 3, "depth is 3, the network to be trained further has 2"),
        ("activation", "tanh", "activation is 'tanh', the network to be trained further has 'relu'"),
        ("dtype", "float32", "dtype is 'float32', the network to be trained further has 'float64'"),
        ("kind", "residual", "kind is 'residual', the network to be trained further has 'plain'"),
    ],
)
def test_a_network_is_trained_further_as_it_was_built(goes_on, name, value, message):
    X, y = iris()
    model = small(NetworkRegressor, warm_start=goes_on == "warm_start").fit(X, y).set_params(**{name: value})
    with pytest.raises(ValueError, match=f"^{message}$"):
        (model.fit if goes_on == "warm_start" else model.partial_fit)(X, y)


def test_a_warm_start_needs_the_same_classes_features_and_outputs():
    X, y = iris()
    model = small(NetworkClassifier, warm_start=True).fit(X, y)
    for labels in (y % 2, y + 1, np.r_[3, y[1:]]):
        with pytest.raises(ValueError, match=r"y has the labels \[.*\], warm_start needs those of before: \[0, 1, 2\]"):
            model.fit(X, labels)
    with pytest.raises(ValueError, match="X has 2 features, but NetworkClassifier is expecting 4 features"):
        model.fit(X[:, :2], y)
    regressor = small(NetworkRegressor, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match=r"y has shape \(150, 3\), the network to be trained further has 1 outputs"):
        regressor.fit(X, np.eye(3)[y])


@pytest.mark.parametrize("estimator", BOTH)
def test_partial_fit_with_early_stopping_is_refused_as_mlps_is(estimator):
    X, y = iris()
    classes = {"classes": [0, 1, 2]} if estimator is NetworkClassifier else {}
    for model in (MLPClassifier(early_stopping=True), small(estimator, early_stopping=True)):
        with pytest.raises(ValueError, match=r"^partial_fit does not support early_stopping=True$"):
            model.partial_fit(X, y, **(classes if model.__class__ is estimator else {"classes": [0, 1, 2]}))


def test_another_number_of_outputs_is_named_in_the_users_shape():
    X, y = iris()
    for first, then, has in ((y, np.c_[y, y], 1), (np.c_[y, y], y, 2), (np.c_[y, y], np.c_[y, y, y], 2)):
        model = small(NetworkRegressor).fit(X, first)
        message = rf"y has shape {re.escape(str(then.shape))}, the network to be trained further has {has} outputs"
        with pytest.raises(ValueError, match=message):
            model.partial_fit(X, then)


@pytest.mark.parametrize("estimator", BOTH)
def test_float32_data_are_neither_copied_nor_widened_for_a_float32_network(estimator, monkeypatch):
    received = {}

    def recorded(network, x, y, **options):
        received.update(x=x, y=y, network=network)
        return train(network, x, y, **options)

    monkeypatch.setattr(network_estimator, "train", recorded)
    X, y = (values.astype(np.float32) for values in iris())
    small(estimator, dtype="float32").fit(X, y)
    assert np.shares_memory(received["x"], X)
    assert received["x"].dtype == received["network"].parameters.dtype == np.float32
    if estimator is NetworkRegressor:
        assert np.shares_memory(received["y"], y)


def test_ten_thousand_classes_are_no_array_of_rows_by_classes(monkeypatch):
    m, classes = 25_000, 10_000
    X, y = np.random.default_rng(0).standard_normal((m, 2)), np.arange(m) % classes
    model = NetworkClassifier(depth=1, batch_size=20, random_state=0)

    def stopped(*_):
        raise KeyboardInterrupt

    # Before the first update all that a training needs is there.
    monkeypatch.setattr(network_estimator._Continued, "update", stopped)
    tracemalloc.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One byte for each row and class would be more.
    assert peak < m * classes / 4
