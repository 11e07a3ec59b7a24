"""Gradient descent whose path has a closed form, and the sharpness that it reaches."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from blocks import GradientDescent, Network, losses, train
from blocks.arrays import Array
from blocks.measure.lanczos import sharpness
from blocks.theory import largest_curvature, softmax_sharpness
from experiments.published.data import load_standardised
from experiments.published.row import Row

QUADRATIC = "2 / lambda_max, exact"
COHEN = "Cohen et al. 2021"
LEWKOWYCZ = "Lewkowycz et al. 2020"
SAXE = "Saxe et al. 2013"
LIU = "Liu 2024"


def stable_rate() -> Iterator[Row]:
    """Yield rows on the largest stable rate: full-batch descent of a linear model diverges exactly above 2 / lambda_max."""
    for name, lambda_max, classes in (("iris", 2.918498, 3), ("digits", 7.340689, 10), ("diabetes", 4.024211, 0)):
        x, _ = load_standardised(name)
        yield Row(f"{name}: lambda_max", QUADRATIC, lambda_max, largest_curvature(x), 6e-7)
        if classes:
            yield Row(
                f"{name}: sharpness of softmax regression", QUADRATIC, lambda_max / classes, softmax_sharpness(x, classes), 6e-7
            )
    yield Row(
        "diabetes at 1.001 of the limit: update at which the loss passes 1e6", QUADRATIC, 3926, _step_above_bound(1.001, 5000), 0
    )
    yield Row(
        "diabetes at 0.999 of the limit: the same, 20000 updates (-1 is never)", QUADRATIC, -1, _step_above_bound(0.999, 20000), 0
    )


def _step_above_bound(limit_share: float, updates: int) -> int:
    """Return the update at which the loss on diabetes exceeds 1e6, -1 where it never does.

    limit_share: the learning rate is limit_share * 2 / lambda_max.
    """
    x, y = load_standardised("diabetes")
    y = (y - y.mean()) / y.std()
    network = Network.create([10, 1], "identity", "zeros", rng=np.random.default_rng(0))
    optimizer = GradientDescent(limit_share * 2 / largest_curvature(x))
    loss = losses.half_mean_squared_error
    history = train(network, x, y, loss=loss, optimizer=optimizer, epochs=updates, evaluations=0, loss_bound=1e6)
    return int(history.diverged_step)


def edge_of_stability() -> Iterator[Row]:
    """Yield rows on the edge of stability: full-batch gradient descent raises the sharpness to 2 / lr and keeps it there."""
    x, labels = load_standardised("digits")
    y = np.eye(10)[:, labels]
    loss = losses.half_mean_squared_error
    for rate, published_values in ((0.4, (5.16, 5.14, 5.09, 5.08, 5.09)), (0.3, (7.50, 6.70, 6.67, 6.74, 6.71))):
        network = Network.create([64, 32, 32, 10], "tanh", "lecun", rng=np.random.default_rng(0))
        for index, published_value in enumerate(published_values, 1):
            train(network, x, y, loss=loss, optimizer=GradientDescent(rate), epochs=400, evaluations=0)
            if index > 1:
                ours = float(np.ravel(sharpness(network, x, y, loss, rng=np.random.default_rng(0)))[0])
                # The initial weights are not the published ones, but both sharpnesses are near 2 / lr.
                yield Row(
                    f"digits, lr {rate}, update {400 * index}: sharpness (2/lr = {2 / rate:.3f})",
                    COHEN,
                    published_value,
                    ours,
                    0.05 * published_value,
                )


def catapult() -> Iterator[Row]:
    """Yield rows on f = v.u / sqrt(n) with J = f^2 / 2, in which each update of gradient descent has a closed form."""
    n, steps = 64, 30
    for share in (1.5, 2.5, 3.9):
        rng = np.random.default_rng(0)
        u, v = rng.standard_normal((2, n))
        lam = (u @ u + v @ v) / n
        f = u @ v / math.sqrt(n)
        rate = share / lam
        network = _linear_network([u[:, None] / n**0.25, v[None, :] / n**0.25])
        largest_error = largest_f = 0.0
        for _ in range(steps):
            ours = _output_before_update(network, rate / math.sqrt(n), lambda logits: logits)
            largest_error, largest_f = max(largest_error, abs(ours - f)), max(largest_f, abs(f))
            f, lam = (1 - rate * lam + rate**2 * f**2 / n) * f, lam + rate * f**2 / n * (rate * lam - 4)
        yield Row(
            f"rate {share} / lam_0: largest error of f over {steps} updates, in max |f|",
            LEWKOWYCZ,
            0,
            largest_error / largest_f,
            1e-9,
        )


def _linear_network(weights: list[Array]) -> Network:
    """Return a linear network in float64 with these W and with biases of 0."""
    sizes = [weights[0].shape[1], *(W.shape[0] for W in weights)]
    network = Network.create(sizes, "identity", "zeros", rng=np.random.default_rng(0))
    for block, W in zip(network.blocks, weights, strict=True):
        block.W[...] = W
    return network


def _output_before_update(network: Network, rate: float, dlogits: Callable[[Array], Array]) -> float:
    """Update the weights, but not the biases, for the input 1, and return the output f before this update.

    dlogits: the derivative of J with respect to the logits, as a function of the logits.
    """
    logits, caches = network.forward(np.ones((1, 1)))
    output = float(logits[0, 0])
    for block, (dW, _) in zip(network.blocks, network.backward(dlogits(logits), caches), strict=True):
        block.W[...] -= rate * dW
    return output


def deep_linear() -> Iterator[Row]:
    """Yield rows on one mode of a linear network, J = (s - ab)^2 / 2, whose weights a and b are equal at the start."""
    s, u_0, time = 2.0, 1e-3, 4.0
    for rate, published in ((1e-2, 2.78e-2), (1e-3, 2.78e-3), (1e-4, 2.78e-4)):
        network = _linear_network([np.full((1, 1), math.sqrt(u_0))] * 2)
        largest_error = 0.0
        for step in range(round(time / rate)):
            growth = math.exp(2 * s * step * rate)
            exact = s * growth / (growth - 1 + s / u_0)
            largest_error = max(largest_error, abs(_output_before_update(network, rate, lambda logits: logits - s) - exact))
        yield Row(f"lr {rate:g}: largest error of ab(t)", SAXE, published, largest_error, 0.005 * published)


def scaling() -> Iterator[Row]:
    """Yield a row on f(x) = x^2 + eps cos(2 pi x / lambda), whose path with eps / 4 and lambda / 2 is scaled by exactly 1/2."""

    def path(eps: float, wavelength: float, start: float) -> Array:
        theta = np.array([start])
        rule = GradientDescent(0.05)
        state = rule.start(Network.create([1, 1], "identity", "zeros", rng=np.random.default_rng(0)))
        positions = []
        for _ in range(1000):
            gradient = 2 * theta - eps * (2 * np.pi / wavelength) * np.sin(2 * np.pi * (theta / wavelength))
            rule.update(theta, gradient, state)
            positions.append(theta[0])
        return np.array(positions)

    full_path, half_path = path(0.2, 0.1, 1.0), path(0.05, 0.05, 0.5)
    yield Row("updates of 1000 whose place is not half the other's", LIU, 0, float((full_path / 2 != half_path).sum()), 0)
