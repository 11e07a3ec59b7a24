"""Networks before training: how normalisation changes gradients, and how the weights change the Jacobian."""

from collections.abc import Iterator

import numpy as np

from blocks import Network
from blocks.measure.jacobian import jacobian, singular_values
from blocks.theory import MeanField, critical_gain
from experiments.published.row import Row

YANG = "Yang et al. 2019"
SAXE = "Saxe et al. 2013"
PENNINGTON = "Pennington et al. 2017"
WIDE = "wide blocks, exact"


def normalization() -> Iterator[Row]:
    """Yield rows on normalised blocks, which multiply the squared gradient by a known factor at any gain.

    With relu it is pi / (pi - 1); with the identity and batches of m examples (m - 2) / (m - 3).
    """
    growth = np.pi / (np.pi - 1)
    yield Row("normalized chi_1 of relu, theory", YANG, growth, MeanField("relu", 3.0).normalized_chi_1, 1e-12)
    for kind, source in (("batch_normalized", YANG), ("normalized", WIDE)):
        for gain in (0.5, 4.0):
            ours = _growth(kind, "relu", gain, m=256)
            yield Row(f"relu, {kind}, gain {gain:g}: squared gradient a block", source, growth, ours, 0.03 * growth)
    for m in (8, 32):
        ours = _growth("batch_normalized", "identity", 1.0, m)
        exact = (m - 2) / (m - 3)
        yield Row(f"identity, batch_normalized, batches of {m}: squared gradient a block", WIDE, exact, ours, 0.03 * exact)


def _growth(kind: str, activation: str, gain: float, m: int) -> float:
    """Return the factor of ||dJ/dz_l||^2 from block to block, going down, in 4 random networks of 20 blocks, for m examples."""
    rng = np.random.default_rng(0)
    network = Network.create([256] * 21, activation, "normal", rng=rng, gain=gain, lanes=4, kind=kind)
    logits, caches = network.forward(rng.standard_normal((256, m)))
    signals = network.signals(rng.standard_normal(logits.shape), caches)
    log_squares = np.array([np.log((dz**2).sum(axis=(-2, -1))).mean() for _, dz in signals])
    # Only blocks 17 down to 5 count. Above them the gradients still depend on the random dlogits.
    inner_squares = log_squares[3:16]
    return float(np.exp(np.polyfit(np.arange(len(inner_squares)), inner_squares, 1)[0]))


def isometry() -> Iterator[Row]:
    """Yield rows on the singular values of the Jacobian: 1 in linear orthogonal blocks; else their spread grows with depth."""
    rng = np.random.default_rng(0)
    network = Network.create([64] * 101, "identity", "orthogonal", rng=rng)
    error = float(np.abs(singular_values(network, np.zeros((64, 1))) - 1).max())
    yield Row("identity, orthogonal, depth 100: largest |s - 1|", SAXE, 0, error, 1e-12)
    tanh_bias_variance = 0.0025
    for activation, gain in (("identity", 1.0), ("tanh", critical_gain("tanh", tanh_bias_variance)), ("relu", 2.0)):
        bias_variance = tanh_bias_variance if activation == "tanh" else 0.0
        field = MeanField(activation, gain, bias_variance)
        for initializer, extra in (("orthogonal", 0), ("normal", 1)):
            theory = 8 * (field.jacobian_spread + extra)
            ours = _relative_variance(field, initializer)
            quantity = f"{activation}, {initializer}, 8 blocks: variance / mean^2 of s^2"
            yield Row(quantity, PENNINGTON, theory, ours, max(0.1 * theory, 1e-12))


def _relative_variance(field: MeanField, initializer: str) -> float:
    """Return variance / mean^2 of the squared singular values of the Jacobian of 8 blocks, 300 units wide.

    The data are scaled so that z has the variance q* in every block. The result is the mean over 4 examples in each of 2
    networks.
    """
    rng = np.random.default_rng(0)
    gain, bias_variance = field.weight_variance, field.bias_variance
    sizes = [300] * 11
    network = Network.create(sizes, field.activation, initializer, rng=rng, gain=gain, bias_variance=bias_variance, lanes=2)
    scale = np.sqrt((field.fixed_point - bias_variance) / gain)
    J = jacobian(network, scale * rng.standard_normal((300, 4)))
    squares = np.linalg.svd(J, compute_uv=False) ** 2
    return float(((squares**2).mean(axis=-1) / squares.mean(axis=-1) ** 2 - 1).mean())
