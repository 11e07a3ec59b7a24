"""Whole trainings against scikit-learn's MLPClassifier, epoch by epoch."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import MinMaxScaler

from blocks import GradientDescent, Momentum, Nesterov, Network, losses, train
from experiments.published.scikit_learn import RecordingMLP

RULES = {
    "gradient descent": (GradientDescent(0.2), {"momentum": 0, "nesterovs_momentum": False}),
    "momentum": (Momentum(0.2, 0.9), {"momentum": 0.9, "nesterovs_momentum": False}),
    "nesterov": (Nesterov(0.2, 0.9), {"momentum": 0.9, "nesterovs_momentum": True}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("loader", "epochs"), [(load_iris, 60), (load_digits, 15)])
def test_the_loss_curve_is_scikit_learns_at_every_epoch(loader, epochs, rule):
    optimizer, options = RULES[rule]
    X, y = loader(return_X_y=True)
    X = MinMaxScaler().fit_transform(X)
    m, batch_size = len(X), min(200, len(X))
    theirs = RecordingMLP(
        (100,),
        solver="sgd",
        alpha=0,
        learning_rate_init=0.2,
        max_iter=epochs,
        random_state=0,
        tol=0,
        n_iter_no_change=epochs,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(X, y)

    network = Network.create([X.shape[1], 100, len(np.unique(y))], "relu", "zeros", rng=np.random.default_rng(0))
    for block, (W, b) in zip(network.blocks, theirs.initial, strict=True):
        block.W[...], block.b[...] = W, b

    history = train(
        network,
        X.T,
        y,
        loss=losses.softmax_cross_entropy,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        orders=theirs.orders(m),
    )
    assert len(theirs.loss_curve_) == epochs
    np.testing.assert_allclose(history.epoch_loss(), theirs.loss_curve_, rtol=0, atol=1e-10)
    for block, W in zip(network.blocks, theirs.coefs_, strict=True):
        np.testing.assert_allclose(block.W, W.T, rtol=0, atol=1e-9)


# scikit-learn's example plot_mlp_training_curves on iris, alpha 1e-4 and 400 epochs at most: the epochs until its own
# tolerance stopped it, the final training score and loss_.
PUBLISHED_ON_IRIS = {
    "gradient descent": (GradientDescent(0.2, weight_decay=1e-4 / 150), 400, 0.98, 0.096950),
    "momentum": (Momentum(0.2, 0.9, weight_decay=1e-4 / 150), 139, 0.98, 0.049530),
    "nesterov": (Nesterov(0.2, 0.9, weight_decay=1e-4 / 150), 143, 0.98, 0.049540),
}


@pytest.mark.parametrize("rule", PUBLISHED_ON_IRIS)
def test_the_final_score_and_loss_on_iris_are_the_published_ones(rule):
    """Its L2 term is alpha / (2 m) ||W||^2, so its gradient is this weight decay; one batch holds all m = 150."""
    optimizer, epochs, score, final_loss = PUBLISHED_ON_IRIS[rule]
    X, y = load_iris(return_X_y=True)
    X = MinMaxScaler().fit_transform(X)
    theirs = RecordingMLP((100,), max_iter=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(X, y)
    network = Network.create([4, 100, 3], "relu", "zeros", rng=np.random.default_rng(0))
    for block, (W, b) in zip(network.blocks, theirs.initial, strict=True):
        block.W[...], block.b[...] = W, b
    squares = []

    def watch(step, history):
        squares.append(sum((block.W**2).sum() for block in network.blocks))

    history = train(network, X.T, y, loss=losses.softmax_cross_entropy, optimizer=optimizer, epochs=epochs, watch=watch)
    # The last step's loss is of the weights before its update, and so is the penalty beside it.
    assert history.loss[-1] + 1e-4 * squares[-2] / 2 / 150 == pytest.approx(final_loss, abs=6e-7)
    assert history.measures["accuracy/train"][-1] == pytest.approx(score)
