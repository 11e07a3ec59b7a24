"""Networks before training: what normalisation does to gradients."""

from collections.abc import Iterator

import numpy as np

from blocks import Network
from blocks.theory import MeanField
from experiments.published.row import Row

YANG = "Yang et al. 2019"
WIDE = "wide blocks, exact"


def normalization() -> Iterator[Row]:
    """Standardised inputs behind relu: the squared gradient grows pi / (pi - 1) times a block, at any gain."""
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
    """The factor of ||dJ/dz_l||^2 from block to block, going down, of 4 random networks of 20 blocks and m random examples."""
    rng = np.random.default_rng(0)
    network = Network.create([256] * 21, activation, "normal", rng=rng, gain=gain, lanes=4, kind=kind)
    logits, caches = network.forward(rng.standard_normal((256, m)))
    signals = network.signals(rng.standard_normal(logits.shape), caches)
    squares = np.array([np.log((dz**2).sum(axis=(-2, -1))).mean() for _, dz in signals])
    # From block 17 down to block 5: above, the random dlogits are not yet what blocks make of them.
    inner = squares[3:16]
    return float(np.exp(np.polyfit(np.arange(len(inner)), inner, 1)[0]))
