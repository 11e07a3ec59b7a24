"""The distributions of a run's pre-activations, activations and gradients, block by block, in bins for drawing."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from blocks.arrays import Array
from blocks.history import History, evenly_spaced

# The instrument that measures the histograms.
SIGNALS = "signals"
# Of these signals |v| is drawn, on a logarithmic axis, since they span decades.
GRADIENTS = ("da", "dW")
# The number of bins, which is odd so that 0 is inside a bin; the most blocks; the largest share of entries outside on each side.
BINS, BLOCKS, MAX_OUTSIDE = 65, 12, 0.005
# The largest height of a normal density, which may be narrower than what was measured.
MAX_HEIGHT = 1.25


@dataclass(frozen=True)
class Distribution:
    """The distribution of one signal v at E steps in B of the blocks.

    steps: (E,). blocks: (B,), numbers from 1 to L. edges: (BINS + 1,) of v, or of |v| where is_logarithmic. shares: (E, B, BINS)
    of all entries, 0 where nothing was measured.
    """

    steps: Array
    blocks: Array
    edges: Array
    shares: Array
    is_logarithmic: bool

    @property
    def largest(self) -> Array:
        """The largest share (E, B, 1) of each block and step; 1 where nothing was measured.

        For a signal with a sign, the bin around 0 does not count, since it has all dead units of relu.
        """
        counted_shares = self.shares if self.is_logarithmic else np.delete(self.shares, BINS // 2, axis=-1)
        largest = counted_shares.max(axis=-1, keepdims=True)
        # Where all entries are 0, the bin around 0 counts.
        largest = np.where(largest > 0, largest, self.shares.max(axis=-1, keepdims=True))
        return np.where(largest > 0, largest, 1)

    @property
    def heights(self) -> Array:
        """The shares (E, B, BINS) over the largest one of each block and step, at most 1."""
        heights: Array = np.minimum(self.shares / self.largest, 1)
        return heights

    @np.errstate(divide="ignore")
    def normal_heights(self, variances: Array) -> Array:
        """Return the heights (B, BINS) of the first step for v ~ N(0, variance) in each block, at most MAX_HEIGHT.

        variances: (L,) of blocks 1..L.
        """
        cumulative = ndtr(self.edges / np.sqrt(variances[self.blocks - 1, None]))
        return np.minimum(np.diff(cumulative) / self.largest[0], MAX_HEIGHT)


def distributions(history: History) -> dict[str, Distribution]:
    """Return the distributions of z, a, da and dW of a single lane, by symbol; none where they were not measured."""
    quantity = history.quantities.get(SIGNALS)
    if quantity is None:
        return {}
    return {
        symbol: _distribution(symbol, quantity.at, histogram.edges, histogram.counts)
        for symbol, histogram in quantity.histograms.items()
    }


def _distribution(symbol: str, steps: Array, edges: Array, counts: Array) -> Distribution:
    """Return the distribution for histograms with fine bins.

    edges: (N + 1,), the outermost may be infinite. counts: (E, L, N).
    """
    blocks = evenly_spaced(counts.shape[1], BLOCKS)
    counts = counts[:, blocks].astype(np.float64)
    entries = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    is_inner = np.isfinite(edges[:-1]) & np.isfinite(edges[1:])
    logarithmic = symbol in GRADIENTS
    if logarithmic:
        is_inner &= edges[:-1] > 0
    ends = np.append(edges[:-1][is_inner], edges[1:][is_inner][-1])
    scaled = np.log10(ends) if logarithmic else ends
    # The share of entries below each edge, (E, B, N + 1). Within a bin it is interpolated linearly.
    cumulative = np.concatenate([np.zeros((*counts.shape[:2], 1)), (counts[..., is_inner] / entries).cumsum(axis=-1)], axis=-1)
    low, high = _range(scaled, cumulative, logarithmic)
    coarse_edges = np.linspace(low, high, BINS + 1)
    shares = np.diff(
        np.array([[np.interp(coarse_edges, scaled, block_row) for block_row in block_rows] for block_rows in cumulative]), axis=-1
    )
    return Distribution(steps, blocks + 1, 10**coarse_edges if logarithmic else coarse_edges, shares, logarithmic)


def _range(edges: Array, cumulative: Array, logarithmic: bool) -> tuple[float, float]:
    """Return the edges between which the entries lie, except for the share MAX_OUTSIDE on each side.

    Every block and step has the same weight. The range of a signal with a sign is symmetric about 0.
    """
    rows = cumulative.reshape(-1, len(edges))
    rows = rows[rows[:, -1] > 0]
    if not len(rows):
        return -1.0, 1.0
    mean_cumulative = (rows / rows[:, -1:]).mean(axis=0)
    lower, upper = edges[mean_cumulative <= MAX_OUTSIDE].max(), edges[mean_cumulative >= 1 - MAX_OUTSIDE].min()
    if logarithmic:
        return float(lower), float(upper)
    limit = float(max(abs(lower), abs(upper)))
    return -limit, limit
