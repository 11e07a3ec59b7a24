"""Gradient descent in closed form, and its sharpness."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from blocks import GradientDescent, Network, losses, train
from blocks.arrays import Array
from blocks.measure.lanczos import sharpness
from blocks.theory import largest_curvature, softmax_sharpness
from experiments.published.data import standardised
from experiments.published.row import Row

QUADRATIC = "2 / lambda_max, exact"
COHEN = "Cohen et al. 2021"
LEWKOWYCZ = "Lewkowycz et al. 2020"
SAXE = "Saxe et al. 2013"
LIU = "Liu 2024"


def stable_rate() -> Iterator[Row]:
    """Full-batch gradient descent of a linear model diverges just where its rate is above 2 / lambda_max."""
    for name, lambda_max, classes in (("iris", 2.918498, 3), ("digits", 7.340689, 10), ("diabetes", 4.024211, 0)):
        x, _ = standardised(name)
        yield Row(f"{name}: lambda_max", QUADRATIC, lambda_max, largest_curvature(x), 6e-7)
        if classes:
            yield Row(
                f"{name}: sharpness of softmax regression", QUADRATIC, lambda_max / classes, softmax_sharpness(x, classes), 6e-7
            )
    yield Row("diabetes at 1.001 of the limit: update at which the loss passes 1e6", QUADRATIC, 3926, _passes(1.001, 5000), 0)
    yield Row("diabetes at 0.999 of the limit: the same, 20000 updates (-1 is never)", QUADRATIC, -1, _passes(0.999, 20000), 0)


def _passes(share: float, updates: int) -> int:
    x, y = standardised("diabetes")
    y = (y - y.mean()) / y.std()
    network = Network.create([10, 1], "identity", "zeros", rng=np.random.default_rng(0))
    rule = GradientDescent(share * 2 / largest_curvature(x))
    half_squares = losses.half_mean_squared_error
    history = train(network, x, y, loss=half_squares, optimizer=rule, epochs=updates, evaluations=0, loss_bound=1e6)
    return int(history.diverged_step)


def edge_of_stability() -> Iterator[Row]:
    """Full-batch gradient descent raises the sharpness to 2 / lr, where it stays."""
    x, labels = standardised("digits")
    y = np.eye(10)[:, labels]
    half_squares = losses.half_mean_squared_error
    for rate, published in ((0.4, (5.16, 5.14, 5.09, 5.08, 5.09)), (0.3, (7.50, 6.70, 6.67, 6.74, 6.71))):
        network = Network.create([64, 32, 32, 10], "tanh", "lecun", rng=np.random.default_rng(0))
        for number, value in enumerate(published, 1):
            train(network, x, y, loss=half_squares, optimizer=GradientDescent(rate), epochs=400, evaluations=0)
            if number > 1:
                ours = float(np.ravel(sharpness(network, x, y, half_squares, rng=np.random.default_rng(0)))[0])
                # Other initial weights: what they share is 2 / lr.
                yield Row(
                    f"digits, lr {rate}, update {400 * number}: sharpness (2/lr = {2 / rate:.3f})",
                    COHEN,
                    value,
                    ours,
                    0.05 * value,
                )


def catapult() -> Iterator[Row]:
    """f = v.u / sqrt(n), J = f^2 / 2: one update of gradient descent in closed form."""
    n, steps = 64, 30
    for share in (1.5, 2.5, 3.9):
        rng = np.random.default_rng(0)
        u, v = rng.standard_normal((2, n))
        lam = (u @ u + v @ v) / n
        f = u @ v / math.sqrt(n)
        rate = share / lam
        network = _without_biases([u[:, None] / n**0.25, v[None, :] / n**0.25])
        worst = largest = 0.0
        for _ in range(steps):
            ours = _updated(network, rate / math.sqrt(n), lambda logits: logits)
            worst, largest = max(worst, abs(ours - f)), max(largest, abs(f))
            f, lam = (1 - rate * lam + rate**2 * f**2 / n) * f, lam + rate * f**2 / n * (rate * lam - 4)
        yield Row(
            f"rate {share} / lam_0: largest error of f over {steps} updates, in max |f|", LEWKOWYCZ, 0, worst / largest, 1e-9
        )


def _without_biases(weights: list[Array]) -> Network:
    """A deep linear network with those W and no biases, in float64."""
    sizes = [weights[0].shape[1], *(W.shape[0] for W in weights)]
    network = Network.create(sizes, "identity", "zeros", rng=np.random.default_rng(0))
    for block, W in zip(network.blocks, weights, strict=True):
        block.W[...] = W
    return network


def _updated(network: Network, rate: float, dlogits: Callable[[Array], Array]) -> float:
    """f before one update of the weights alone, at the input 1."""
    logits, caches = network.forward(np.ones((1, 1)))
    before = float(logits[0, 0])
    for block, (dW, _) in zip(network.blocks, network.backward(dlogits(logits), caches), strict=True):
        block.W[...] -= rate * dW
    return before


def deep_linear() -> Iterator[Row]:
    """One mode of a linear network of two weights, J = (s - ab)^2 / 2, balanced."""
    s, u_0, time = 2.0, 1e-3, 4.0
    for rate, published in ((1e-2, 2.78e-2), (1e-3, 2.78e-3), (1e-4, 2.78e-4)):
        network = _without_biases([np.full((1, 1), math.sqrt(u_0))] * 2)
        worst = 0.0
        for step in range(round(time / rate)):
            grown = math.exp(2 * s * step * rate)
            exact = s * grown / (grown - 1 + s / u_0)
            worst = max(worst, abs(_updated(network, rate, lambda logits: logits - s) - exact))
        yield Row(f"lr {rate:g}: largest error of ab(t)", SAXE, published, worst, 0.005 * published)


def scaling() -> Iterator[Row]:
    """f(x) = x^2 + eps cos(2 pi x / lambda): eps / 4 and lambda / 2 scale the path by 1/2, bit for bit."""

    def path(eps: float, wavelength: float, start: float) -> Array:
        theta = np.array([start])
        rule = GradientDescent(0.05)
        state = rule.start(Network.create([1, 1], "identity", "zeros", rng=np.random.default_rng(0)))
        places = []
        for _ in range(1000):
            gradient = 2 * theta - eps * (2 * np.pi / wavelength) * np.sin(2 * np.pi * (theta / wavelength))
            rule.update(theta, gradient, state)
            places.append(theta[0])
        return np.array(places)

    whole, half = path(0.2, 0.1, 1.0), path(0.05, 0.05, 0.5)
    yield Row("updates of 1000 whose place is not half the other's", LIU, 0, float((whole / 2 != half).sum()), 0)
