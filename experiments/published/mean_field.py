"""Mean-field theory: signals and gradients of random networks, and which of these networks train."""

import math
from collections.abc import Iterator

import numpy as np

from blocks import GradientDescent, Network, losses, train
from blocks.theory import MeanField, critical_gain
from experiments.published.data import load_standardised
from experiments.published.row import Row

SCHOENHOLZ = "Schoenholz et al. 2017"
HE = "He et al. 2015"


def mean_field() -> Iterator[Row]:
    """Fixed points, chi_1, depth scales and critical points of tanh; gradients of random networks; accuracies on digits."""
    points = {
        0.5: (0.087580, 0.431987, 1.19),
        1.0: (0.193593, 0.759032, 3.63),
        1.5: (0.418037, 0.938636, 15.79),
        2.0: (0.721762, 1.047666, 25.2),
        3.0: (1.428008, 1.208934, 9.05),
    }
    for sw2, (q, chi_1, xi) in points.items():
        field = MeanField("tanh", sw2, 0.05)
        yield Row(f"tanh, sw2 {sw2}: q*", SCHOENHOLZ, q, field.fixed_point, 6e-7)
        yield Row(f"tanh, sw2 {sw2}: chi_1", SCHOENHOLZ, chi_1, field.chi_1, 6e-7)
        # The tolerances have as many digits as the published numbers.
        yield Row(f"tanh, sw2 {sw2}: xi_c", SCHOENHOLZ, xi, field.correlation_depth_scale, 0.06 if xi > 20 else 0.006)
        yield Row(f"tanh, sw2 {sw2}: chi_1 of gradients, width 300", SCHOENHOLZ, chi_1, _measured_chi(sw2), 0.05 * chi_1)
    for sb2, sw2, q in ((0.05, 1.760955, 0.570048), (0.0025, 1.122539**2, 0.153692)):
        yield Row(f"tanh, sb2 {sb2}: critical sw2", SCHOENHOLZ, sw2, critical_gain("tanh", sb2), 2e-6)
        yield Row(
            f"tanh, sb2 {sb2}: q* there", SCHOENHOLZ, q, MeanField("tanh", critical_gain("tanh", sb2), sb2).fixed_point, 2e-6
        )
    for sw2, hidden, accuracy, tolerance in ((1.0, 20, 0.987, 0.03), (1.0, 40, 0.240, 0.06), (1.760955, 40, 0.984, 0.03)):
        quantity = f"digits, tanh, sw2 {sw2}, {hidden} hidden blocks: training accuracy reached"
        yield Row(quantity, SCHOENHOLZ, accuracy, _best_accuracy_on_digits(sw2, hidden), tolerance)


def _measured_chi(sw2: float) -> float:
    """Return the factor of ||dJ/dW_l||^2 from block to block, going down, in 8 random networks of 30 blocks, for one example."""
    rng = np.random.default_rng(0)
    network = Network.create([300] * 31, "tanh", "normal", rng=rng, gain=sw2, bias_variance=0.05, lanes=8)
    x = math.sqrt(MeanField("tanh", sw2, 0.05).fixed_point) * rng.standard_normal((300, 1))
    logits, caches = network.forward(x)
    gradients = network.backward(rng.standard_normal(logits.shape), caches)
    # The first blocks do not count, since the variance of z is not yet q*; nor does the last one, which has no activation.
    log_squares = np.array([np.log((dW**2).sum(axis=(-2, -1))).mean() for dW, _ in gradients[5:-1]])
    return float(np.exp(-np.polyfit(np.arange(len(log_squares)), log_squares, 1)[0]))


def _best_accuracy_on_digits(sw2: float, hidden: int) -> float:
    """Return the best training accuracy within 300 updates at rate 0.05, with batches of 128 and width 64; the median of 3 seeds.

    The best accuracy counts and not the last one, since at this rate the accuracy of such deep networks falls and rises again.
    """
    x, y = load_standardised("digits")
    x = x.astype(np.float32)
    sizes, rng = [64, *[64] * hidden, 10], np.random.default_rng(0)
    network = Network.create(sizes, "tanh", "normal", rng=rng, gain=sw2, bias_variance=0.05, lanes=3, dtype=np.float32)
    optimizer, best_accuracy = GradientDescent(0.05), np.zeros(network.lanes)
    for _ in range(100):
        examples = rng.choice(len(y), 3 * 128, replace=False)
        cross_entropy = losses.softmax_cross_entropy
        train(
            network, x[:, examples], y[examples], loss=cross_entropy, optimizer=optimizer, epochs=1, batch_size=128, evaluations=0
        )
        logits, _ = network.forward(x)
        best_accuracy = np.maximum(best_accuracy, (logits.argmax(axis=-2) == y).mean(axis=-1))
    return float(np.median(best_accuracy))


def initialisation() -> Iterator[Row]:
    """relu with Var W = g / n: each block multiplies the squared gradient by g / 2."""
    for gain, published in ((0.5, 2.14e-7), (1.0, 0.897)):
        network = Network.create([256] * 24, "relu", "he", rng=np.random.default_rng(0), gain=gain, lanes=40)
        rng = np.random.default_rng(1)
        logits, caches = network.forward(rng.standard_normal((256, 1)))
        dlogits = rng.standard_normal(logits.shape)
        *_, (_, dz) = network.signals(dlogits, caches)
        ratio = float(((dz**2).sum(axis=(-2, -1)) / (dlogits**2).sum(axis=(-2, -1))).mean())
        theory = MeanField("relu", 2 * gain).gradient_ratio(22).item()
        yield Row(f"relu, g = {2 * gain:g}, 22 blocks: squared gradient, theory", HE, gain**22, theory, 1e-12 * gain**22)
        # The tolerance is wide: means over 40 networks of such products of 22 factors differ by a fifth.
        yield Row(f"relu, g = {2 * gain:g}, 22 blocks: squared gradient, 40 networks", HE, published, ratio, 0.5 * published)
